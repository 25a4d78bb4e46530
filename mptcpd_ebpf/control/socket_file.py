# SPDX-License-Identifier: BSD-3-Clause
"""The file of the control socket: accessible to its owner only, never taken from a running daemon.

A socket that a killed daemon left is replaced.  A file that is not a socket is left as it is.  At
the end the file is removed only if it is still the daemon's own.
"""

import errno
import os
import socket
import stat
from pathlib import Path

from mptcpd_ebpf.control.client import check_length
from mptcpd_ebpf.runtime import run_folder
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure

_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


class SocketFile:
    """A listening Unix socket at a path, mode 0600, until `close`."""

    def __init__(self, path: str) -> None:
        """Raises `Failure` with the path, the cause and the fix."""
        check_length(path)
        self.path = path
        try:
            if os.path.dirname(path) == str(run_folder.own()):
                run_folder.make()
            _clear(path)
            self.socket = _bind(path)
            if os.path.dirname(path) == str(run_folder.own()):
                run_folder.give(Path(path))
            self._identity = _identity(path)
        except OSError as error:
            if error.errno in _NOT_ALLOWED:
                raise Failure(
                    f"control path {path}: {error.strerror}; run as root, set "
                    "XDG_RUNTIME_DIR, or choose a path of your own with --control",
                    ExitCode.PRIVILEGE,
                ) from None
            hint = "; create its directory first" if error.errno == errno.ENOENT else ""
            raise Failure(f"control path {path}: {error.strerror}{hint}", ExitCode.CONFIG) from None

    def close(self) -> None:
        """Closes the socket, and removes the file unless another program has replaced it."""
        self.socket.close()
        try:
            if _identity(self.path) == self._identity:
                os.unlink(self.path)
        except OSError:
            pass  # the file or its directory does not exist any more


def _bind(path: str) -> socket.socket:
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    mask = os.umask(0o177)  # from the start, nobody else can connect
    try:
        bound.bind(path)
        bound.listen()
    except OSError:
        bound.close()
        raise
    finally:
        os.umask(mask)
    return bound


def _identity(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return (status.st_dev, status.st_ino)


def _clear(path: str) -> None:
    """Removes the socket of a killed daemon.  Raises `Failure` for any other file."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise Failure(
            f"control path {path}: the file exists and is not a socket; remove it or choose "
            "another path",
            ExitCode.CONFIG,
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            pass
        except (TimeoutError, BlockingIOError):
            raise _held(path, "a process that does not answer") from None
        else:
            raise _held(path, _owner(probe))
    os.unlink(path)


def _owner(connected: socket.socket) -> str:
    """The process that listens on the other end (SO_PEERCRED)."""
    raw = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return f"process {int.from_bytes(raw[:4], 'little')}"


def _held(path: str, owner: str) -> Failure:
    return Failure(
        f"control path {path}: in use by {owner}; stop it, or choose another path with --control",
        ExitCode.HELD,
    )
