# SPDX-License-Identifier: BSD-3-Clause
"""Scapy's TCP layer with MPTCP: an options area is dissected without loss and never raises."""

from hypothesis import example, given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP

from mptcpd_ebpf.kernel.tcp_options import MPTCP_KIND, split_options
from mptcpd_ebpf.lab.wire.options import DSS, MPCapableSyn, MPJoinSyn, MPPrio
from mptcpd_ebpf.lab.wire.tcp import MPTCP_NAME, mptcp_options

# Valid options, options with a wrong length, and random octets, cut to an options area.
kinds = st.sampled_from(
    [2, 3, 4, 5, 8, 10, 14, 19, 28, 29, MPTCP_KIND, MPTCP_KIND, 34]
) | st.integers(0, 255)
lengths = st.none() | st.integers(0, 255)


def an_option(kind: int, body: bytes, length: int | None) -> bytes:
    return bytes([kind, len(body) + 2 if length is None else length]) + body


pieces = st.builds(an_option, kinds, st.binary(max_size=12), lengths) | st.binary(max_size=4)
areas = st.lists(pieces, max_size=10).map(lambda found: cut_to_area(b"".join(found)))


def cut_to_area(octets: bytes) -> bytes:
    return octets[: min(len(octets), 40) // 4 * 4]


def segment(area: bytes) -> bytes:
    return bytes(TCP(dataofs=5 + len(area) // 4)) + area


@given(areas)
@example(an_option(5, bytes(4), None) + bytes(2))  # SACK of half a block
@example(an_option(29, b"", None) + bytes(2))  # TCP-AO without anything
def test_any_options_area_is_rebuilt_unchanged(area: bytes) -> None:
    tcp = TCP(segment(area))
    tcp.raw_packet_cache = None
    assert bytes(tcp.build())[20:] == area


@given(areas)
def test_splitting_an_area_loses_nothing(area: bytes) -> None:
    options, rest = split_options(area)
    assert b"".join(options) + rest == area


def test_options_are_dissected_among_others() -> None:
    options = [
        ("MSS", 1460),
        ("SAckOK", b""),
        ("Timestamp", (1, 2)),
        ("NOP", None),
        ("WScale", 7),
        (MPTCP_NAME, MPCapableSyn(deny_join_id0=1)),
    ]
    tcp = IP(bytes(IP(dst="192.0.2.1") / TCP(options=options)))[TCP]
    assert tcp.options[:-1] == options[:-1]
    name, option = tcp.options[-1]
    assert (name, type(option)) == (MPTCP_NAME, MPCapableSyn)
    assert option.deny_join_id0 == 1


def test_several_options_keep_their_order() -> None:
    raw = bytes(TCP(options=[(MPTCP_NAME, DSS(data_ack=1)), (MPTCP_NAME, MPPrio(backup=1))]))
    assert [type(option) for option in mptcp_options(raw[20:])] == [DSS, MPPrio]


def test_raw_octets_can_still_be_given() -> None:
    raw = bytes(MPJoinSyn(token=5))
    assert bytes(TCP(options=[(MPTCP_KIND, raw[2:])])) == bytes(
        TCP(options=[(MPTCP_NAME, MPJoinSyn(token=5))])
    )
