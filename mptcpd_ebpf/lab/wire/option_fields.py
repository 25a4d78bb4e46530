# SPDX-License-Identifier: BSD-3-Clause
"""Scapy field types that MPTCP options need beyond scapy's own.

A flag (DSS) or the option's length (ADD_ADDR, MP_CAPABLE) says which optional parts an option
has.  When dissecting, these decide what is read.  When building, the given fields decide, and
flags that were not given are derived from them.
"""

import ipaddress
from collections.abc import Callable
from typing import Any

from scapy.fields import BitField, Field
from scapy.packet import Packet


class PresenceBit(BitField):  # type: ignore[misc]
    """A flag about an optional field: it is present, or it has 8 octets instead of 4.

    If the flag is not given, it is set if the field is given.
    """

    __slots__ = ["of"]

    def __init__(self, name: str, of: str):
        super().__init__(name, None, 1)
        self.of = of

    def i2m(self, pkt: Packet, x: int | None) -> int:
        return int(pkt.getfieldval(self.of) is not None) if x is None else x


def is_set(pkt: Packet, bit: str) -> bool:
    return bool(pkt.fieldtype[bit].i2m(pkt, pkt.getfieldval(bit)))


def present(bit: str) -> Callable[[Packet], bool]:
    return lambda pkt: is_set(pkt, bit)


class SequenceField(Field):  # type: ignore[misc]
    """A data sequence number of 8 octets, or of the low 4 if the flag `wide` is clear."""

    __slots__ = ["wide"]

    def __init__(self, name: str, wide: str):
        super().__init__(name, None, "!Q")
        self.wide = wide

    def addfield(self, pkt: Packet, s: bytes, val: int | None) -> bytes:
        size = 8 if is_set(pkt, self.wide) else 4
        return s + ((val or 0) % (1 << 8 * size)).to_bytes(size, "big")

    def getfield(self, pkt: Packet, s: bytes) -> tuple[bytes, int]:
        size = 8 if is_set(pkt, self.wide) else 4
        return s[size:], int.from_bytes(s[:size], "big")

    def i2repr(self, pkt: Packet, x: int | None) -> str:
        return "None" if x is None else hex(x)


class AddressField(Field):  # type: ignore[misc]
    """An IPv4 or IPv6 address in canonical text; the option's length distinguishes them."""

    def __init__(self, name: str):
        super().__init__(name, "0.0.0.0", "4s")

    def any2i(self, pkt: Packet, x: Any) -> Any:
        return str(ipaddress.ip_address(x))

    def addfield(self, pkt: Packet, s: bytes, val: str) -> bytes:
        return s + ipaddress.ip_address(val).packed

    def getfield(self, pkt: Packet, s: bytes) -> tuple[bytes, str]:
        size = 16 if pkt.length >= 20 else 4
        return s[size:], str(ipaddress.ip_address(s[:size]))


def given_or_in(name: str, lengths: frozenset[int]) -> Callable[[Packet], bool]:
    """Whether an optional field without a flag is present: given, or implied by the length."""

    def condition(pkt: Packet) -> bool:
        return pkt.getfieldval(name) is not None or pkt.length in lengths

    return condition
