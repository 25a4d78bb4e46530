# SPDX-License-Identifier: BSD-3-Clause
"""Small notes about this network namespace that outlive the daemon, beside the control sockets.

A daemon that was killed leaves them for the next start to put right.  A note names the
namespace by its cookie and the boot by its id: an inode number may return, these do not.
"""

import socket
import struct
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from mptcpd_ebpf.kernel.errors import NotPermitted
from mptcpd_ebpf.runtime import run_folder

_SO_NETNS_COOKIE = 71

T = TypeVar("T")


class _Written(msgspec.Struct, Generic[T], frozen=True):
    """What the file says."""

    boot: str
    netns_cookie: int
    content: T


class StateFile(Generic[T]):
    """One file in `folder`, with a record of type `content` in it; `kind` is its ending."""

    def __init__(self, folder: Path, kind: str, content: type[T]) -> None:
        self._path = folder / run_folder.here(kind).name
        self._content = content
        self._here = (_boot_id(), _netns_cookie())

    def read(self) -> T | None:
        """What was noted in this namespace and boot; None if nothing legible was."""
        try:
            note = msgspec.json.decode(
                self._path.read_bytes(),
                type=_Written[self._content],  # type: ignore[name-defined]
            )
        except (OSError, msgspec.DecodeError):
            return None
        if (note.boot, note.netns_cookie) != self._here:
            return None
        content: T = note.content
        return content

    def write(self, content: T) -> None:
        """Notes it in place of what was noted before.  Raises NotPermitted."""
        fresh = self._path.with_name(f"{self._path.name}.new")
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            fresh.write_bytes(msgspec.json.encode(_Written(*self._here, content)))
            fresh.rename(self._path)
        except OSError as error:
            raise NotPermitted(
                f"{fresh}: {error.strerror}; what is to be put right after a kill is noted "
                "there: run as root, or set XDG_RUNTIME_DIR to a folder of your own"
            ) from None

    def forget(self) -> None:
        self._path.unlink(missing_ok=True)


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
