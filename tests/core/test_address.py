# SPDX-License-Identifier: BSD-3-Clause
"""One address has one spelling, whichever source reported it."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcpd_ebpf.core.address import SockAddr, canonical, is_ipv6, parse_sockaddr, unmapped

ADDRESSES = st.ip_addresses().map(str)
PORTS = st.integers(0, 65535)


@given(ADDRESSES, PORTS)
def test_printed_and_parsed_is_the_same(ip: str, port: int) -> None:
    address = SockAddr(canonical(ip), port)
    assert parse_sockaddr(str(address)) == address


@given(st.ip_addresses(v=4).map(str))
def test_a_mapped_address_is_the_ipv4_address(ip: str) -> None:
    assert canonical(f"::ffff:{ip}") == ip
    assert canonical(f"::FFFF:{ip}") == ip
    assert not is_ipv6(canonical(f"::ffff:{ip}"))


@given(st.binary(min_size=16, max_size=16))
def test_the_cheap_spelling_of_what_the_kernel_sent_is_the_canonical_one(raw: bytes) -> None:
    text = socket.inet_ntop(socket.AF_INET6, raw)
    # inet_ntop and ipaddress differ in "compatible" addresses only (::a.b.c.d, RFC 4291: obsolete).
    if raw[:12] != bytes(12):
        assert unmapped(text) == canonical(text)


@given(st.binary(min_size=4, max_size=4))
def test_mapped_as_the_kernel_sends_it(raw: bytes) -> None:
    text = socket.inet_ntop(socket.AF_INET6, bytes(10) + b"\xff\xff" + raw)
    assert unmapped(text) == socket.inet_ntop(socket.AF_INET, raw)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("10.0.0.1", "no port"),
        ("10.0.0.1:", "no port"),
        ("10.0.0.1:65536", "no port"),
        ("10.0.0.1:-1", "no port"),
        ("10.0.0.1:\u0661", "no port"),
        ("fe80::1:80", "write an IPv6 address and port as"),
        ("[fe80::1:80", "write an IPv6 address and port as"),
        ("localhost:80", "is no IP address"),
        ("10.0.0.256:80", "is no IP address"),
        (":80", "is no IP address"),
    ],
)
def test_what_is_no_address_is_refused_by_name(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as refusal:
        parse_sockaddr(text)
    assert repr(text) in str(refusal.value)


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        parsed = parse_sockaddr(text)
    except ValueError:
        return
    assert parse_sockaddr(str(parsed)) == parsed
