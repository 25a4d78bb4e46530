# SPDX-License-Identifier: BSD-3-Clause
"""The namespace's path-manager sysctl, borrowed while the daemon runs.

What stood there before is kept in a small file beside the control sockets, so that a
daemon that was killed leaves something for the next start to put right.  The file
names the namespace by its cookie and the boot by its id: an inode number may return,
these do not.
"""

import os
import socket
import struct
from pathlib import Path

import msgspec

from mptcpd_ebpf.control_client import RUN_FOLDER
from mptcpd_ebpf.kernel import sysctl
from mptcpd_ebpf.kernel.errors import NotPermitted
from mptcpd_ebpf.kernel.netns import inode

_SO_NETNS_COOKIE = 71


class _Note(msgspec.Struct, frozen=True):
    """What the file says."""

    boot: str
    netns_cookie: int
    before: str
    ours: str


class BorrowedSetting:
    """Sets the path manager for new connections and puts the former one back."""

    def __init__(self) -> None:
        self._path = Path(RUN_FOLDER) / f"{inode()}.path-manager"
        self._setting = sysctl.PathManagerSetting()

    def borrow(self, path_manager: str) -> str:
        """Sets it and returns what stood there before any daemon of ours came.

        Raises NotPermitted, MptcpMissing or KernelError.
        """
        held = self._note()
        before = held.before if held is not None else self._setting.current()
        if before != path_manager:
            # Noted first: who is killed in between leaves a note that says what is not so.
            self._write(_Note(_boot_id(), _netns_cookie(), before, path_manager))
        try:
            self._setting.set(path_manager)
        except BaseException:
            self._path.unlink(missing_ok=True)
            raise
        return before

    def give_back(self) -> None:
        """Puts the former one back if ours, or a killed daemon's, still stands there."""
        held = self._note()
        if held is not None:
            self._setting.set(held.before)
        self._path.unlink(missing_ok=True)

    def _note(self) -> _Note | None:
        """The note of who borrowed it here, unless somebody has changed the setting since."""
        try:
            note = msgspec.json.decode(self._path.read_bytes(), type=_Note)
        except (OSError, msgspec.DecodeError):
            return None
        here = (note.boot, note.netns_cookie) == (_boot_id(), _netns_cookie())
        return note if here and self._setting.current() == note.ours else None

    def _write(self, note: _Note) -> None:
        fresh = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            fresh.write_bytes(msgspec.json.encode(note))
            os.replace(fresh, self._path)
        except OSError as error:
            raise NotPermitted(
                f"{fresh}: {error.strerror}; the path manager to put back at the end is noted "
                "there, so let this process write the folder, or run as root"
            ) from None


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _netns_cookie() -> int:
    """A number no other namespace of this boot ever has; 0 before Linux 5.14."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            raw = sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        except OSError:
            return 0
    return int(struct.unpack("=Q", raw)[0])
