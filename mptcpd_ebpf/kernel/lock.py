# SPDX-License-Identifier: BSD-3-Clause
"""One daemon per network namespace: an abstract Unix socket as the lock.

Abstract names live in the network namespace and die with their owner, so the lock needs
no file and leaves nothing behind, kill -9 included.  The socket listens without ever
accepting: connecting to it is enough for SO_PEERCRED to name the holder (unix(7)).
"""

import socket
import struct

from mptcpd_ebpf.kernel import owners
from mptcpd_ebpf.kernel.errors import NamespaceTakenError

_NAME = "\0mptcpd-ebpf/lock"
_CREDENTIALS = struct.Struct("=iII")


def take() -> socket.socket:
    """Takes the calling thread's namespace; closing the socket gives it back.

    Raises NamespaceTakenError, with the holder's pid, while another process has it.
    """
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        lock.bind(_NAME)
        lock.listen()
    except OSError:
        lock.close()
        found = holder()
        pid, name = (found[0], f"{found[1] or '?'}, uid {found[2]}") if found else (0, "unknown")
        raise NamespaceTakenError(
            f"process {pid or '?'} ({name}) manages this network namespace already: stop it first, "
            "or start this one in another namespace",
            pid,
        ) from None
    return lock


def holder() -> tuple[int, str | None, int] | None:
    """Pid (0 from another PID namespace), command name and uid of who holds the namespace."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)
        try:
            probe.connect(_NAME)
        except OSError:
            return None
        raw = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _gid = _CREDENTIALS.unpack(raw)
    return pid, owners.comm(pid), uid
