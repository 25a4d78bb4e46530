# SPDX-License-Identifier: BSD-3-Clause
"""A host of which scapy speaks TCP and MPTCP instead of the kernel: polite, odd or hostile.

    with Peer(lab.server.name) as peer:
        ...                                    # the client's kernel connects to port 5000
        connection = peer.accept(5000)
        connection.announce("10.1.1.2", address_id=5)
        subflow = connection.accept_join()
        subflow.reset(reason=3)

The namespace is given over to the peer: while it is open, the namespace's own kernel hears
no TCP and sends no RSTs (deafness.py).  The addresses stay the kernel's, and with them
ARP and routing.

Nothing happens behind the script's back: what arrives is looked at, and acknowledged,
only while the script waits for something.  The peer never retransmits; give it a path
without loss.
"""

import secrets
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext, suppress
from typing import Any, Self, TypeVar

from mptcpd_ebpf.core.address import SockAddr, is_ipv6
from mptcpd_ebpf.lab import namespaces
from mptcpd_ebpf.lab.wire.capture import PATIENCE_S
from mptcpd_ebpf.lab.wire.deafness import without_tcp_input
from mptcpd_ebpf.lab.wire.options import MPCapableSyn, MPTCPOption
from mptcpd_ebpf.lab.wire.peer_connection import PeerConnection
from mptcpd_ebpf.lab.wire.peer_subflow import PeerSubflow
from mptcpd_ebpf.lab.wire.segment import ACK, SYN, Flow, Segment, pattern_text
from mptcpd_ebpf.lab.wire.wire import Wire

T = TypeVar("T")

_SHOWN = 20


class Peer:
    """The host; `netns` is a namespace's name under /run/netns, None the caller's own.

    Raises LabError if the namespace is missing or has a peer already.
    """

    def __init__(self, netns: str | None = None) -> None:
        self.netns = netns
        self.subflows: dict[Flow, PeerSubflow] = {}
        """By their flow from here."""
        self._sockets: dict[str, socket.socket] = {}
        self._syns: list[Segment] = []
        self._looked_at = 0
        with ExitStack() as stack:
            stack.enter_context(without_tcp_input(netns))
            self.wire = stack.enter_context(Wire(netns))
            """What the peer's interfaces saw, both directions."""
            self._open = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the namespace back to its kernel; open connections are left as they are."""
        self._open.close()

    # --- conversations

    def connect(
        self,
        local_ip: str,
        remote: SockAddr,
        *,
        checksum: bool = False,
        deny_join_id0: bool = False,
        key: int | None = None,
        within: float = PATIENCE_S,
    ) -> PeerConnection:
        """Opens a connection to a listening MPTCP socket, up to and with the third packet.

        `checksum`: ask for DSS checksums (they are used if either side asks).
        """
        subflow = self.subflow(SockAddr(local_ip, _ephemeral()), remote)
        connection = PeerConnection(self, subflow, key or secrets.randbits(64), client=True)
        connection.open(checksum=checksum, deny_join_id0=deny_join_id0, within=within)
        return connection

    def accept(
        self,
        port: int,
        *,
        checksum: bool = False,
        key: int | None = None,
        within: float = PATIENCE_S,
    ) -> PeerConnection:
        """Answers the next MP_CAPABLE SYN to `port`, up to and with the third packet."""
        syn = self.next_syn(MPCapableSyn, port=port, within=within)
        subflow = self.subflow(*syn.flow.reversed())
        connection = PeerConnection(self, subflow, key or secrets.randbits(64), client=False)
        connection.answer(syn, checksum=checksum, within=within)
        return connection

    def subflow(self, local: SockAddr, remote: SockAddr) -> PeerSubflow:
        """A bare subflow with nothing sent yet: for scripts that do the handshake by hand."""
        subflow = PeerSubflow(self, Flow(local, remote))
        self.subflows[subflow.flow] = subflow
        return subflow

    def next_syn(
        self, what: type[MPTCPOption], *, port: int | None = None, within: float = PATIENCE_S
    ) -> Segment:
        """The oldest unanswered SYN with option `what`, to `port` if one is given."""

        def taken() -> Segment | None:
            for syn in self._syns:
                if (port is None or syn.flow.destination.port == port) and any(
                    isinstance(option, what) for option in syn.mptcp
                ):
                    self._syns.remove(syn)
                    return syn
            return None

        return self.wait(taken, f"{pattern_text(what)} comes", within)

    # --- packets

    def send(self, packet: Any) -> None:
        """Sends a scapy packet from its IP layer on as it is, also with a foreign source."""
        source = packet.src
        if source not in self._sockets:
            self._sockets[source] = self._open.enter_context(self._raw_socket(source))
        self._sockets[source].sendto(bytes(packet), (packet.dst, 0))

    def wait(self, done: Callable[[], T | None], what: str, within: float = PATIENCE_S) -> T:
        """Looks at what arrives, answering it, until `done()` is true, and returns that.

        Raises AssertionError naming `what` after `within` seconds.
        """
        deadline = time.monotonic() + within
        while not (result := done()):
            if time.monotonic() >= deadline:
                raise AssertionError(self._report(what, within))
            arrived = self.wire.capture.since(self._looked_at, deadline)
            self._looked_at += len(arrived)
            for segment in arrived:
                if not segment.outgoing:
                    self._receive(segment)
        return result

    def _receive(self, segment: Segment) -> None:
        subflow = self.subflows.get(segment.flow.reversed())
        if subflow:
            subflow.receive(segment)
        elif segment.flags & (SYN | ACK) == SYN and not any(
            syn.flow == segment.flow and syn.seq == segment.seq for syn in self._syns
        ):
            self._syns.append(segment)

    def _report(self, what: str, within: float) -> str:
        segments = self.wire.segments
        lines = [f"not within {within:g} s: {what}; the conversation's end:"]
        lines += [segment.describe(segments[0].at) for segment in segments[-_SHOWN:]]
        return "\n  ".join(lines)

    def _raw_socket(self, source: str) -> socket.socket:
        """A socket that takes whole IP packets; bound, so that rules by source apply."""
        family = socket.AF_INET6 if is_ipv6(source) else socket.AF_INET
        with namespaces.entered(self.netns) if self.netns else nullcontext():
            raw = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
        # A foreign address cannot be bound: the packet still carries it, by the default's route.
        with suppress(OSError):
            raw.bind((source, 0))
        return raw


def _ephemeral() -> int:
    return 49152 + secrets.randbelow(16384)
