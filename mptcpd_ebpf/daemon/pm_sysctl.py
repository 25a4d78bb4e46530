# SPDX-License-Identifier: BSD-3-Clause
"""The namespace's path-manager sysctl, borrowed while the daemon runs.

What stood there before is noted (`namespace_note`), so that a daemon that was killed
leaves something for the next start to put right.
"""

import logging
from pathlib import Path

import msgspec

from mptcpd_ebpf.daemon.state_file import StateFile
from mptcpd_ebpf.kernel.sysctl import PathManagerSetting

log = logging.getLogger("mptcpd-ebpf")


class _Borrowed(msgspec.Struct, frozen=True):
    before: str
    ours: str


class PathManagerSysctl:
    """Sets the path manager for new connections and puts the former one back."""

    def __init__(self, folder: Path, setting: PathManagerSetting) -> None:
        """`folder` holds the note."""
        self._file = StateFile(folder, "path-manager", _Borrowed)
        self._setting = setting
        self._used: str | None = None

    def use(self, path_manager: str | None) -> None:
        """Borrows the setting for the plugins that need it; None gives it back.

        Raises NotPermitted, MptcpMissing or KernelError, and setting and note are as before.
        """
        if path_manager is None:
            self.give_back()
            self._used = None
            return
        before = self.borrow(path_manager)
        is_news, self._used = path_manager != self._used, path_manager
        if before != path_manager and is_news:
            log.info(
                "new connections get the %s path manager (was: %s) until this daemon ends",
                path_manager,
                before,
            )

    def borrow(self, path_manager: str) -> str:
        """Sets it and returns what stood there before any daemon of ours came.

        Raises NotPermitted, MptcpMissing or KernelError.
        """
        held = self._note()
        before = held.before if held is not None else self._setting.current()
        if before != path_manager:
            # Noted first: who is killed in between leaves a note that says what is not so.
            self._file.write(_Borrowed(before, path_manager))
        try:
            self._setting.set(path_manager)
        except BaseException:
            if held is not None:
                self._file.write(held)
            else:
                self._file.forget()
            raise
        return before

    def give_back(self) -> None:
        """Puts the former one back if ours, or a killed daemon's, still stands there."""
        held = self._note()
        if held is not None:
            self._setting.set(held.before)
        self._file.forget()

    def _note(self) -> _Borrowed | None:
        """The note of who borrowed it here, unless somebody has changed the setting since."""
        note = self._file.read()
        return note if note is not None and self._setting.current() == note.ours else None
