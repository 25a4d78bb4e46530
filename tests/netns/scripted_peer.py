# SPDX-License-Identifier: BSD-3-Clause
"""Connections between a host's kernel and a scripted peer (lab/wire/peer.py) at the other end."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.lab import Lab, Path
from mptcpd_ebpf.lab.kernel_path_manager import raise_limits
from mptcpd_ebpf.lab.wire import Peer, PeerConnection
from tests.netns.mptcp_sockets import listen, mptcp_socket

PORT = 5000
"""The port on which the peer answers, where it is the server."""


class Talk(NamedTuple):
    """A connection that the peer, a lab's client, opened to the kernel of the lab's server."""

    peer: Peer
    connection: PeerConnection
    listener: socket.socket
    accepted: socket.socket
    lab: Lab


@contextmanager
def open_lab(**topology: str) -> Iterator[Lab]:
    """Two paths; the in-kernel path managers accept joins and announcements."""
    with Lab(paths=[Path(), Path()], **topology) as lab:
        raise_limits(lab.client, lab.server)
        yield lab


@contextmanager
def talk(lab: Lab, *, checksum: bool = False) -> Iterator[Talk]:
    """The peer connects and sends five bytes, which arrive: the connection is established."""
    with ExitStack() as stack:
        listener = stack.enter_context(listen(lab.server, "0.0.0.0"))
        peer = stack.enter_context(Peer(lab.client.name))
        connection = peer.connect(
            lab.paths[0].client_ip, address_of(lab, listener), checksum=checksum
        )
        connection.send(b"hello")
        connection.wait_acked()
        accepted = stack.enter_context(listener.accept()[0])
        accepted.settimeout(listener.gettimeout())
        assert accepted.recv(100) == b"hello"
        yield Talk(peer, connection, listener, accepted, lab)


def address_of(lab: Lab, listener: socket.socket) -> SockAddr:
    """Where the lab's client reaches a listener of the server: over the first path."""
    return SockAddr(lab.paths[0].server_ip, listener.getsockname()[1])


@contextmanager
def kernel_connects(lab: Lab, port: int = PORT) -> Iterator[socket.socket]:
    """A non-blocking socket of the client's kernel, connecting to the peer, the lab's server."""
    with mptcp_socket(lab.client) as client:
        client.setblocking(False)
        client.connect_ex((lab.paths[0].server_ip, port))
        yield client


@contextmanager
def kernel_connected(lab: Lab) -> Iterator[tuple[Peer, PeerConnection, socket.socket]]:
    """The client's kernel connected to the peer and sent it a byte: established at the client.

    The last of the three is the kernel's socket, non-blocking.
    """
    with Peer(lab.server.name) as peer, kernel_connects(lab) as client:
        connection = peer.accept(PORT)
        client.send(b"x")
        connection.receive_data(1)
        yield peer, connection, client
