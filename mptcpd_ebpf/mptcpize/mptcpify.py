# SPDX-License-Identifier: BSD-3-Clause
"""Makes the kernel create MPTCP sockets for TCP ones, with the BPF program bpf/mptcpify.bpf.c.

It reaches programs that a preload does not: statically linked, set-user-ID and running ones.
It needs a kernel that has update_socket_protocol() (6.6) and allows fmod_ret programs, and its
sockets do not fall back to TCP.  The BPF program therefore acts only in the caller's network
namespace, and is detached within a second after net.mptcp.enabled is set to 0 there.  It also
ends with this process, however that ends.
"""

import errno
import mmap
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from mptcpd_ebpf.kernel import sysctl
from mptcpd_ebpf.kernel.errors import MptcpMissing
from mptcpd_ebpf.probes.bpf_object import VMLINUX_BTF, BpfObject, BpfUnavailable
from mptcpd_ebpf.runtime import netns
from mptcpd_ebpf.runtime.capabilities import may_load_bpf
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure

_HOOK = "update_socket_protocol"
_INSTEAD = "'mptcpd-ebpf exec PROGRAM' works for dynamically linked programs and for Go programs"
_INIT_PID_NAMESPACE = 0xEFFFFFFC  # include/linux/proc_ns.h: PROC_PID_INIT_INO
_COMM_BYTES = 15  # TASK_COMM_LEN less the final zero
_LOOK_EVERY_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Selects tasks: those that match all given fields."""

    pid: int | None = None
    """This process and its descendants."""
    comm: str | None = None
    """Threads of this name (/proc/PID/comm), at most 15 bytes."""
    cgroup: Path | None = None
    """Tasks in this cgroup v2 folder or below."""

    def constants(self) -> dict[str, bytes]:
        """The values of the BPF program's ``only_…`` variables, without padding.

        Raises `Failure` if a process or folder does not exist, or a value is invalid.
        """
        values = {"only_netns": _number(netns.inode())}
        if self.pid is not None:
            values["only_pid"] = _number(self._checked_pid(self.pid))
        if self.comm is not None:
            comm = os.fsencode(self.comm)
            if not 0 < len(comm) <= _COMM_BYTES:
                raise Failure(
                    f"--comm {self.comm}: the kernel keeps 1 to {_COMM_BYTES} bytes of a name; "
                    "give it as /proc/PID/comm shows it",
                    ExitCode.USAGE,
                )
            values["only_comm"] = comm
        if self.cgroup is not None:
            values["only_cgroup"] = _number(self._cgroup_id(self.cgroup))
        return values

    @staticmethod
    def _checked_pid(pid: int) -> int:
        there = netns.inode_of(pid)
        if there is None:
            raise Failure(f"--pid {pid}: no such process", ExitCode.USAGE)
        if there != netns.inode():
            raise Failure(
                f"--pid {pid}: is in another network namespace; "
                f"run 'nsenter -t {pid} -n mptcpd-ebpf mptcpify --pid {pid}'",
                ExitCode.USAGE,
            )
        if os.stat("/proc/self/ns/pid").st_ino != _INIT_PID_NAMESPACE:
            raise Failure(
                "--pid: this container's process ids differ from the kernel's; "
                "use --cgroup or --comm, or run it on the host",
                ExitCode.USAGE,
            )
        return pid

    @staticmethod
    def _cgroup_id(folder: Path) -> int:
        """The cgroup's id, which is the inode number of its folder in cgroup2."""
        if not (folder / "cgroup.procs").exists() or not (folder / "cgroup.controllers").exists():
            raise Failure(
                f"--cgroup {folder}: is not a folder of the cgroup v2 file system", ExitCode.USAGE
            )
        return folder.stat().st_ino


class Mptcpify:
    """The BPF program, attached.  A context manager that detaches it."""

    def __init__(self, selection: Selection) -> None:
        """Loads and attaches.

        Raises `Failure`: NO_MPTCP if this kernel cannot do it, PRIVILEGE, or USAGE.
        """
        constants = selection.constants()
        _check_machine()
        try:
            self._object = BpfObject("mptcpify")
        except BpfUnavailable as error:
            raise Failure(str(error), ExitCode.CHECK_FAILED) from None
        try:
            self._object.constants(constants)
            self._object.load()
            self._object.attach("mptcpify")
            self._shared: mmap.mmap | None = self._object.memory(".bss")
        except OSError as error:
            self._object.close()
            raise _refused(error) from None
        self._turned = self._object.btf.variables(".bss")["turned"]

    @property
    def turned(self) -> int:
        """Number of sockets turned into MPTCP sockets so far."""
        if self._shared is None:
            raise ValueError("the program is detached")
        offset, width = self._turned
        return int.from_bytes(self._shared[offset : offset + width], "little")

    def close(self) -> None:
        """Detaches and unloads; existing MPTCP sockets stay MPTCP."""
        self._shared = None
        self._object.close()

    def __enter__(self) -> "Mptcpify":
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()


def run(selection: Selection, say: Callable[[str], None]) -> None:
    """Attaches and waits until SIGINT or SIGTERM, or until the process of `Selection.pid` ends.

    `say` gets a line at the start and one at the end.
    Raises `Failure` as `Mptcpify` does, and if MPTCP is disabled meanwhile.
    """
    ends = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    try:
        with Mptcpify(selection) as attached:
            say("new TCP sockets become MPTCP sockets; Ctrl-C ends it")
            while not signal.sigtimedwait(ends, _LOOK_EVERY_S):
                _check_enabled()
                if selection.pid is not None and netns.inode_of(selection.pid) is None:
                    say(f"process {selection.pid} has ended")
                    break
            say(f"{attached.turned} sockets became MPTCP sockets")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _check_machine() -> None:
    _check_enabled()
    if not may_load_bpf():
        raise Failure(
            "loading a BPF program needs CAP_BPF and CAP_PERFMON: run as root or grant both; "
            + _INSTEAD,
            ExitCode.PRIVILEGE,
        )
    try:
        types = Path(VMLINUX_BTF).read_bytes()
    except OSError as error:
        raise Failure(
            f"{VMLINUX_BTF}: {error.strerror}: use a kernel built with "
            f"CONFIG_DEBUG_INFO_BTF=y; {_INSTEAD}",
            ExitCode.NO_MPTCP,
        ) from None
    if f"\0{_HOOK}\0".encode() not in types:
        raise Failure(
            f"this kernel has no {_HOOK}(), which Linux 6.6 added; {_INSTEAD}",
            ExitCode.NO_MPTCP,
        )


def _check_enabled() -> None:
    try:
        if sysctl.enabled():
            return
        reason = "net.mptcp.enabled is 0 here, so MPTCP sockets would fail; set it to 1"
    except MptcpMissing as error:
        reason = str(error)
    raise Failure(reason, ExitCode.NO_MPTCP)


def _refused(error: OSError) -> Failure:
    cause = errno.errorcode.get(error.errno or 0, str(error.errno))
    return Failure(
        f"this kernel does not let a BPF program replace the result of {_HOOK}() "
        f"(fmod_ret: {cause}); {_INSTEAD}",
        ExitCode.NO_MPTCP,
    )


def _number(value: int) -> bytes:
    return value.to_bytes(8, "little")
