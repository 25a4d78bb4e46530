# SPDX-License-Identifier: BSD-3-Clause
"""The packets of path probes: a SYN that asks to join a connection nobody has, and its answers.

The SYN carries MP_JOIN with a random token (RFC 8684, 3.2).  Linux answers with RST and MP_TCPRST,
a listener behind a middlebox that removes the option with SYN/ACK; both acknowledge the SYN's
sequence number, which is how an answer is told from other segments.  A receiver ignores the
payload that fills a SYN up to the size of a data segment (RFC 9293, 3.10.7.2).

Pure functions over bytes.  Segments begin with their TCP header.
"""

import ipaddress
import struct
from typing import NamedTuple

from mptcpd_ebpf.core.address import SockAddr, is_ipv6
from mptcpd_ebpf.kernel.tcp_options import MPTCP_KIND

SYN, RST, ACK = 0x02, 0x04, 0x10
_HEADER = struct.Struct("!HHIIBBHHH")
_MSS = 1460
_MP_JOIN_SYN = 0x10
_BACKUP = 0x01
OPTIONS = 16
"""Bytes of the options: MSS 4, MP_JOIN 12."""
SMALLEST = {False: 20 + _HEADER.size + OPTIONS, True: 40 + _HEADER.size + OPTIONS}
"""Bytes of the IP packet of a probe without payload, by whether it is IPv6."""


class Identity(NamedTuple):
    """What tells one probe from another; drawn at random."""

    sequence: int
    """Of the SYN, 32 bits."""
    token: int
    """32 bits: that of no connection of the peer, except once in 2^32 and connection; then the
    peer answers with SYN/ACK, and our kernel resets that join."""
    nonce: int


class Answer(NamedTuple):
    """A segment or ICMP error that may answer a probe."""

    port: int
    """Ours."""
    remote_port: int
    sequence: int
    """That of the SYN it answers, if the SYN had no payload or it did not count."""


def segment(local: SockAddr, remote: SockAddr, identity: Identity, size: int) -> bytes:
    """A probe's TCP segment, for an IP packet of `size` bytes; at least `SMALLEST`."""
    payload = bytes(max(0, size - SMALLEST[is_ipv6(local.ip)]))
    options = struct.pack("!BBH", 2, 4, _MSS) + struct.pack(
        "!BBBBII", MPTCP_KIND, 12, _MP_JOIN_SYN | _BACKUP, 0, identity.token, identity.nonce
    )
    offset = (_HEADER.size + len(options)) // 4 << 4
    head = (local.port, remote.port, identity.sequence, 0, offset, SYN, 0xFFFF)
    without = _HEADER.pack(*head, 0, 0) + options + payload
    checksum = _checksum(_pseudo_header(local.ip, remote.ip, len(without)) + without)
    return _HEADER.pack(*head, checksum, 0) + options + payload


def payload_of(size: int, *, ipv6: bool) -> int:
    """Bytes of payload in a probe of that size."""
    return max(0, size - SMALLEST[ipv6])


def parse_answer(tcp: bytes) -> Answer | None:
    """A segment that acknowledges a SYN: RST or SYN/ACK.  None for any other, and for garbage."""
    if len(tcp) < _HEADER.size:
        return None
    source, destination, _, acknowledged, _, flags, *_ = _HEADER.unpack_from(tcp)
    if not flags & ACK or not flags & (SYN | RST):
        return None
    return Answer(destination, source, (acknowledged - 1) % 2**32)


def parse_returned(tcp: bytes) -> Answer | None:
    """The head of our own segment that an ICMP error returns (RFC 792: at least eight bytes)."""
    if len(tcp) < 8:
        return None
    return Answer(*struct.unpack_from("!HHI", tcp))


def without_ip_header(packet: bytes) -> bytes:
    """The segment in an IPv4 packet; empty if the header is cut off."""
    return packet[(packet[0] & 0x0F) * 4 :] if packet else b""


def _pseudo_header(local: str, remote: str, length: int) -> bytes:
    """RFC 9293, 3.1; for IPv6 RFC 8200, 8.1."""
    ends = ipaddress.ip_address(local).packed + ipaddress.ip_address(remote).packed
    return ends + struct.pack("!II" if is_ipv6(local) else "!HH", 6, length)


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
