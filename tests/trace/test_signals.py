# SPDX-License-Identifier: BSD-3-Clause
"""The decoder of signals agrees with scapy's layer and accepts any input."""

from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP

from mptcpd_ebpf.lab.wire import (
    DSS,
    AddAddr,
    MPCapableSyn,
    MPCapableSynAck,
    MPFastclose,
    MPJoinSyn,
    MPJoinSynAck,
    MPPrio,
    MPTcpRst,
)
from mptcpd_ebpf.lab.wire.keys import token_from_key
from mptcpd_ebpf.trace.signals import Flag, Subtype, mptcp_options, read


def packet(option: object, flags: str = "S") -> bytes:
    segment = IP(src="10.0.0.1", dst="10.0.0.2") / TCP(
        sport=1000, dport=80, seq=7, flags=flags, options=[("MSS", 1400), ("MPTCP", option)]
    )
    return bytes(segment)


def test_a_join_is_decoded() -> None:
    join = MPJoinSyn(address_id=3, backup=1, token=0x1A2B3C4D, nonce=5)
    signal = read(packet(join), at=9, outgoing=True)
    assert signal is not None
    assert (str(signal.local), str(signal.remote)) == ("10.0.0.1:1000", "10.0.0.2:80")
    assert (signal.is_syn, signal.is_syn_ack, signal.is_reset) == (True, False, False)
    assert signal.seq == 7
    [option] = signal.options
    assert option.subtype == Subtype.MP_JOIN
    assert (option.join_token, option.address_id, option.backup) == (0x1A2B3C4D, 3, True)


def test_the_local_address_of_a_received_packet_is_its_destination() -> None:
    signal = read(packet(MPCapableSyn()), at=0, outgoing=False)
    assert signal is not None
    assert (str(signal.local), str(signal.remote)) == ("10.0.0.2:80", "10.0.0.1:1000")


@given(st.integers(1, 2**64 - 1))
def test_the_token_is_derived_from_the_key(key: int) -> None:
    signal = read(packet(MPCapableSynAck(sender_key=key), "SA"), at=0, outgoing=True)
    assert signal is not None
    assert signal.is_syn_ack
    assert signal.options[0].sender_token == token_from_key(key)


@given(st.integers(0, 255), st.integers(0, 1))
def test_the_reason_of_a_reset_is_decoded(reason: int, transient: int) -> None:
    option = MPTcpRst(reason=reason, transient=transient)
    signal = read(packet(option, "R"), at=0, outgoing=True)
    assert signal is not None
    assert signal.flags == Flag.RST
    assert signal.options[0].reset_reason == reason
    assert signal.options[0].reset_transient == bool(transient)


def test_the_other_subtypes_are_distinguished() -> None:
    options = {
        Subtype.DSS: DSS(data_ack=1),
        Subtype.ADD_ADDR: AddAddr(echo=1, address_id=1, address="10.0.0.9"),
        Subtype.MP_PRIO: MPPrio(backup=1),
        Subtype.MP_FASTCLOSE: MPFastclose(receiver_key=1),
        Subtype.MP_JOIN: MPJoinSynAck(address_id=1, hmac=1, nonce=1),
    }
    for subtype, option in options.items():
        signal = read(packet(option, "A"), at=0, outgoing=True)
        assert signal is not None
        assert signal.option(subtype) is not None
        assert signal.option(Subtype.MP_FAIL) is None


@given(st.binary(max_size=80))
def test_arbitrary_bytes_raise_no_error(raw: bytes) -> None:
    for option in mptcp_options(raw):
        assert option.body
    for version in (0x45, 0x60):
        read(bytes([version]) + raw, at=0, outgoing=True)
