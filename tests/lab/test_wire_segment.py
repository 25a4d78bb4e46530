# SPDX-License-Identifier: BSD-3-Clause
"""Segments read from bytes, their connections, and their retransmissions; no sockets."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.lab.wire.connections import ConnectionTokens
from mptcpd_ebpf.lab.wire.keys import token_from_key
from mptcpd_ebpf.lab.wire.options import (
    MPCapableAck,
    MPCapableSyn,
    MPCapableSynAck,
    MPJoinSyn,
    MPTCPOption,
)
from mptcpd_ebpf.lab.wire.retransmissions import retransmissions
from mptcpd_ebpf.lab.wire.segment import ACK, FIN, SYN, Segment, read_segment
from mptcpd_ebpf.lab.wire.tcp import MPTCP_NAME

U32 = 1 << 32


def segment(
    flags: int,
    *options: MPTCPOption,
    length: int = 0,
    seq: int = 0,
    client: str = "192.0.2.1",
    from_server: bool = False,
    segment_size: int = 0,
) -> Segment:
    near, far = (client, 40000), ("198.51.100.1", 80)
    (src, sport), (dst, dport) = (far, near) if from_server else (near, far)
    tcp = TCP(
        sport=sport,
        dport=dport,
        flags=flags,
        seq=seq % U32,
        options=[(MPTCP_NAME, option) for option in options],
    )
    packet = bytes(IP(src=src, dst=dst) / tcp / bytes(length))
    read = read_segment(packet, 0, "eth0", True, segment_size)
    assert read is not None
    return read


@pytest.mark.parametrize(
    "ip",
    [
        IP(src="192.0.2.1", dst="198.51.100.1"),
        IP(src="192.0.2.1", dst="198.51.100.1", options=b"\x01\x01\x01\x00"),
        IPv6(src="2001:db8::1", dst="2001:db8::2"),
        IPv6(src="2001:db8::1", dst="2001:db8::2") / IPv6ExtHdrDestOpt(),
    ],
    ids=["IPv4", "IPv4 with options", "IPv6", "IPv6 with an extension header"],
)
def test_headers_are_read_as_scapy_builds_them(ip: IP) -> None:
    tcp = TCP(
        sport=5,
        dport=6,
        seq=7,
        ack=8,
        flags="SA",
        window=9,
        options=[(MPTCP_NAME, MPJoinSyn(token=3))],
    )
    read = read_segment(bytes(ip / tcp / b"data"), at=1, interface="eth0", outgoing=False)
    assert read is not None
    assert read.flow == (SockAddr(ip.src, 5), SockAddr(ip.dst, 6))
    assert (read.seq, read.ack, read.window, read.flags) == (7, 8, 9, SYN | ACK)
    assert read.payload == b"data"
    assert read.carries(MPJoinSyn(token=3))
    assert bytes(read.scapy()) == read.packet


def test_a_cut_packet_keeps_its_length() -> None:
    packet = bytes(IP(src="192.0.2.1", dst="192.0.2.2") / TCP() / bytes(500))
    read = read_segment(packet[:60], 0, "eth0", True)
    assert read is not None
    assert read.payload_length == 500
    assert len(read.payload) == 20


@given(st.sampled_from([0x45, 0x4F, 0x60]), st.binary(max_size=80))
def test_no_octets_raise(first: int, rest: bytes) -> None:
    for packet in (bytes([first]) + rest, rest):
        if read := read_segment(packet, 0, "eth0", True):
            assert read.describe()


def test_later_fragments_are_no_segments() -> None:
    fragment = IP(src="192.0.2.1", dst="192.0.2.2", frag=100, proto=6) / bytes(40)
    assert read_segment(bytes(fragment), 0, "eth0", True) is None


# --- connections


def test_a_join_belongs_to_the_connection_of_its_token() -> None:
    connections = ConnectionTokens()
    initial = segment(SYN, MPCapableSyn())
    server_key, client_key = 11, 22
    for seen in (
        initial,
        segment(SYN | ACK, MPCapableSynAck(sender_key=server_key), from_server=True),
        segment(ACK, MPCapableAck(sender_key=client_key, receiver_key=server_key)),
    ):
        connections.learn(seen)
    join = segment(SYN, MPJoinSyn(token=token_from_key(server_key)), client="203.0.113.1")
    other = segment(SYN, MPJoinSyn(token=1), client="203.0.113.2")
    connections.learn(join)
    connections.learn(other)
    both = {token_from_key(server_key), token_from_key(client_key)}
    assert connections.tokens(initial.flow) == both
    assert connections.tokens(join.flow.reversed()) == both
    assert connections.tokens(other.flow) == {1}


def test_ports_used_again_are_another_connection() -> None:
    connections = ConnectionTokens()
    syn = segment(SYN, MPCapableSyn())
    connections.learn(syn)
    connections.learn(segment(SYN | ACK, MPCapableSynAck(sender_key=1), from_server=True))
    connections.learn(replace(syn, seq=99))
    assert connections.tokens(syn.flow) == set()


# --- retransmissions


def count(segments: list[Segment]) -> int:
    return sum(retransmissions(segments).values())


@given(
    isn=st.integers(0, U32 - 1) | st.integers(U32 - 3000, U32 - 1),
    lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=20),
    again=st.data(),
)
def test_each_retransmitted_segment_counts_once(
    isn: int, lengths: list[int], again: st.DataObject
) -> None:
    sent = [segment(SYN, seq=isn)]
    at = isn + 1
    expected = 0
    for length in lengths:
        sent.append(segment(ACK, seq=at, length=length))
        at += length
        sent.append(segment(ACK, seq=at))
        if again.draw(st.booleans()):
            sent.append(again.draw(st.sampled_from([old for old in sent if old.sequence_length])))
            expected += 1
    assert count(sent) == expected


def test_a_super_packet_counts_as_its_segments() -> None:
    first = segment(ACK, seq=0, length=3500, segment_size=1000)
    assert count([first, first]) == 4
    beyond = segment(ACK, seq=2500, length=2000, segment_size=1000)
    assert count([first, beyond]) == 1


def test_retransmitted_syn_and_fin_count() -> None:
    syn, fin = segment(SYN, seq=5), segment(FIN | ACK, seq=6)
    assert count([syn, syn, fin, fin]) == 2


def test_a_new_connection_on_the_same_ports_is_no_retransmission() -> None:
    assert count([segment(SYN, seq=900), segment(ACK, seq=901, length=9), segment(SYN, seq=5)]) == 0


def test_keep_alives_and_bare_acknowledgements_do_not_count() -> None:
    data = segment(ACK, seq=100, length=10)
    assert count([data, segment(ACK, seq=109), segment(ACK, seq=110)]) == 0
