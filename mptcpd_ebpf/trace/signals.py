# SPDX-License-Identifier: BSD-3-Clause
"""MPTCP signalling in IP packets, decoded into plain data.

The formats are those of RFC 8684 (version 1), section 3; only the fields that a diagnosis needs
are decoded.  Truncated and malformed options are ignored, because the packets come from the
network.
"""

import hashlib
import struct
from enum import IntEnum, IntFlag
from socket import AF_INET, AF_INET6, inet_ntop
from typing import NamedTuple

from mptcpd_ebpf.core.address import SockAddr, unmapped
from mptcpd_ebpf.kernel.tcp_options import MPTCP_KIND, split_options

_TCP = 6
_PORTS = struct.Struct(">HHIIBB")


class Flag(IntFlag):
    """TCP header flags (RFC 9293, 3.1)."""

    FIN = 1
    SYN = 2
    RST = 4
    PSH = 8
    ACK = 16


class Subtype(IntEnum):
    """RFC 8684, 8.2."""

    MP_CAPABLE = 0
    MP_JOIN = 1
    DSS = 2
    ADD_ADDR = 3
    REMOVE_ADDR = 4
    MP_PRIO = 5
    MP_FAIL = 6
    MP_FASTCLOSE = 7
    MP_TCPRST = 8


RESET_REASONS = {
    0: "unspecified",
    1: "MPTCP-specific error",
    2: "lack of resources",
    3: "administratively prohibited",
    4: "too much outstanding data",
    5: "unacceptable performance",
    6: "middlebox interference",
}
"""MP_TCPRST (RFC 8684, 3.6)."""


class Option(NamedTuple):
    """One MPTCP option without kind and length: `body` begins with the subtype's byte."""

    subtype: int
    body: bytes

    @property
    def join_token(self) -> int | None:
        """Of an MP_JOIN on a SYN: the receiver's token of the connection to join."""
        if self.subtype == Subtype.MP_JOIN and len(self.body) == 10:
            return int.from_bytes(self.body[2:6], "big")
        return None

    @property
    def address_id(self) -> int | None:
        """Of an MP_JOIN on SYN or SYN/ACK."""
        if self.subtype == Subtype.MP_JOIN and len(self.body) in (10, 14):
            return self.body[1]
        return None

    @property
    def backup(self) -> bool:
        """Of an MP_JOIN on SYN or SYN/ACK: the sender marks the subflow as backup."""
        return self.subtype == Subtype.MP_JOIN and bool(self.body[0] & 1)

    @property
    def sender_token(self) -> int | None:
        """Of an MP_CAPABLE with keys: the sender's token (RFC 8684, 3.2)."""
        if self.subtype == Subtype.MP_CAPABLE and len(self.body) >= 10:
            return int.from_bytes(hashlib.sha256(self.body[2:10]).digest()[:4], "big")
        return None

    @property
    def reset_reason(self) -> int | None:
        """Of an MP_TCPRST."""
        if self.subtype == Subtype.MP_TCPRST and len(self.body) == 2:
            return self.body[1]
        return None

    @property
    def reset_transient(self) -> bool:
        """Of an MP_TCPRST: the T flag, a new subflow may be tried."""
        return self.subtype == Subtype.MP_TCPRST and bool(self.body[0] & 1)


class Signal(NamedTuple):
    """A segment that one host sent or received."""

    at: int
    """CLOCK_MONOTONIC, nanoseconds."""
    outgoing: bool
    local: SockAddr
    remote: SockAddr
    flags: Flag
    seq: int
    options: list[Option]
    cookie: int = 0
    """Cookie of the sending socket; 0: not known."""

    def option(self, subtype: Subtype) -> Option | None:
        return next((option for option in self.options if option.subtype == subtype), None)

    @property
    def is_syn(self) -> bool:
        return self.flags & (Flag.SYN | Flag.ACK) == Flag.SYN

    @property
    def is_syn_ack(self) -> bool:
        return self.flags & (Flag.SYN | Flag.ACK) == Flag.SYN | Flag.ACK

    @property
    def is_reset(self) -> bool:
        return bool(self.flags & Flag.RST)


def read(packet: bytes, *, at: int, outgoing: bool, cookie: int = 0) -> Signal | None:
    """The signal in an IP packet; None without a complete TCP header."""
    if len(packet) < 40:
        return None
    if packet[0] >> 4 == 4:
        start, protocol = (packet[0] & 15) * 4, packet[9]
        source, destination = (inet_ntop(AF_INET, packet[i : i + 4]) for i in (12, 16))
    elif packet[0] >> 4 == 6:
        start, protocol = 40, packet[6]
        source, destination = (unmapped(inet_ntop(AF_INET6, packet[i : i + 16])) for i in (8, 24))
    else:
        return None
    if protocol != _TCP or len(packet) < start + 20:
        return None
    source_port, destination_port, seq, _, offset, flags = _PORTS.unpack_from(packet, start)
    sender = SockAddr(source, source_port)
    receiver = SockAddr(destination, destination_port)
    return Signal(
        at=at,
        outgoing=outgoing,
        local=sender if outgoing else receiver,
        remote=receiver if outgoing else sender,
        flags=Flag(flags & 31),
        seq=seq,
        options=mptcp_options(packet[start + 20 : start + (offset >> 4) * 4]),
        cookie=cookie,
    )


def mptcp_options(raw: bytes) -> list[Option]:
    """The MPTCP options among a TCP header's options."""
    options, _ = split_options(raw)
    return [
        Option(each[2] >> 4, each[2:]) for each in options if each[0] == MPTCP_KIND and each[2:]
    ]
