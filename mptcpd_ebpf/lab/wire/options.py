# SPDX-License-Identifier: BSD-3-Clause
"""The MPTCP options of TCP as scapy packets: RFC 8684, version 1.

TCP option 30 is one kind with many forms.  `MPTCPOption(raw)` selects the class by
subtype and length, which together are unambiguous (RFC 8684, 3.1 to 3.7; in the kernel,
mptcp_parse_option in net/mptcp/options.c):

    MP_CAPABLE    4 SYN, 12 SYN/ACK, 20 ACK, 22 ACK with data, 24 the same with checksum
    MP_JOIN       12 SYN, 16 SYN/ACK, 24 ACK
    DSS           4 + data ack (4 or 8) + mapping (10 or 14) + checksum (2)
    ADD_ADDR      4 + address (4 or 16) + port (2) + HMAC (8, absent in an echo)
    REMOVE_ADDR   3 + one byte per address id
    MP_PRIO       3
    MP_FAIL       12
    MP_FASTCLOSE  12
    MP_TCPRST     4

An option that fits none of these, or would not be built again byte for byte, becomes an
`MPTCPUnknown` that keeps its bytes: a malformed option never raises, and dissecting never
changes it.  To build one on purpose, set `length` or give the bytes of an MPTCPUnknown.

A field that is not given is derived from the others where possible (length, the flags of DSS
and ADD_ADDR).  In a pattern (`matches`) only the given fields count.
"""

import struct
from typing import Any

from scapy.fields import (
    BitEnumField,
    BitField,
    ByteEnumField,
    ByteField,
    ConditionalField,
    FieldListField,
    IntField,
    ShortField,
    StrField,
    StrFixedLenField,
    XIntField,
    XLongField,
    XShortField,
)
from scapy.packet import NoPayload, Packet

from mptcpd_ebpf.kernel.tcp_options import MPTCP_KIND
from mptcpd_ebpf.lab.wire.option_fields import (
    AddressField,
    PresenceBit,
    SequenceField,
    given_or_in,
    is_set,
    present,
)

SUBTYPES = {
    0: "MP_CAPABLE",
    1: "MP_JOIN",
    2: "DSS",
    3: "ADD_ADDR",
    4: "REMOVE_ADDR",
    5: "MP_PRIO",
    6: "MP_FAIL",
    7: "MP_FASTCLOSE",
    8: "MP_TCPRST",
}

RESET_REASONS = {
    0: "unspecified",
    1: "MPTCP-specific",
    2: "lack of resources",
    3: "administratively prohibited",
    4: "too much outstanding data",
    5: "unacceptable performance",
    6: "middlebox interference",
}


class MPTCPOption(Packet):  # type: ignore[misc]
    """One option, kind and length included; the base class, which also dissects raw options."""

    name = "MPTCP option"
    lengths: frozenset[int] = frozenset()
    """The lengths that the form can have on the wire."""

    @classmethod
    def dispatch_hook(cls, _pkt: bytes | None = None, *_args: Any, **_kargs: Any) -> Any:
        raw = _pkt or b""
        if len(raw) < 3 or raw[0] != MPTCP_KIND or raw[1] != len(raw):
            return MPTCPUnknown
        for form in _FORMS.get(raw[2] >> 4, ()):
            if len(raw) in form.lengths:
                return form if _rebuilt(form, raw) == raw else MPTCPUnknown
        return MPTCPUnknown

    def post_build(self, pkt: bytes, pay: bytes) -> bytes:
        if "length" in self.fieldtype and self.length is None:
            pkt = pkt[:1] + bytes([len(pkt) + len(pay)]) + pkt[2:]
        return pkt + pay

    def matches(self, pattern: "MPTCPOption | type[MPTCPOption]") -> bool:
        """Whether this is of the pattern's class and agrees in every field the pattern gives."""
        if isinstance(pattern, type):
            return isinstance(self, pattern)
        return isinstance(self, type(pattern)) and all(
            self.getfieldval(field) == value for field, value in pattern.fields.items()
        )

    def describe(self) -> str:
        """One line of text: the name and the fields, without kind, length and zero bits."""
        shown = []
        for field in self.fields_desc:
            value = self.getfieldval(field.name)
            absent = isinstance(field, ConditionalField) and not field._evalcond(self)
            zero_bit = isinstance(field, BitField) and not value
            if field.name in _NOT_SHOWN or value is None or absent or zero_bit:
                continue
            shown.append(f"{field.name}={field.i2repr(self, value)}")
        return " ".join([self.name, *shown])


_NOT_SHOWN = {"kind", "length", "subtype", "reserved", "version", "hmac_sha256"}
_NOT_SHOWN |= {"has_ack", "has_map", "data_ack8", "dsn8"}


def _rebuilt(form: type[MPTCPOption], raw: bytes) -> bytes | None:
    """The octets of `form` dissected from `raw` and built again; None if they do not fit it."""
    try:
        option = form(raw)
    except struct.error:
        # The flags announce more fields than the length has room for.
        return None
    if not isinstance(option.payload, NoPayload):
        return None
    option.raw_packet_cache = None
    return bytes(option.build())


def _head(subtype: int, *rest: Any) -> list[Any]:
    return [
        ByteField("kind", MPTCP_KIND),
        ByteField("length", None),
        BitEnumField("subtype", subtype, 4, SUBTYPES),
        *rest,
    ]


def _capable(*rest: Any) -> list[Any]:
    return _head(
        0,
        BitField("version", 1, 4),
        BitField("checksum_required", 0, 1),
        BitField("extensibility", 0, 1),
        BitField("deny_join_id0", 0, 1),
        BitField("reserved", 0, 4),
        BitField("hmac_sha256", 1, 1),
        *rest,
    )


class MPCapableSyn(MPTCPOption):
    """Offers MPTCP (RFC 8684, 3.1); in version 1 it carries no key."""

    name = "MP_CAPABLE SYN"
    lengths = frozenset({4})
    fields_desc = _capable()


class MPCapableSynAck(MPTCPOption):
    name = "MP_CAPABLE SYN/ACK"
    lengths = frozenset({12})
    fields_desc = _capable(XLongField("sender_key", 0))


class MPCapableAck(MPTCPOption):
    """The third packet, or the first with data, which maps `data_length` bytes from IDSN + 1."""

    name = "MP_CAPABLE ACK"
    lengths = frozenset({20, 22, 24})
    fields_desc = _capable(
        XLongField("sender_key", 0),
        XLongField("receiver_key", 0),
        ConditionalField(
            ShortField("data_length", None), given_or_in("data_length", frozenset({22, 24}))
        ),
        ConditionalField(XShortField("checksum", None), given_or_in("checksum", frozenset({24}))),
    )


class MPJoinSyn(MPTCPOption):
    """Requests a subflow for the connection with the receiver's `token` (RFC 8684, 3.2)."""

    name = "MP_JOIN SYN"
    lengths = frozenset({12})
    fields_desc = _head(
        1,
        BitField("reserved", 0, 3),
        BitField("backup", 0, 1),
        ByteField("address_id", 0),
        XIntField("token", 0),
        XIntField("nonce", 0),
    )


class MPJoinSynAck(MPTCPOption):
    name = "MP_JOIN SYN/ACK"
    lengths = frozenset({16})
    fields_desc = _head(
        1,
        BitField("reserved", 0, 3),
        BitField("backup", 0, 1),
        ByteField("address_id", 0),
        XLongField("hmac", 0),
        XIntField("nonce", 0),
    )


class MPJoinAck(MPTCPOption):
    name = "MP_JOIN ACK"
    lengths = frozenset({24})
    fields_desc = _head(
        1,
        BitField("reserved", 0, 12),
        StrFixedLenField("hmac", b"\0" * 20, length=20),
    )


def _dss_has_checksum(pkt: Packet) -> bool:
    if pkt.getfieldval("checksum") is not None:
        return True
    without = 4
    if is_set(pkt, "has_ack"):
        without += 8 if is_set(pkt, "data_ack8") else 4
    if is_set(pkt, "has_map"):
        without += 14 if is_set(pkt, "dsn8") else 10
    return bool(pkt.length == without + 2)


class DSS(MPTCPOption):
    """Data acknowledgement, and the mapping of subflow bytes to data bytes (RFC 8684, 3.3).

    `ssn` counts from the subflow's initial sequence number, so its first byte is 1.
    `data_ack` and `dsn` set their flags; for 4-octet numbers give `data_ack8=0` or `dsn8=0`.
    """

    name = "DSS"
    lengths = frozenset(range(4, 29))
    fields_desc = _head(
        2,
        BitField("reserved", 0, 7),
        BitField("data_fin", 0, 1),
        PresenceBit("dsn8", of="dsn"),
        PresenceBit("has_map", of="dsn"),
        PresenceBit("data_ack8", of="data_ack"),
        PresenceBit("has_ack", of="data_ack"),
        ConditionalField(SequenceField("data_ack", wide="data_ack8"), present("has_ack")),
        ConditionalField(SequenceField("dsn", wide="dsn8"), present("has_map")),
        ConditionalField(IntField("ssn", 0), present("has_map")),
        ConditionalField(ShortField("data_length", 0), present("has_map")),
        ConditionalField(XShortField("checksum", None), _dss_has_checksum),
    )


class AddAddr(MPTCPOption):
    """Announces an address (RFC 8684, 3.4.1); with `echo` it confirms one and has no HMAC."""

    name = "ADD_ADDR"
    lengths = frozenset({8, 10, 16, 18, 20, 22, 28, 30})
    fields_desc = _head(
        3,
        BitField("reserved", 0, 3),
        BitField("echo", 0, 1),
        ByteField("address_id", 0),
        AddressField("address"),
        ConditionalField(
            ShortField("port", None), given_or_in("port", frozenset({10, 18, 22, 30}))
        ),
        ConditionalField(
            XLongField("hmac", None), given_or_in("hmac", frozenset({16, 18, 28, 30}))
        ),
    )


class RemoveAddr(MPTCPOption):
    """Withdraws addresses: the peer closes their subflows (RFC 8684, 3.4.2)."""

    name = "REMOVE_ADDR"
    lengths = frozenset(range(3, 41))
    fields_desc = _head(
        4,
        BitField("reserved", 0, 4),
        FieldListField("address_ids", [], ByteField("", 0)),
    )


class MPPrio(MPTCPOption):
    """Asks the peer to treat this subflow as backup, or no longer (RFC 8684, 3.3.8)."""

    name = "MP_PRIO"
    lengths = frozenset({3})
    fields_desc = _head(5, BitField("reserved", 0, 3), BitField("backup", 0, 1))


class MPFail(MPTCPOption):
    """The checksum failed for the data from `dsn` on (RFC 8684, 3.7)."""

    name = "MP_FAIL"
    lengths = frozenset({12})
    fields_desc = _head(6, BitField("reserved", 0, 12), XLongField("dsn", 0))


class MPFastclose(MPTCPOption):
    """Closes the whole connection at once, authenticated by the receiver's key (RFC 8684, 3.5)."""

    name = "MP_FASTCLOSE"
    lengths = frozenset({12})
    fields_desc = _head(7, BitField("reserved", 0, 12), XLongField("receiver_key", 0))


class MPTcpRst(MPTCPOption):
    """The reason for a subflow's reset (RFC 8684, 3.6); `transient`: a retry may succeed."""

    name = "MP_TCPRST"
    lengths = frozenset({4})
    fields_desc = _head(
        8,
        BitField("reserved", 0, 3),
        BitField("transient", 0, 1),
        ByteEnumField("reason", 0, RESET_REASONS),
    )


class MPTCPUnknown(MPTCPOption):
    """An option that fits no form, kept as raw bytes, kind and length included."""

    name = "MPTCP unknown"
    fields_desc = [StrField("octets", b"")]


_FORMS: dict[int, tuple[type[MPTCPOption], ...]] = {
    0: (MPCapableSyn, MPCapableSynAck, MPCapableAck),
    1: (MPJoinSyn, MPJoinSynAck, MPJoinAck),
    2: (DSS,),
    3: (AddAddr,),
    4: (RemoveAddr,),
    5: (MPPrio,),
    6: (MPFail,),
    7: (MPFastclose,),
    8: (MPTcpRst,),
}
