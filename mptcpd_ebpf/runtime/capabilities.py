# SPDX-License-Identifier: BSD-3-Clause
"""Which capabilities this process holds (capabilities(7))."""

from enum import IntEnum


class Capability(IntEnum):
    """Bit numbers of include/uapi/linux/capability.h."""

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
