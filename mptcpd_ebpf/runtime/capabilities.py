# SPDX-License-Identifier: BSD-3-Clause
"""Which capabilities this process holds, and giving them up (capabilities(7))."""

import ctypes
import errno
import os
import struct
from collections.abc import Collection
from enum import IntEnum


class Capability(IntEnum):
    """Bit numbers of include/uapi/linux/capability.h."""

    CAP_DAC_OVERRIDE = 1
    CAP_SETPCAP = 8
    CAP_NET_BIND_SERVICE = 10
    CAP_NET_ADMIN = 12
    CAP_NET_RAW = 13
    CAP_SYS_PTRACE = 19
    CAP_SYS_ADMIN = 21
    CAP_PERFMON = 38
    CAP_BPF = 39


def effective() -> frozenset[Capability]:
    """The capabilities in the effective set of the calling thread."""
    with open("/proc/thread-self/status", encoding="ascii", errors="replace") as status:
        line = next(line for line in status if line.startswith("CapEff:"))
    bits = int(line.split()[1], 16)
    return frozenset(each for each in Capability if bits >> each & 1)


def may_load_bpf() -> bool:
    """Whether this process may load tracing programs: CAP_SYS_ADMIN, or CAP_BPF and CAP_PERFMON."""
    held = effective()
    return Capability.CAP_SYS_ADMIN in held or held >= {Capability.CAP_BPF, Capability.CAP_PERFMON}


_VERSION_3 = 0x20080522
"""_LINUX_CAPABILITY_VERSION_3: two words for each set."""
_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 23, 24, 38


def keep_only(kept: Collection[Capability]) -> None:
    """Gives up all other capabilities of the calling thread for good, also for its children.

    Raises OSError, also while the process has other threads, which would keep theirs.
    """
    if len(os.listdir("/proc/self/task")) > 1:
        raise OSError(errno.EBUSY, "other threads are running")
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments: object) -> int:
        result: int = getattr(libc, name)(*arguments)
        if result < 0:
            error = ctypes.get_errno()
            raise OSError(error, f"{name}: {os.strerror(error)}")
        return result

    if Capability.CAP_SETPCAP in effective():
        for number in range(64):
            try:
                if call("prctl", _PR_CAPBSET_READ, number, 0, 0, 0) and number not in kept:
                    call("prctl", _PR_CAPBSET_DROP, number, 0, 0, 0)
            except OSError:
                break  # the kernel knows no more of them
    call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    wanted = sum(1 << number for number in kept)
    held = wanted & _permitted()
    # Effective, permitted and inheritable, each first the low words; ambient ones follow.
    low, high = held & 0xFFFFFFFF, held >> 32
    sets = struct.pack("=6I", low, low, 0, high, high, 0)
    call("capset", struct.pack("=Ii", _VERSION_3, 0), sets)


def _permitted() -> int:
    with open("/proc/thread-self/status", encoding="ascii", errors="replace") as status:
        return next(int(line.split()[1], 16) for line in status if line.startswith("CapPrm:"))
