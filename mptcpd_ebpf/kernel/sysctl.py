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

from mptcpd_ebpf.kernel.errors import KernelError, MptcpMissing, NotPermitted

_FOLDER = Path("/proc/sys/net/mptcp")
_BY_TYPE = {"0": "kernel", "1": "userspace"}


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
    """Whether sockets may use MPTCP.  Raises MptcpMissing."""
    return _read("enabled") == "1"


class PathManagerSetting:
    """Which path manager new connections get, and what it was before we changed it."""

    def __init__(self) -> None:
        self._before: str | None = None
        self._ours: str | None = None

    def current(self) -> str:
        """Name of the path manager that new connections get.  Raises MptcpMissing."""
        name, value = _setting()
        return value if name == "path_manager" else _BY_TYPE.get(value, value)

    def set(self, path_manager: str) -> str:
        """Chooses the path manager for new connections; returns the one before.

        Raises MptcpMissing, NotPermitted where the sysctl cannot be written, or
        KernelError if this kernel has no path manager of that name.
        """
        before = self.current()
        if before != path_manager:
            _choose(path_manager)
            if self._before is None:
                self._before = before
            self._ours = path_manager
        return before

    def restore(self) -> bool:
        """Puts the first value back unless it was changed since; returns whether it did.

        Raises NotPermitted.
        """
        before, ours = self._before, self._ours
        self._before = self._ours = None
        if before is None or before == ours or self.current() != ours:
            return False
        _choose(before)
        return True


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
            raise NotPermitted(
                f"{file} is read-only, as in a container: {by_hand}, "
                "or mount /proc/sys writable here"
            ) from None
        if isinstance(error, PermissionError):
            raise NotPermitted(
                f"{file} may not be written: CAP_NET_ADMIN and root are needed; or {by_hand}"
            ) from None
        raise KernelError(f"{file} does not take {value!r}: {error.strerror}") from None


def _setting() -> tuple[str, str]:
    try:
        return "path_manager", _read("path_manager")
    except MptcpMissing:
        return "pm_type", _read("pm_type")


def _read(name: str) -> str:
    try:
        return (_FOLDER / name).read_text().strip()
    except FileNotFoundError:
        if not _FOLDER.is_dir():
            why = "this kernel has no MPTCP: boot one with CONFIG_MPTCP=y"
        else:
            why = "this kernel's MPTCP is too old: 5.19 or newer is needed"
        raise MptcpMissing(f"{_FOLDER / name} is missing: {why}") from None
