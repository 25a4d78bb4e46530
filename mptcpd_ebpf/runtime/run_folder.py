# SPDX-License-Identifier: BSD-3-Clause
"""The folder of control sockets and state files, which commands and later daemons read.

Each file there is named after a network namespace, ``INODE.kind``.  A daemon run by root,
or a service whose RuntimeDirectory= belongs to its user, uses `SYSTEM`; any other user's
daemon uses a folder below $XDG_RUNTIME_DIR, to which only that user has access.

Files outlive their namespace: `sweep` removes those of namespaces that no longer exist.
"""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from mptcpd_ebpf.runtime import netns

SYSTEM = Path("/run/mptcpd-ebpf")


def own() -> Path:
    """The folder in which a daemon of this process puts its files; it may not exist yet."""
    personal = os.environ.get("XDG_RUNTIME_DIR")
    if os.geteuid() == 0 or not personal or os.access(SYSTEM, os.W_OK, effective_ids=True):
        return SYSTEM
    return Path(personal) / SYSTEM.name


def here(kind: str) -> Path:
    """This network namespace's file of a kind, such as ``sock``, in this user's folder."""
    return own() / f"{netns.inode()}.{kind}"


def find(kind: str) -> Path:
    """This namespace's file: in `SYSTEM` if it exists only there, else in this user's folder."""
    mine = here(kind)
    system = SYSTEM / mine.name
    return system if system.exists() and not mine.exists() else mine


def make() -> None:
    """Creates this user's folder, mode 0755.

    Raises OSError, also if users other than root and its daemon's could put files there.
    """
    folder = own()
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    status = folder.lstat()
    # Only root can make `SYSTEM`; it belongs to the service's user.
    trusted = folder == SYSTEM or status.st_uid in (0, os.geteuid())
    if not stat.S_ISDIR(status.st_mode) or not trusted or status.st_mode & 0o022:
        raise PermissionError(
            errno.EPERM, f"{folder} is no folder that only root and the daemon's user can write"
        )


def open_file(path: Path, flags: int) -> int:
    """A descriptor of a file of this folder, which only its owner and root can open.

    A file that root makes belongs to the folder's owner, so that the service's user can replace a
    daemon that root started.  Raises OSError, also if the file is a link.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    give(path)
    return descriptor


def give(path: Path) -> None:
    """Gives a file of this folder that root has made to the folder's owner.  Raises OSError."""
    if os.geteuid() != 0:
        return
    owner = path.parent.stat()
    # The owner can replace the file at any time, and must not get one that he has linked here.
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != owner.st_uid and status.st_nlink == 1:
            os.chown(f"/proc/self/fd/{descriptor}", owner.st_uid, owner.st_gid)
    finally:
        os.close(descriptor)


def sweep() -> list[Path]:
    """Removes the files of ended namespaces from this user's folder; returns their paths."""
    try:
        files = [file for file in own().iterdir() if file.name.partition(".")[0].isdigit()]
    except OSError:
        return []
    by_inode: dict[int, list[Path]] = {}
    for file in files:
        by_inode.setdefault(int(file.name.partition(".")[0]), []).append(file)
    by_inode.pop(netns.inode(), None)
    gone = netns.unused(by_inode) if by_inode else []
    swept = [file for inode in gone for file in by_inode[inode]]
    for file in swept:
        with suppress(OSError):
            file.unlink()
    return swept
