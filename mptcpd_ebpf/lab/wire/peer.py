# SPDX-License-Identifier: BSD-3-Clause
"""A host whose TCP and MPTCP are a script instead of the kernel: correct, unusual or hostile.

    with Peer(lab.server.name) as peer:
        ...                                    # the client's kernel connects to port 5000
        connection = peer.accept(5000)
        connection.announce("10.1.1.2", address_id=5)
        subflow = connection.accept_join()
        subflow.reset(reason=3)

The peer takes over the namespace's TCP: while it is open, the namespace's own kernel gets no
TCP packets and sends no RSTs (deafness.py).  The kernel keeps the addresses, ARP and routing.

The peer processes and acknowledges packets only while the script waits for something.  It
never retransmits; use a path without loss.
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
        """By their flow from the peer."""
        self._sockets: dict[str, socket.socket] = {}
        self._syns: list[Segment] = []
        self._looked_at = 0
        with ExitStack() as stack:
            stack.enter_context(without_tcp_input(netns))
            self.wire = stack.enter_context(Wire(netns))
            """The capture of the peer's interfaces, in both directions."""
            self._open = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives TCP back to the namespace's kernel; open connections are not closed."""
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
        """Opens a connection to a listening MPTCP socket, up to and including the third packet.

        `checksum` requests DSS checksums (they are used if either side requests them).
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
        """Answers the next MP_CAPABLE SYN to `port`, up to and including the third packet."""
        syn = self.next_syn(MPCapableSyn, port=port, within=within)
        subflow = self.subflow(*syn.flow.reversed())
        connection = PeerConnection(self, subflow, key or secrets.randbits(64), client=False)
        connection.answer(syn, checksum=checksum, within=within)
        return connection

    def subflow(self, local: SockAddr, remote: SockAddr) -> PeerSubflow:
        """A subflow that has sent nothing yet, for scripts that do the handshake themselves."""
        subflow = PeerSubflow(self, Flow(local, remote))
        self.subflows[subflow.flow] = subflow
        return subflow

    def next_syn(
        self, what: type[MPTCPOption], *, port: int | None = None, within: float = PATIENCE_S
    ) -> Segment:
        """The oldest unanswered SYN with option `what`, to `port` if given; waits for one."""

        def taken() -> Segment | None:
            for syn in self._syns:
                if (port is None or syn.flow.destination.port == port) and any(
                    isinstance(option, what) for option in syn.mptcp
                ):
                    self._syns.remove(syn)
                    return syn
            return None

        return self.wait(taken, f"{pattern_text(what)} arrives", within)

    # --- packets

    def send(self, packet: Any) -> None:
        """Sends a scapy packet unchanged, from the IP layer on; the source may be foreign."""
        source = packet.src
        if source not in self._sockets:
            self._sockets[source] = self._open.enter_context(self._raw_socket(source))
        self._sockets[source].sendto(bytes(packet), (packet.dst, 0))

    def wait(self, done: Callable[[], T | None], what: str, within: float = PATIENCE_S) -> T:
        """Processes and answers packets until `done()` returns something true, and returns that.

        Raises AssertionError with `what` after `within` seconds.
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
        lines = [f"not within {within:g} s: {what}; the last packets:"]
        lines += [segment.describe(segments[0].at) for segment in segments[-_SHOWN:]]
        return "\n  ".join(lines)

    def _raw_socket(self, source: str) -> socket.socket:
        """A socket for whole IP packets; bound, so that routing rules by source apply."""
        family = socket.AF_INET6 if is_ipv6(source) else socket.AF_INET
        with namespaces.entered(self.netns) if self.netns else nullcontext():
            raw = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
        # A foreign address cannot be bound; its packets take the default route.
        with suppress(OSError):
            raw.bind((source, 0))
        return raw


def _ephemeral() -> int:
    return 49152 + secrets.randbelow(16384)
