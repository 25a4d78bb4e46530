# SPDX-License-Identifier: BSD-3-Clause
"""The kernel as the other end of a scripted peer: its counters, its sockets, one connection."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.kernel import counters
from mptcpd_ebpf.lab import Host, Lab, Path
from mptcpd_ebpf.lab.wire import Peer, PeerConnection
from tests.netns.mptcp_peers import DEADLINE_S, IPPROTO_MPTCP, listen

# Counters that came after Linux 6.1, the oldest kernel the suite runs on.
NEWER = {
    "AddAddrTx",
    "DssFallback",
    "EchoAddTx",
    "MPCapableDataFallback",
    "MPJoinRejected",
    "MPJoinSynBackupRx",
    "MPJoinSynTx",
}

WRONG_HMAC = ("MPJoinSynAckHMacFailure", "MPJoinAckHMacFailure")
"""What counts a SYN/ACK with a wrong HMAC; the second one on Linux 6.18.15."""


class Counters:
    """How a host's MPTcpExt counters changed since the making of this object."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._before = self._read()

    def expect(self, **changes: int) -> None:
        """Waits for these changes and asserts that they are exactly so.

        What an older kernel does not count yet is left out.
        """
        unknown = changes.keys() - self._before.keys()
        assert unknown <= NEWER, f"no such counters: {unknown - NEWER}"
        changes = {name: count for name, count in changes.items() if name not in unknown}
        deadline = time.monotonic() + DEADLINE_S
        while True:
            seen = self.changed()
            if all(seen.get(name, 0) >= count for name, count in changes.items()):
                break
            assert time.monotonic() < deadline, f"wanted {changes}, the counters changed by {seen}"
            time.sleep(0.005)
        assert {name: seen.get(name, 0) for name in changes} == changes

    def changed(self) -> dict[str, int]:
        """Every counter that moved, and by how much."""
        now = self._read()
        return {name: now[name] - old for name, old in self._before.items() if now[name] != old}

    def _read(self) -> dict[str, int]:
        with self._host.entered():
            return counters.read()


class Talk(NamedTuple):
    """A connection that the peer opened to a socket of the kernel's."""

    peer: Peer
    connection: PeerConnection
    listener: socket.socket
    accepted: socket.socket
    lab: Lab


@contextmanager
def open_lab(**topology: str) -> Iterator[Lab]:
    """Two paths; the in-kernel path manager accepts joins and announcements."""
    with Lab(paths=[Path(), Path()], **topology) as lab:
        for host in (lab.client, lab.server):
            host.run(["ip", "mptcp", "limits", "set", "subflow", "8", "add_addr_accepted", "8"])
        yield lab


@contextmanager
def talk(lab: Lab, *, checksum: bool = False) -> Iterator[Talk]:
    """The peer is the lab's client, its first five bytes arrived: fully established."""
    path = lab.paths[0]
    assert path.client_ip is not None
    assert path.server_ip is not None
    with ExitStack() as stack:
        listener = stack.enter_context(listen(lab.server, "0.0.0.0"))
        peer = stack.enter_context(Peer(lab.client.name))
        remote = SockAddr(path.server_ip, listener.getsockname()[1])
        connection = peer.connect(path.client_ip, remote, checksum=checksum)
        connection.send(b"hello")
        connection.wait_acked()
        accepted = stack.enter_context(listener.accept()[0])
        accepted.settimeout(DEADLINE_S)
        assert accepted.recv(100) == b"hello"
        yield Talk(peer, connection, listener, accepted, lab)


@contextmanager
def kernel_connects(lab: Lab, port: int = 5000) -> Iterator[socket.socket]:
    """A socket of the client's kernel that is connecting to the peer, the lab's server."""
    with lab.client.entered():
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
    with client:
        client.setblocking(False)
        client.connect_ex((lab.paths[0].server_ip, port))
        yield client
