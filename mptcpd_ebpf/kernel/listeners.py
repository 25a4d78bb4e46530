# SPDX-License-Identifier: BSD-3-Clause
"""MPTCP listening sockets for announced addresses, so that the peer's joins are accepted.

An address announced with a port is joined at that port, and the kernel accepts a join
there only if something listens (kernel: net/mptcp/subflow.c, subflow_check_req).
In-kernel endpoints with a port get such a listener from the kernel itself; in
userspace mode it is ours to open.  Joins never reach accept(2): they become subflows of
their connection.  What does reach it are other connections, which would fill the backlog and keep
joins out; `close_accepted` closes them.

A listener is reference-counted: one that is opened twice is closed with the second close.
"""

import errno
import socket
from typing import NamedTuple, Self

from mptcpd_ebpf.core.address import SockAddr, is_ipv6
from mptcpd_ebpf.kernel.errors import KernelError, MptcpMissing, errno_words

IPPROTO_MPTCP = 262
_BACKLOG = 1024


class _Listener(NamedTuple):
    sock: socket.socket
    users: int


class Listeners:
    """The listening sockets of one network namespace (the calling thread's, at `open`)."""

    def __init__(self) -> None:
        self._listening: dict[SockAddr, _Listener] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_all()

    def open(self, address: SockAddr) -> SockAddr:
        """Listens there; port 0 lets the kernel choose one.  Returns the address listened on.

        Raises KernelError if it is taken or not on this host, MptcpMissing without MPTCP.
        """
        held = self._listening.get(address)
        if held is not None:
            self._listening[address] = _Listener(held.sock, held.users + 1)
            return address
        sock = _listen(address)
        actual = SockAddr(address.ip, sock.getsockname()[1])
        self._listening[actual] = _Listener(sock, 1)
        return actual

    def close(self, address: SockAddr) -> bool:
        """Undoes one `open`; returns whether the listener is closed now. Raises KeyError for an
        address that was not opened here.
        """
        held = self._listening[address]
        if held.users > 1:
            self._listening[address] = _Listener(held.sock, held.users - 1)
            return False
        del self._listening[address]
        held.sock.close()
        return True

    def close_all(self) -> None:
        """Closes every listener, however often it was opened."""
        for held in self._listening.values():
            held.sock.close()
        self._listening.clear()

    def filenos(self) -> list[int]:
        """Readable when strangers wait."""
        return [held.sock.fileno() for held in self._listening.values()]

    def close_accepted(self) -> int:
        """Accepts and closes connections that are no joins; returns how many. Never blocks."""
        count = 0
        for held in self._listening.values():
            for _ in range(_BACKLOG):
                try:
                    stranger, _address = held.sock.accept()
                except BlockingIOError:
                    break
                except OSError:
                    continue  # gone before we looked
                stranger.close()
                count += 1
        return count


def _listen(address: SockAddr) -> socket.socket:
    family = socket.AF_INET6 if is_ipv6(address.ip) else socket.AF_INET
    kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    try:
        sock = socket.socket(family, kind, IPPROTO_MPTCP)
    except OSError as error:
        raise MptcpMissing(
            f"cannot open an MPTCP socket: {errno_words(error.errno or 0)}; "
            "is net.mptcp.enabled 1 here?"
        ) from None
    try:
        if family == socket.AF_INET6:
            # The IPv4 listener may use the same port.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        why = {
            errno.EADDRINUSE: "something listens there already",
            errno.EADDRNOTAVAIL: "the address is not on this host",
            errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE",
        }.get(error.errno or 0, errno_words(error.errno or 0))
        raise KernelError(f"cannot listen on {address}: {why}") from None
    return sock
