# SPDX-License-Identifier: BSD-3-Clause
"""The packets of path probes against scapy, and their parsers against any bytes."""

from typing import Literal

from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from mptcpd_ebpf.core.address import SockAddr, is_ipv6
from mptcpd_ebpf.kernel import probe_packet
from mptcpd_ebpf.kernel.probe_packet import Answer, Identity
from mptcpd_ebpf.lab.wire import MPJoinSyn
from mptcpd_ebpf.lab.wire.tcp import MPTCP_NAME

PORTS = st.integers(1, 65535)
WORDS = st.integers(0, 2**32 - 1)
IDENTITIES = st.builds(Identity, WORDS, WORDS, WORDS)


def ends(version: Literal[4, 6]) -> st.SearchStrategy[tuple[SockAddr, SockAddr]]:
    end = st.builds(SockAddr, st.ip_addresses(v=version).map(str), PORTS)
    return st.tuples(end, end)


BOTH_ENDS = ends(4) | ends(6)


@given(BOTH_ENDS, IDENTITIES, st.integers(0, 9000))
def test_a_probe_is_a_valid_syn_that_asks_to_join(
    both: tuple[SockAddr, SockAddr], identity: Identity, size: int
) -> None:
    local, remote = both
    tcp = probe_packet.segment(local, remote, identity, size)
    layer, least = (IPv6, 40) if is_ipv6(local.ip) else (IP, 20)
    smallest = probe_packet.SMALLEST[is_ipv6(local.ip)]
    assert len(tcp) + least == max(size, smallest)

    read = TCP(tcp)
    assert (read.sport, read.dport, read.seq, read.flags) == (
        local.port, remote.port, identity.sequence, "S"
    )  # fmt: skip
    ((_, mss), (name, join)) = [option for option in read.options if option[0] != "EOL"]
    assert (mss, name) == (1460, MPTCP_NAME)
    assert join.matches(MPJoinSyn(token=identity.token, nonce=identity.nonce, backup=1))
    # scapy computes the checksum of what has none.
    checksum = read.chksum
    del read.chksum
    rebuilt = layer(bytes(layer(src=local.ip, dst=remote.ip) / read))
    assert rebuilt[TCP].chksum == checksum


@given(BOTH_ENDS, IDENTITIES, st.sampled_from(["RA", "SA", "SAE", "RAP"]), st.integers(0, 1460))
def test_an_answer_names_the_probe(
    both: tuple[SockAddr, SockAddr], identity: Identity, flags: str, payload: int
) -> None:
    local, remote = both
    acknowledged = (identity.sequence + 1 + payload) % 2**32
    answer = TCP(sport=remote.port, dport=local.port, flags=flags, ack=acknowledged)
    found = probe_packet.parse_answer(bytes(answer))
    expected = (identity.sequence + payload) % 2**32
    assert found == Answer(local.port, remote.port, expected)


@given(PORTS, WORDS, st.sampled_from(["S", "R", "A", "PA", "FA", ""]))
def test_other_segments_are_no_answers(port: int, number: int, flags: str) -> None:
    assert probe_packet.parse_answer(bytes(TCP(dport=port, flags=flags, ack=number))) is None


@given(ends(4), IDENTITIES, st.integers(8, 60))
def test_an_icmp_error_returns_the_head_of_the_probe(
    both: tuple[SockAddr, SockAddr], identity: Identity, cut: int
) -> None:
    local, remote = both
    head = probe_packet.segment(local, remote, identity, 1500)[:cut]
    assert probe_packet.parse_returned(head) == Answer(local.port, remote.port, identity.sequence)


@given(st.binary(max_size=100))
def test_no_bytes_raise(data: bytes) -> None:
    probe_packet.parse_answer(data)
    probe_packet.parse_returned(data)
    probe_packet.parse_answer(probe_packet.without_ip_header(data))


@given(ends(4), st.binary(max_size=30), st.integers(0, 10))
def test_the_ip_header_is_cut_off(
    both: tuple[SockAddr, SockAddr], payload: bytes, words: int
) -> None:
    packet = bytes(IP(src=both[0].ip, dst=both[1].ip, options=[b"\x01" * 4] * words) / payload)
    assert probe_packet.without_ip_header(packet) == payload
