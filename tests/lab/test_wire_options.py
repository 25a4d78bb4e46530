# SPDX-License-Identifier: BSD-3-Clause
"""MPTCP options survive building and dissecting; malformed ones neither raise nor change."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcpd_ebpf.kernel.tcp_options import MPTCP_KIND
from mptcpd_ebpf.lab.wire.options import (
    DSS,
    AddAddr,
    MPCapableAck,
    MPCapableSyn,
    MPCapableSynAck,
    MPFail,
    MPFastclose,
    MPJoinAck,
    MPJoinSyn,
    MPJoinSynAck,
    MPPrio,
    MPTCPOption,
    MPTcpRst,
    MPTCPUnknown,
    RemoveAddr,
)

u8 = st.integers(0, 2**8 - 1)
u16 = st.integers(0, 2**16 - 1)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
bit = st.integers(0, 1)
address = st.ip_addresses().map(str)

CAPABLE_FLAGS = {
    "version": st.integers(0, 15),
    "checksum_required": bit,
    "extensibility": bit,
    "deny_join_id0": bit,
    "reserved": st.integers(0, 15),
    "hmac_sha256": bit,
}

FORMS: dict[str, tuple[type[MPTCPOption], dict[str, st.SearchStrategy[Any]]]] = {
    "MP_CAPABLE SYN": (MPCapableSyn, CAPABLE_FLAGS),
    "MP_CAPABLE SYN/ACK": (MPCapableSynAck, CAPABLE_FLAGS | {"sender_key": u64}),
    "MP_CAPABLE ACK": (MPCapableAck, CAPABLE_FLAGS | {"sender_key": u64, "receiver_key": u64}),
    "MP_CAPABLE data": (MPCapableAck, CAPABLE_FLAGS | {"sender_key": u64, "data_length": u16}),
    "MP_CAPABLE checksum": (MPCapableAck, {"data_length": u16, "checksum": u16}),
    "MP_JOIN SYN": (MPJoinSyn, {"backup": bit, "address_id": u8, "token": u32, "nonce": u32}),
    "MP_JOIN SYN/ACK": (
        MPJoinSynAck,
        {"backup": bit, "address_id": u8, "hmac": u64, "nonce": u32},
    ),
    "MP_JOIN ACK": (MPJoinAck, {"hmac": st.binary(min_size=20, max_size=20)}),
    "DSS ack": (DSS, {"data_ack": u64, "data_fin": bit, "reserved": st.integers(0, 127)}),
    "DSS ack 4": (DSS, {"data_ack": u32, "data_ack8": st.just(0)}),
    "DSS map": (DSS, {"dsn": u64, "ssn": u32, "data_length": u16, "data_fin": bit}),
    "DSS both 4": (
        DSS,
        {"data_ack": u64, "dsn": u32, "dsn8": st.just(0), "ssn": u32, "data_length": u16},
    ),
    "DSS checksum": (DSS, {"data_ack": u64, "dsn": u64, "ssn": u32, "checksum": u16}),
    "ADD_ADDR": (AddAddr, {"address_id": u8, "address": address, "hmac": u64}),
    "ADD_ADDR port": (AddAddr, {"address": address, "port": u16, "hmac": u64}),
    "ADD_ADDR echo": (AddAddr, {"echo": st.just(1), "address_id": u8, "address": address}),
    "ADD_ADDR echo port": (AddAddr, {"echo": st.just(1), "address": address, "port": u16}),
    "REMOVE_ADDR": (RemoveAddr, {"address_ids": st.lists(u8, max_size=37)}),
    "MP_PRIO": (MPPrio, {"backup": bit, "reserved": st.integers(0, 7)}),
    "MP_FAIL": (MPFail, {"dsn": u64}),
    "MP_FASTCLOSE": (MPFastclose, {"receiver_key": u64}),
    "MP_TCPRST": (MPTcpRst, {"transient": bit, "reason": u8}),
}


def rebuilt(option: MPTCPOption) -> bytes:
    """Its bytes built from its fields, without scapy's cache of the original."""
    option.raw_packet_cache = None
    return bytes(option.build())


@pytest.mark.parametrize("form", FORMS)
@given(data=st.data())
def test_a_built_option_is_dissected_to_the_same(form: str, data: st.DataObject) -> None:
    option_class, strategies = FORMS[form]
    fields = {name: data.draw(strategy, name) for name, strategy in strategies.items()}
    built = option_class(**fields)
    raw = bytes(built)
    dissected = MPTCPOption(raw)
    assert type(dissected) is option_class
    assert {name: dissected.getfieldval(name) for name in fields} == fields
    assert dissected.matches(built)
    assert raw[0] == MPTCP_KIND
    assert raw[1] == len(raw)
    assert rebuilt(dissected) == raw


@given(st.integers(0, 15), st.binary(max_size=37))
def test_any_octets_are_built_again_unchanged(subtype: int, rest: bytes) -> None:
    body = bytes([subtype << 4 | (rest[0] & 15 if rest else 0)]) + rest
    raw = bytes([MPTCP_KIND, 2 + len(body)]) + body
    option = MPTCPOption(raw)
    assert rebuilt(option) == raw
    assert option.describe()


@given(st.binary(max_size=60))
def test_octets_that_are_no_option_are_kept(raw: bytes) -> None:
    assert bytes(MPTCPOption(raw)) == raw


# Lengths and flags that contradict each other: the kernel ignores such options.
@pytest.mark.parametrize(
    "raw",
    [
        bytes.fromhex("1e05010100"),  # MP_CAPABLE of a length between SYN and SYN/ACK
        bytes.fromhex("1e0c2001") + bytes(8),  # DSS: a 4-octet acknowledgement, and 4 more
        bytes.fromhex("1e062003") + bytes(2),  # DSS: an 8-octet acknowledgement cut short
        bytes.fromhex("1e045001"),  # MP_PRIO with the address id of version 0
        bytes.fromhex("1e049000"),  # an unassigned subtype
    ],
    ids=bytes.hex,
)
def test_contradictory_options_become_unknown(raw: bytes) -> None:
    assert isinstance(MPTCPOption(raw), MPTCPUnknown)
    assert bytes(MPTCPOption(raw)) == raw


@pytest.mark.parametrize(
    ("octets", "option"),
    [
        ("1e04 01 81", MPCapableSyn(checksum_required=1)),
        ("1e04 01 21", MPCapableSyn(deny_join_id0=1)),
        (
            "1e0c 11 02 01020304 0a0b0c0d",
            MPJoinSyn(backup=1, address_id=2, token=0x1020304, nonce=0xA0B0C0D),
        ),
        ("1e08 20 01 00000001", DSS(data_ack=1, data_ack8=0)),
        (
            "1e12 20 05 00000001 00000002 00000003 0004",
            DSS(data_ack=1, data_ack8=0, dsn=2, dsn8=0, ssn=3, data_length=4),
        ),
        (
            "1e14 20 1c 0000000000000002 00000000 0001 ffff",
            DSS(data_fin=1, dsn=2, data_length=1, checksum=0xFFFF),
        ),
        ("1e0a 31 05 c0000201 1f90", AddAddr(echo=1, address_id=5, address="192.0.2.1", port=8080)),
        ("1e04 40 07", RemoveAddr(address_ids=[7])),
        ("1e03 51", MPPrio(backup=1)),
        ("1e0c 60 00 0000000000000009", MPFail(dsn=9)),
        ("1e0c 70 00 0000000000000009", MPFastclose(receiver_key=9)),
        ("1e04 81 03", MPTcpRst(transient=1, reason=3)),
    ],
)
def test_layouts_are_those_of_the_rfc(octets: str, option: MPTCPOption) -> None:
    """The octets follow the figures of RFC 8684."""
    assert bytes(option) == bytes.fromhex(octets)


def test_fields_that_a_pattern_does_not_give_do_not_matter() -> None:
    join = MPTCPOption(bytes(MPJoinSyn(address_id=2, backup=1, token=7, nonce=9)))
    assert join.matches(MPJoinSyn)
    assert join.matches(MPJoinSyn())
    assert join.matches(MPJoinSyn(address_id=2, backup=True))
    assert not join.matches(MPJoinSyn(address_id=3))
    assert not join.matches(MPJoinSyn(backup=False))
    assert not join.matches(MPPrio(backup=1))


def test_a_wrong_length_can_be_built_on_purpose() -> None:
    assert bytes(MPPrio(length=9, backup=1)) == bytes.fromhex("1e0951")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (MPJoinSyn(address_id=2, backup=1), "MP_JOIN SYN backup=1 address_id=2"),
        (DSS(data_ack=16), "DSS data_ack=0x10"),
        (MPTcpRst(reason=3), "MP_TCPRST reason=administratively prohibited"),
    ],
)
def test_an_option_is_described_in_one_line(option: MPTCPOption, words: str) -> None:
    assert MPTCPOption(bytes(option)).describe().startswith(words)
