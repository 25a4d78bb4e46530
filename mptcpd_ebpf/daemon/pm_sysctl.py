# SPDX-License-Identifier: BSD-3-Clause
"""The path-manager sysctl of the namespace, set while the daemon runs.

The value before is saved in a state file, from which the next start restores it if this daemon is
killed.
"""

import logging
from pathlib import Path

import msgspec

from mptcpd_ebpf.daemon.state_file import StateFile
from mptcpd_ebpf.kernel.sysctl import PathManagerSetting

log = logging.getLogger("mptcpd-ebpf")


class _Record(msgspec.Struct, frozen=True):
    """The value before the daemon, and the one that it set."""

    before: str
    ours: str


class PathManagerSysctl:
    """Sets the path manager for new connections, and restores the former value."""

    def __init__(self, folder: Path, setting: PathManagerSetting) -> None:
        """`folder` holds the state file."""
        self._file = StateFile(folder, "path-manager", _Record)
        self._setting = setting
        self._used: str | None = None

    def use(self, path_manager: str | None) -> None:
        """Sets the path manager that the plugins need; None restores the former value.

        Raises NotPermitted, MptcpMissing or KernelError, and setting and state file are as before.
        """
        if path_manager is None:
            self.restore()
            self._used = None
            return
        before = self.set(path_manager)
        is_news, self._used = path_manager != self._used, path_manager
        if before != path_manager and is_news:
            log.info(
                "new connections use the %s path manager until the daemon stops (before: %s)",
                path_manager,
                before,
            )

    def set(self, path_manager: str) -> str:
        """Sets the path manager; returns the value from before the first daemon that set it.

        Raises NotPermitted, MptcpMissing or KernelError.
        """
        held = self._valid_record()
        before = held.before if held is not None else self._setting.current()
        if before != path_manager:
            # Saved first: a daemon that is killed in between leaves a record that does not match
            # the setting, which the next start ignores.
            self._file.write(_Record(before, path_manager))
        try:
            self._setting.set(path_manager)
        except BaseException:
            if held is not None:
                self._file.write(held)
            else:
                self._file.remove()
            raise
        return before

    def restore(self) -> None:
        """Restores the former value, unless another program has changed the setting since.

        Also the value that a killed daemon left.  Raises NotPermitted.
        """
        held = self._valid_record()
        if held is not None:
            self._setting.set(held.before)
        self._file.remove()

    def _valid_record(self) -> _Record | None:
        """The saved record, unless another program has changed the setting since."""
        saved = self._file.read()
        return saved if saved is not None and self._setting.current() == saved.ours else None
