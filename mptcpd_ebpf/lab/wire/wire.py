# SPDX-License-Identifier: BSD-3-Clause
"""Assertions about the packets that passed the interfaces of a namespace.

    with Wire(lab.client.name) as wire:
        ...                                           # make something happen
        wire.expect(MPJoinSyn(address_id=2, backup=1), interface="path1", token=token)

`expect` searches everything captured so far and then waits for new packets.  If it finds
nothing, its error shows the packets there were.
"""

import time
from typing import Literal, Self, TypedDict, Unpack

from scapy.utils import RawPcapWriter

from mptcpd_ebpf.lab.wire.capture import PATIENCE_S, WHOLE, Capture
from mptcpd_ebpf.lab.wire.connections import ConnectionTokens
from mptcpd_ebpf.lab.wire.retransmissions import retransmissions
from mptcpd_ebpf.lab.wire.segment import Flow, Segment, What, pattern_text

PacketDirection = Literal["out", "in"]

_LINKTYPE_RAW = 101
"""Packets begin with the IP header (https://www.tcpdump.org/linktypes.html)."""
_SHOWN = 20


class Where(TypedDict, total=False):
    """Further conditions on a segment; those that are not given do not matter."""

    interface: str
    direction: PacketDirection
    """"out": it left by the interface, "in": it arrived on it."""
    token: int
    """It belongs to this connection: either side's token, host order."""
    source: str
    """IP address."""
    destination: str
    flow: Flow
    flags: int
    """TCP flags that must be set (`segment.RST`, …); others may be set too."""
    since: int
    """It passed at this time or later: CLOCK_MONOTONIC, nanoseconds."""


class Wire:
    """A running capture of a namespace's TCP traffic, with queries for tests.

    `netns` is a name under /run/netns, None the caller's own namespace.  `snap` cuts
    every packet to that many bytes from the link header on: 160 hold all headers, which
    suffices unless the data is inspected.
    """

    def __init__(self, netns: str | None = None, *, snap: int = WHOLE) -> None:
        self.capture = Capture(netns, snap=snap)
        """The source of the segments."""
        self._connections = ConnectionTokens()
        self._tokens: list[frozenset[int]] = []
        """For each segment processed, the tokens known of its connection at that moment."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the capture; queries remain possible."""
        self.capture.close()

    @property
    def segments(self) -> list[Segment]:
        """Everything captured so far, in the order of capture."""
        self.capture.catch_up()
        return list(self.capture.segments)

    def expect(
        self, what: What = None, *, within: float = PATIENCE_S, **where: Unpack[Where]
    ) -> Segment:
        """The first captured segment that matches; waits for one up to `within` seconds.

        Raises AssertionError with the captured traffic, LabError if the capture lost packets.
        """
        deadline = time.monotonic() + within
        self.capture.catch_up()
        looked_at = 0
        while True:
            segments = self.capture.since(looked_at, deadline)
            for index, segment in enumerate(segments, looked_at):
                if self._fits(index, segment, what, where):
                    return segment
            looked_at += len(segments)
            if time.monotonic() >= deadline:
                self.capture.check()
                raise AssertionError(self._report(what, within, where))

    def matching(self, what: What = None, **where: Unpack[Where]) -> list[Segment]:
        """All segments captured so far that match.  Raises LabError if packets were lost."""
        self.capture.check()
        return [
            segment
            for index, segment in enumerate(self.segments)
            if self._fits(index, segment, what, where)
        ]

    def retransmissions(self, **where: Unpack[Where]) -> dict[Flow, int]:
        """Retransmitted TCP segments by flow, of those that left (see retransmissions.py).

        Flows without retransmissions are left out.  Compare the result with TCP_INFO only while
        nothing is in flight.
        """
        where.setdefault("direction", "out")
        return dict(retransmissions(self.matching(**where)))

    def save(self, path: str) -> int:
        """Writes everything captured so far to a pcap file, e.g. for Wireshark.

        Returns the number of packets.  Packets are cut to the capture's `snap`; times are
        CLOCK_MONOTONIC.  Raises OSError if the file cannot be written.
        """
        segments = self.segments
        with RawPcapWriter(path, linktype=_LINKTYPE_RAW, nano=True) as file:
            file.write_header(None)
            for segment in segments:
                seconds, nanoseconds = divmod(segment.at, 1_000_000_000)
                file.write_packet(segment.packet, sec=seconds, usec=nanoseconds)
        return len(segments)

    def token_known(self, token: int) -> bool:
        """Whether a handshake of this connection was captured."""
        self._learn(len(self.capture.segments))
        return self._connections.knows(token)

    def _learn(self, end: int) -> None:
        for segment in self.capture.segments[len(self._tokens) : end]:
            self._connections.learn(segment)
            self._tokens.append(self._connections.tokens(segment.flow))

    def _fits(self, index: int, segment: Segment, what: What, where: Where) -> bool:
        return (
            _place_fits(segment, where)
            and segment.carries(what)
            and ("token" not in where or self._of_connection(index, segment, where["token"]))
        )

    def _of_connection(self, index: int, segment: Segment, token: int) -> bool:
        """Whether a segment is of a connection, also if its token became known only later."""
        self._learn(index + 1)
        return token in self._tokens[index] or token in self._connections.tokens(segment.flow)

    def _report(self, what: What, within: float, where: Where) -> str:
        shown_as = {key: f"{value:#x}" if key == "token" else value for key, value in where.items()}
        conditions = "".join(f", {key}={value}" for key, value in shown_as.items())
        segments = self.segments
        lines = [f"no {pattern_text(what)}{conditions} within {within:g} s"]
        if "token" in where and not self.token_known(where["token"]):
            lines.append("no handshake of that token was captured: begin the capture before it")
        shown = [segment for segment in segments if segment.mptcp][-_SHOWN:]
        lines.append(
            f"of {len(segments)} segments captured in {self.capture.netns or 'this namespace'}, "
            f"the last {len(shown)} with MPTCP options:"
        )
        lines += [segment.describe(segments[0].at) for segment in shown]
        return "\n  ".join(lines)


def _place_fits(segment: Segment, where: Where) -> bool:
    flow = segment.flow
    return (
        where.get("interface", segment.interface) == segment.interface
        and where.get("direction", "out" if segment.outgoing else "in")
        == ("out" if segment.outgoing else "in")
        and where.get("source", flow.source.ip) == flow.source.ip
        and where.get("destination", flow.destination.ip) == flow.destination.ip
        and where.get("flow", flow) == flow
        and segment.flags & where.get("flags", 0) == where.get("flags", 0)
        and segment.at >= where.get("since", 0)
    )
