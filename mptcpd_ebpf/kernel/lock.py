# SPDX-License-Identifier: BSD-3-Clause
"""One daemon per network namespace: an abstract Unix socket as the lock.

An abstract name belongs to the network namespace and ends with its owner, so the lock needs no
file and leaves nothing behind, even after kill -9.  The socket listens without ever accepting:
connecting to it is enough for SO_PEERCRED to name the holder (unix(7)).
"""

import socket
import struct
from typing import NoReturn, Self

from mptcpd_ebpf.kernel import owners
from mptcpd_ebpf.kernel.errors import NamespaceTaken

_NAME = "\0mptcpd-ebpf/lock"
_CREDENTIALS = struct.Struct("=iII")


class NamespaceLock:
    """Holds the calling thread's namespace while used as a context."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)

    def __enter__(self) -> Self:
        """Raises NamespaceTaken, with the holder's pid, while another process has it."""
        try:
            self._socket.bind(_NAME)
            self._socket.listen()
        except OSError:
            self._socket.close()
            _raise_taken()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def _raise_taken() -> NoReturn:
    found = holder()
    pid, name, uid = found or (0, None, None)
    who = f"{name or 'name unknown'}, uid {'?' if uid is None else uid}"
    raise NamespaceTaken(
        f"process {pid or '?'} ({who}) manages this network namespace already: stop it first, "
        "or start this one in another namespace",
        pid,
    )


def holder() -> tuple[int, str | None, int] | None:
    """Pid (0 in another PID namespace), command name and uid of the process that holds the
    namespace."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)
        try:
            probe.connect(_NAME)
        except OSError:
            return None
        raw = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _gid = _CREDENTIALS.unpack(raw)
    return pid, owners.comm(pid), uid
