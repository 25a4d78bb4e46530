# SPDX-License-Identifier: BSD-3-Clause
"""The namespace's path-manager sysctl, borrowed while the daemon runs.

What stood there before is noted (`namespace_note`), so that a daemon that was killed
leaves something for the next start to put right.
"""

import msgspec

from mptcpd_ebpf.daemon.state_file import StateFile
from mptcpd_ebpf.kernel import sysctl


class _Borrowed(msgspec.Struct, frozen=True):
    before: str
    ours: str


class PathManagerSysctl:
    """Sets the path manager for new connections and puts the former one back."""

    def __init__(self) -> None:
        self._file = StateFile("path-manager", _Borrowed)
        self._setting = sysctl.PathManagerSetting()

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
