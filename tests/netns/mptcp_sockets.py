# SPDX-License-Identifier: BSD-3-Clause
"""MPTCP sockets in the hosts of a lab, all held by the test's own process.

A socket belongs to the namespace in which it was opened, so one thread can hold both ends of
a connection: it enters a host, opens the socket, and leaves the host.
"""

import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import NamedTuple, Protocol

import pytest

from mptcpd_ebpf.lab import Host, Lab
from tests.waiting import SLOWNESS

DEADLINE_S = 10.0 * SLOWNESS


def mptcp_socket(host: Host, family: int = socket.AF_INET) -> socket.socket:
    """A new MPTCP socket in a host; its calls time out after DEADLINE_S."""
    with host.entered():
        made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
    made.settimeout(DEADLINE_S)
    return made


def listen(
    host: Host,
    ip: str,
    port: int = 0,
    *,
    family: int | None = None,
    receive_buffer: int | None = None,
) -> socket.socket:
    """A listening MPTCP socket in a host; ``::`` takes IPv4 too.  `receive_buffer` is in bytes."""
    family = family or _family_of(ip)
    listener = mptcp_socket(host, family)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    if receive_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    listener.bind((ip, port))
    listener.listen()
    return listener


class Ends(NamedTuple):
    """Both ends of one connection, and the listener that accepted it."""

    client: socket.socket
    server: socket.socket
    listener: socket.socket


class TwoEnds(Protocol):
    """What has both ends of a connection."""

    @property
    def client(self) -> socket.socket: ...

    @property
    def server(self) -> socket.socket: ...


@contextmanager
def connected_sockets(
    client: Host,
    server: Host,
    ip: str,
    *,
    listen_on: str = "",
    port: int = 0,
    send_buffer: int | None = None,
    receive_buffer: int | None = None,
    greeting: bytes = b"x",
) -> Iterator[Ends]:
    """A connection to `ip` on the server, cubic, fully established: `greeting` went both ways.

    `listen_on` is the address the server listens on, `ip` unless given.  `send_buffer` is the
    client's, `receive_buffer` the server's, both in bytes.
    """
    with (
        listen(server, listen_on or ip, port, receive_buffer=receive_buffer) as listener,
        mptcp_socket(client, _family_of(ip)) as near,
    ):
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        if send_buffer is not None:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        near.connect((ip, listener.getsockname()[1]))
        with listener.accept()[0] as far:
            far.settimeout(DEADLINE_S)
            ends = Ends(near, far, listener)
            exchange(ends, greeting)
            yield ends


@contextmanager
def connection(
    lab: Lab,
    *,
    family: int = socket.AF_INET,
    listen_on: str = "0.0.0.0",
    send_buffer: int | None = None,
    receive_buffer: int | None = None,
) -> Iterator[Ends]:
    """`connected_sockets` over a lab's first path; ``hello`` went both ways."""
    path = lab.paths[0]
    ip = path.server_ip6 if family == socket.AF_INET6 else path.server_ip
    assert ip is not None
    with connected_sockets(
        lab.client,
        lab.server,
        ip,
        listen_on=listen_on,
        send_buffer=send_buffer,
        receive_buffer=receive_buffer,
        greeting=b"hello",
    ) as ends:
        yield ends


def exchange(ends: TwoEnds, payload: bytes = b"x") -> None:
    """The client sends, then the server as much; both read it."""
    transfer(ends.client, ends.server, payload)
    transfer(ends.server, ends.client, payload)


def transfer(sender: socket.socket, receiver: socket.socket, payload: bytes) -> None:
    """Sends all of a payload while it is read at the other end: no buffer needs to hold it."""
    with ThreadPoolExecutor(1) as other:
        sent = other.submit(sender.sendall, payload)
        left = len(payload)
        while left:
            part = receiver.recv(left)
            assert part, f"the connection ended {left} bytes early"
            left -= len(part)
        sent.result()


def abort(closing: socket.socket, other: socket.socket) -> None:
    """Resets a connection at rest (SO_LINGER 0); skips the test where the kernel does not."""
    closing.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
    closing.close()
    other.settimeout(DEADLINE_S)
    with suppress(ConnectionResetError):
        if other.recv(1) == b"":
            pytest.skip("this kernel closes in order in spite of SO_LINGER")


def _family_of(ip: str) -> int:
    return socket.AF_INET6 if ":" in ip else socket.AF_INET
