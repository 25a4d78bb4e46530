# SPDX-License-Identifier: BSD-3-Clause
"""The net.mptcp sysctls of a network namespace, and which path manager new connections get.

`net.mptcp.path_manager` (``kernel``, ``userspace``, or a BPF one) came with Linux 6.16;
before it there is only `net.mptcp.pm_type` (0, 1), which newer kernels keep as another
face of the same setting (kernel: net/mptcp/ctrl.c).  The setting applies to
connections created afterwards.

/proc/sys/net shows the namespace of the thread that opens a file there.
"""

import errno
from pathlib import Path
from typing import NamedTuple

from mptcpd_ebpf.kernel.errors import KernelError, MptcpMissingError, NotPermittedError

_FOLDER = Path("/proc/sys/net/mptcp")
_BY_TYPE = {"0": "kernel", "1": "userspace"}
USERSPACE = "userspace"


def read_all() -> dict[str, str]:
    """Every setting by its name.  Empty on a kernel without MPTCP."""
    try:
        files = sorted(_FOLDER.iterdir())
    except FileNotFoundError:
        return {}
    found = {}
    for file in files:
        try:
            found[file.name] = file.read_text().strip()
        except OSError:
            continue  # not ours to read: unknown, not absent
    return found


def enabled() -> bool:
    """Whether sockets may use MPTCP.  Raises MptcpMissingError."""
    return _read("enabled") == "1"


def path_manager() -> str:
    """Name of the path manager that new connections get.  Raises MptcpMissingError."""
    name, value = _setting()
    return value if name == "path_manager" else _BY_TYPE.get(value, value)


class PathManagerChange(NamedTuple):
    """What was set, and what stood there before."""

    before: str
    after: str

    def restore(self) -> bool:
        """Puts the former one back unless someone else has changed it since; says whether it did.

        Raises NotPermittedError.
        """
        if self.before == self.after or path_manager() != self.after:
            return False
        _choose(self.before)
        return True


def use_userspace() -> PathManagerChange:
    """Gives new connections to the userspace path manager.

    Raises MptcpMissingError, or NotPermittedError where the sysctl cannot be written.
    """
    before = path_manager()
    if before != USERSPACE:
        _choose(USERSPACE)
    return PathManagerChange(before, USERSPACE)


def _choose(path_manager: str) -> None:
    name, _value = _setting()
    value = path_manager
    if name == "pm_type":
        value = next((number for number, word in _BY_TYPE.items() if word == value), value)
    file = _FOLDER / name
    try:
        file.write_text(value)
    except OSError as error:
        by_hand = f"set it from outside: sysctl -w net.mptcp.{name}={value}"
        if error.errno == errno.EROFS:
            raise NotPermittedError(
                f"{file} is read-only, as in a container: {by_hand}, "
                "or mount /proc/sys writable here"
            ) from None
        if isinstance(error, PermissionError):
            raise NotPermittedError(
                f"{file} may not be written: CAP_NET_ADMIN and root are needed; or {by_hand}"
            ) from None
        raise KernelError(f"{file} does not take {value!r}: {error.strerror}") from None


def _setting() -> tuple[str, str]:
    try:
        return "path_manager", _read("path_manager")
    except MptcpMissingError:
        return "pm_type", _read("pm_type")


def _read(name: str) -> str:
    try:
        return (_FOLDER / name).read_text().strip()
    except FileNotFoundError:
        if not _FOLDER.is_dir():
            why = "this kernel has no MPTCP: boot one with CONFIG_MPTCP=y"
        else:
            why = "this kernel's MPTCP is too old: 5.19 or newer is needed"
        raise MptcpMissingError(f"{_FOLDER / name} is missing: {why}") from None
