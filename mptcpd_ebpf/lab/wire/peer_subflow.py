# SPDX-License-Identifier: BSD-3-Clause
"""One subflow of the scripted peer: its TCP, and the options that concern one subflow.

It has only the TCP that a path without loss needs (RFC 9293): sequence numbers,
acknowledgements of in-order data, FIN and RST.  It offers no timestamps, SACK or window
scaling, so the kernel uses none.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from mptcpd_ebpf.core.address import is_ipv6
from mptcpd_ebpf.lab.wire.capture import PATIENCE_S
from mptcpd_ebpf.lab.wire.options import MPFail, MPPrio, MPTCPOption, MPTcpRst
from mptcpd_ebpf.lab.wire.segment import ACK, FIN, PSH, RST, SYN, Flow, Segment, What, pattern_text
from mptcpd_ebpf.lab.wire.tcp import MPTCP_NAME

T = TypeVar("T")

_U32 = 1 << 32
_MSS = 1400
"""Announced in the SYN."""
MOST_PAYLOAD = _MSS - 40
"""Bytes of data per packet; the rest of the MSS is room for TCP options."""


class PacketHost(Protocol):
    """What a subflow needs of the host it belongs to."""

    def send(self, packet: Any) -> None: ...

    def wait(self, done: Callable[[], T | None], what: str, within: float = ...) -> T: ...


class DataStream(Protocol):
    """What a subflow needs of the connection it belongs to."""

    def receive(
        self, subflow: "PeerSubflow", options: list[MPTCPOption], first_ssn: int, payload: bytes
    ) -> bool: ...

    def data_ack(self) -> MPTCPOption: ...


class PeerSubflow:
    """A subflow as the peer sees it: `flow` leads from the peer to the kernel under test."""

    def __init__(self, peer: PacketHost, flow: Flow) -> None:
        self.peer = peer
        self.flow = flow
        self.connection: DataStream | None = None
        self.isn = 0x1000_0000
        """Initial sequence number: the SYN's own."""
        self.remote_isn = 0
        self.snd_nxt = self.isn
        self.rcv_nxt = 0
        self.segments: list[Segment] = []
        """Every segment received and processed."""
        self.reset_by: Segment | None = None
        """The RST that arrived."""
        self.finished = False
        """A FIN arrived."""
        self.fin_sent = False

    @property
    def next_ssn(self) -> int:
        """The subflow sequence number of the next byte sent, relative to `isn`."""
        return (self.snd_nxt - self.isn) % _U32

    # --- sending

    def send(self, flags: int, *options: MPTCPOption, payload: bytes = b"", **tcp: Any) -> None:
        """Sends one segment; `tcp` overrides fields of scapy's TCP header (seq, ack, …)."""
        source, destination = self.flow
        ip = (IPv6 if is_ipv6(source.ip) else IP)(src=source.ip, dst=destination.ip)
        own_options: list[Any] = [("MSS", _MSS)] if flags & SYN else []
        fields = {
            "sport": source.port,
            "dport": destination.port,
            "flags": flags,
            "seq": self.snd_nxt,
            "ack": self.rcv_nxt if flags & ACK else 0,
            "window": 65535,
            "options": own_options + [(MPTCP_NAME, option) for option in options],
        }
        self.peer.send(ip / TCP(**(fields | tcp)) / payload)
        if not tcp.keys() & {"seq"}:
            taken = len(payload) + bool(flags & SYN) + bool(flags & FIN)
            self.snd_nxt = (self.snd_nxt + taken) % _U32
        self.fin_sent = self.fin_sent or bool(flags & FIN)

    def syn(self, *options: MPTCPOption) -> None:
        self.send(SYN, *options)

    def syn_ack(self, *options: MPTCPOption) -> None:
        self.send(SYN | ACK, *options)

    def ack(self, *options: MPTCPOption) -> None:
        """A pure acknowledgement, which carries most options."""
        self.send(ACK, *options)

    def data(self, payload: bytes, *options: MPTCPOption) -> None:
        self.send(ACK | PSH, *options, payload=payload)

    def prio(self, backup: bool) -> None:
        """MP_PRIO: requests that the kernel treat this subflow as backup, or as regular."""
        self.ack(MPPrio(backup=backup))

    def fail(self, dsn: int) -> None:
        """MP_FAIL: reports a checksum failure from data sequence number `dsn` on."""
        self.ack(MPFail(dsn=dsn))

    def reset(self, reason: int | None = None, *, transient: bool = False, **tcp: Any) -> None:
        """RST; with MP_TCPRST if a reason is given (RFC 8684, 3.6)."""
        options = [] if reason is None else [MPTcpRst(reason=reason, transient=transient)]
        self.send(RST | ACK, *options, **tcp)

    # --- receiving

    def expect(self, what: What = None, *, flags: int = 0, within: float = PATIENCE_S) -> Segment:
        """The first segment received, past or to come, with these flags and an option as `what`."""

        def found() -> Segment | None:
            for segment in self.segments:
                if segment.flags & flags == flags and segment.carries(what):
                    return segment
            return None

        return self.peer.wait(
            found, f"{self.flow.reversed()} sends {pattern_text(what)}, flags {flags}", within
        )

    def expect_reset(self, within: float = PATIENCE_S) -> Segment:
        return self.peer.wait(lambda: self.reset_by, f"{self.flow.reversed()} sends a RST", within)

    def receive(self, segment: Segment) -> None:
        """Processes a segment of the kernel; acknowledges it if it takes sequence numbers."""
        self.segments.append(segment)
        if segment.flags & RST:
            self.reset_by = segment
            return
        if segment.flags & SYN:
            self.remote_isn = segment.seq
            self.rcv_nxt = (segment.seq + 1) % _U32
            return
        in_order = segment.seq == self.rcv_nxt
        if in_order:
            self.rcv_nxt = (self.rcv_nxt + segment.sequence_length) % _U32
        must_acknowledge = bool(segment.sequence_length)
        if self.connection:
            # Options are valid also on a segment without data or with old data.
            first_ssn = (segment.seq - self.remote_isn) % _U32
            payload = segment.payload if in_order else b""
            must_acknowledge |= self.connection.receive(self, segment.mptcp, first_ssn, payload)
        if in_order and segment.flags & FIN:
            self.finished = True
        if must_acknowledge:
            self._acknowledge()

    def _acknowledge(self) -> None:
        options = [self.connection.data_ack()] if self.connection else []
        if self.finished and not self.fin_sent:
            self.send(FIN | ACK, *options)
        else:
            self.ack(*options)
