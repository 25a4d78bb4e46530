# SPDX-License-Identifier: BSD-3-Clause
"""A TCP segment as captured on one interface, parsed without scapy.

A capture handles thousands of segments a second, of which few matter, so the headers are read
with struct (RFC 791, 8200, 9293) and scapy's layers are made only on request.  With
segmentation offload the kernel passes up to 64 kB to an interface in one piece;
`segment_size` is the data per packet into which a real network interface would split it.
"""

import socket
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.lab.wire.options import MPTCPOption
from mptcpd_ebpf.lab.wire.tcp import mptcp_options

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
_FLAG_LETTERS = "FSRPA"

What = MPTCPOption | type[MPTCPOption] | None
"""A pattern: an option with the fields that must agree, any option of a class, or any segment."""

_TCP_PROTOCOL = 6
_SKIPPABLE = {0, 60}
"""IPv6 extension headers that may precede TCP: hop-by-hop and destination options."""


class Flow(NamedTuple):
    """One direction of a subflow."""

    source: SockAddr
    destination: SockAddr

    def reversed(self) -> "Flow":
        return Flow(self.destination, self.source)

    def __str__(self) -> str:
        return f"{self.source} > {self.destination}"


@dataclass(frozen=True)
class Segment:
    """A TCP segment; numbers are as in the header."""

    at: int
    """When it passed the interface: CLOCK_MONOTONIC, nanoseconds."""
    interface: str
    outgoing: bool
    """True if it left by the interface, False if it arrived on it."""
    flow: Flow
    flags: int
    seq: int
    ack: int
    window: int
    options: bytes
    """The TCP options area, padding included."""
    payload_length: int
    """Bytes of data according to the IP header; right also if the capture cut the packet."""
    segment_size: int
    """Bytes of data per packet after segmentation (the MSS in force); 0 for a single packet."""
    packet: bytes
    """From the IP header on, up to the capture's snap length."""
    payload_at: int
    """Offset of the data in `packet`."""

    @cached_property
    def mptcp(self) -> list[MPTCPOption]:
        """Its MPTCP options."""
        return mptcp_options(self.options)

    @property
    def payload(self) -> bytes:
        """Its data, as far as captured."""
        return self.packet[self.payload_at : self.payload_at + self.payload_length]

    @property
    def sequence_length(self) -> int:
        """How many sequence numbers it takes: its data, and one each for SYN and FIN."""
        return self.payload_length + bool(self.flags & SYN) + bool(self.flags & FIN)

    def carries(self, what: What) -> bool:
        """Whether one of its MPTCP options matches; always true if `what` is None."""
        return what is None or any(option.matches(what) for option in self.mptcp)

    def scapy(self) -> Any:
        """The packet as scapy layers, MPTCP options dissected."""
        return (IP if self.packet[0] >> 4 == 4 else IPv6)(self.packet)

    def describe(self, since: int = 0) -> str:
        """One line of text; the time is in milliseconds after `since`."""
        flags = "".join(letter for i, letter in enumerate(_FLAG_LETTERS) if self.flags >> i & 1)
        way = "out" if self.outgoing else "in"
        options = "; ".join(option.describe() for option in self.mptcp)
        data = f" {self.payload_length} bytes" if self.payload_length else ""
        return (
            f"{(self.at - since) / 1e6:9.3f} ms {self.interface} {way:3} {self.flow} "
            f"[{flags}]{data} {options}".rstrip()
        )


def pattern_text(what: What) -> str:
    """A pattern as text."""
    if what is None:
        return "segment"
    if isinstance(what, type):
        return what.__name__
    given = ", ".join(f"{name}={value!r}" for name, value in what.fields.items())
    return f"{type(what).__name__}({given})"


def read_segment(
    packet: bytes, at: int, interface: str, outgoing: bool, segment_size: int = 0
) -> Segment | None:
    """Reads an IP packet; None if it is no TCP packet with a complete header."""
    try:
        if packet[0] >> 4 == 4:
            tcp_at, end, source, destination = _read_ipv4(packet)
        else:
            tcp_at, end, source, destination = _read_ipv6(packet)
        sport, dport, seq, ack, offset, flags, window = struct.unpack_from(
            "!HHIIBBH", packet, tcp_at
        )
    except (ValueError, IndexError, struct.error):
        return None
    payload_at = tcp_at + (offset >> 4) * 4
    return Segment(
        at=at,
        interface=interface,
        outgoing=outgoing,
        flow=Flow(SockAddr(source, sport), SockAddr(destination, dport)),
        flags=flags,
        seq=seq,
        ack=ack,
        window=window,
        options=packet[tcp_at + 20 : payload_at],
        payload_length=max(end - payload_at, 0),
        segment_size=segment_size,
        packet=packet,
        payload_at=payload_at,
    )


def _read_ipv4(packet: bytes) -> tuple[int, int, str, str]:
    """Offsets of the TCP header and of the packet's end, and the addresses."""
    (total,) = struct.unpack_from("!H", packet, 2)
    (fragment,) = struct.unpack_from("!H", packet, 6)
    if packet[9] != _TCP_PROTOCOL or fragment & 0x1FFF:
        raise ValueError("no TCP header here")
    # A super-packet above 64 kB (BIG TCP) has length 0 here; what was captured is its length.
    return (
        (packet[0] & 15) * 4,
        total or len(packet),
        socket.inet_ntop(socket.AF_INET, packet[12:16]),
        socket.inet_ntop(socket.AF_INET, packet[16:20]),
    )


def _read_ipv6(packet: bytes) -> tuple[int, int, str, str]:
    (length,) = struct.unpack_from("!H", packet, 4)
    next_header, at = packet[6], 40
    while next_header in _SKIPPABLE:
        next_header, at = packet[at], at + (packet[at + 1] + 1) * 8
    if next_header != _TCP_PROTOCOL:
        raise ValueError("no TCP header here")
    return (
        at,
        40 + length if length else len(packet),
        socket.inet_ntop(socket.AF_INET6, packet[8:24]),
        socket.inet_ntop(socket.AF_INET6, packet[24:40]),
    )
