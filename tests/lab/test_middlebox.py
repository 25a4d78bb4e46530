# SPDX-License-Identifier: BSD-3-Clause
"""A forged reset is a valid packet that its receiver must accept."""

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from mptcpd_ebpf.lab.middlebox import _tcp_of, checksum, reset_for


@pytest.mark.parametrize(
    "ip", [IP(src="10.1.1.2", dst="10.1.2.2"), IPv6(src="fd00:1:1::2", dst="fd00:1:2::2")]
)
def test_a_reset_has_the_sequence_number_that_the_sender_expects(ip: IP | IPv6) -> None:
    seen = (
        Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
        / ip
        / TCP(sport=40000, dport=443, seq=1000, ack=7777, flags="PA", options=[("NOP", None)] * 4)
        / b"data"
    )
    frame = bytes(seen)
    at = _tcp_of(frame)
    assert at is not None
    reset = Ether(reset_for(frame, at))
    assert (reset.src, reset.dst) == (seen.dst, seen.src)
    assert (reset.payload.src, reset.payload.dst) == (ip.dst, ip.src)
    assert (reset[TCP].sport, reset[TCP].dport) == (443, 40000)
    assert reset[TCP].seq == 7777
    assert reset[TCP].flags == "R"
    sums = [reset[TCP].chksum, getattr(reset.payload, "chksum", None)]
    del reset[TCP].chksum
    if isinstance(ip, IP):
        del reset[IP].chksum
    again = Ether(bytes(reset))
    assert sums == [again[TCP].chksum, getattr(again.payload, "chksum", None)]


def test_packets_other_than_tcp_are_ignored() -> None:
    assert _tcp_of(bytes(Ether() / IP(proto=17) / bytes(20))) is None
    assert _tcp_of(bytes(Ether(type=0x0806)) + bytes(40)) is None


def test_the_checksum_of_rfc_1071() -> None:
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D
