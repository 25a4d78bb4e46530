# SPDX-License-Identifier: BSD-3-Clause
"""Small files about a network namespace that outlive the daemon, beside the control sockets.

The next start restores what a killed daemon could not.  A file names the namespace by its cookie
and the boot by its id, because the kernel uses inode numbers again.
"""

import os
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from mptcpd_ebpf.kernel.errors import NotPermitted
from mptcpd_ebpf.runtime import netns, run_folder

T = TypeVar("T")


class _Document(msgspec.Struct, Generic[T], frozen=True):
    """The content of a file."""

    boot: str
    netns_cookie: int
    content: T


class StateFile(Generic[T]):
    """The file ``NETNS.kind`` in `folder`, which holds a record of type `content`."""

    def __init__(self, folder: Path, kind: str, content: type[T]) -> None:
        self._path = folder / run_folder.here(kind).name
        self._content = content
        self._here = (_boot_id(), netns.cookie())

    def read(self) -> T | None:
        """The record of this namespace and boot; None if there is none that is valid."""
        try:
            document = msgspec.json.decode(
                self._path.read_bytes(),
                type=_Document[self._content],  # type: ignore[name-defined]
            )
        except (OSError, msgspec.DecodeError):
            return None
        if (document.boot, document.netns_cookie) != self._here:
            return None
        content: T = document.content
        return content

    def write(self, content: T) -> None:
        """Replaces the record.  Raises NotPermitted, and the former record stays."""
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            with open(run_folder.open_file(new, flags), "wb") as file:
                file.write(msgspec.json.encode(_Document(*self._here, content)))
            new.rename(self._path)
        except OSError as error:
            raise NotPermitted(
                f"{new}: {error.strerror}; the daemon saves there what the next start restores "
                "if it is killed: run as root, or set XDG_RUNTIME_DIR to a directory of your own"
            ) from None

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
