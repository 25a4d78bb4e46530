# SPDX-License-Identifier: BSD-3-Clause
"""rtnetlink messages written by pyroute2's declared classes, read as core events."""

import ipaddress
import socket
import struct
from contextlib import suppress
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from mptcpd_ebpf.core.events import DefaultRouteAdded, LinkChanged
from mptcpd_ebpf.kernel import route_messages as rt
from mptcpd_ebpf.kernel.netlink import HEADER, Pending

UP, LOOPBACK, POINT_TO_POINT, RUNNING = 0x1, 0x8, 0x10, 0x40
TEMPORARY, OPTIMISTIC, DADFAILED, DEPRECATED, TENTATIVE, PERMANENT = 1, 4, 8, 0x20, 0x40, 0x80
AF_BRIDGE = 7
INDEX = st.integers(1, 2**31 - 1)
IP4 = st.ip_addresses(v=4).map(str)
IP6 = st.ip_addresses(v=6).map(str)
METRIC = st.integers(0, 2**32 - 1)


def encoded(message: Any, attributes: list[list[Any]], **fields: Any) -> bytes:
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = attributes
    message.encode()
    return bytes(message.data)[HEADER.size :]


def canonical(ip: str) -> str:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    return socket.inet_ntop(family, socket.inet_pton(family, ip))


@given(INDEX, st.from_regex(r"[a-z][a-z0-9.-]{0,14}", fullmatch=True), st.integers(0, 0xFFFF))
def test_links(index: int, name: str, flags: int) -> None:
    body = encoded(ifinfmsg(), [["IFLA_IFNAME", name]], family=0, index=index, flags=flags)
    assert rt.link(body, 0, len(body)) == LinkChanged(
        if_index=index,
        name=name,
        up=bool(flags & UP),
        running=bool(flags & RUNNING),
        loopback=bool(flags & LOOPBACK),
        point_to_point=bool(flags & POINT_TO_POINT),
    )


def test_a_bridges_word_about_its_port_is_no_link() -> None:
    body = encoded(ifinfmsg(), [["IFLA_IFNAME", "eth0"]], family=AF_BRIDGE, index=3)
    assert rt.link(body, 0, len(body)) is None


@given(
    INDEX,
    st.tuples(IP4, IP4) | st.tuples(IP6, IP6),
    st.integers(0, 32),
    st.sampled_from([0, 200, 253, 254]),
    st.integers(0, 0xFFF),
    st.booleans(),
)
def test_addresses(
    index: int, ips: tuple[str, str], prefix_len: int, scope: int, flags: int, to_point: bool
) -> None:
    ours, peer = ips
    v6 = ":" in ours
    family = socket.AF_INET6 if v6 else socket.AF_INET
    attributes: list[list[Any]] = [
        ["IFA_FLAGS", flags],
        ["IFA_ADDRESS", peer if to_point else ours],
    ]
    if to_point or not v6:
        attributes.append(["IFA_LOCAL", ours])
    body = encoded(
        ifaddrmsg(), attributes, family=family, prefixlen=prefix_len, scope=scope, index=index
    )
    found = rt.address(body, 0, len(body))
    assert found is not None
    key, event = found
    assert (event.if_index, event.ip, event.prefix_len, event.scope) == (
        index,
        canonical(ours),
        prefix_len,
        scope,
    )
    assert key[:3] == (index, event.ip, prefix_len)
    waiting = bool(flags & TENTATIVE) and not flags & OPTIMISTIC
    assert event.tentative is (waiting or bool(flags & DADFAILED))
    assert event.deprecated is bool(flags & DEPRECATED)
    # The same bit means "secondary" on an IPv4 address.
    assert event.temporary is (v6 and bool(flags & TEMPORARY))


def route(ipv6: bool, attributes: list[list[Any]], **fields: Any) -> list[DefaultRouteAdded]:
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    given = {"family": family, "dst_len": 0, "table": 254, "type": 1, "flags": 0} | fields
    body = encoded(rtmsg(), attributes, **given)
    return rt.default_route(body, 0, len(body))


@given(INDEX, st.none() | IP4 | IP6, METRIC, st.integers(1, 2**32 - 1))
def test_default_routes(index: int, gateway: str | None, metric: int, table: int) -> None:
    ipv6 = gateway is not None and ":" in gateway
    attributes: list[list[Any]] = [["RTA_OIF", index], ["RTA_TABLE", table]]
    if gateway:
        attributes.append(["RTA_GATEWAY", gateway])
    if metric:
        attributes.append(["RTA_PRIORITY", metric])
    assert route(ipv6, attributes, table=min(table, 252)) == [
        DefaultRouteAdded(
            if_index=index,
            ipv6=ipv6,
            gateway=canonical(gateway) if gateway else None,
            metric=metric,
            table=table,
        )
    ]


def test_what_leads_nowhere_or_not_everywhere_is_no_default_route() -> None:
    oif = [["RTA_OIF", 3]]
    assert route(False, oif)
    for fields in (
        {"dst_len": 24},
        {"type": 6},  # RTN_BLACKHOLE
        {"flags": 0x200},  # RTM_F_CLONED
        {"flags": 1},  # RTNH_F_DEAD
        {"family": 129},  # RTNL_FAMILY_IPMR
    ):
        assert route(False, oif, **fields) == []


@given(st.one_of(st.tuples(IP4, st.integers(0, 32)), st.tuples(IP6, st.integers(0, 128))))
def test_destinations(prefix: tuple[str, int]) -> None:
    ip, bits = prefix
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    body = encoded(rtmsg(), [["RTA_DST", ip]], family=family, dst_len=bits, type=2)
    expected = (canonical(ip), bits) if bits else None
    assert rt.destination(body, 0, len(body)) == expected


def test_a_cached_route_and_that_of_another_protocol_have_no_destination() -> None:
    for fields in ({"flags": 0x200}, {"family": 129}):
        body = encoded(rtmsg(), [], **{"family": socket.AF_INET, "dst_len": 8} | fields)
        assert rt.destination(body, 0, len(body)) is None


@given(st.lists(st.tuples(INDEX, IP4, st.booleans()), min_size=1, max_size=4))
def test_next_hops(hops: list[tuple[int, str, bool]]) -> None:
    multipath = [
        {
            "oif": index,
            "hops": 0,
            "flags": 1 if dead else 0,
            "attrs": [["RTA_GATEWAY", gateway]],
        }
        for index, gateway, dead in hops
    ]
    assert route(False, [["RTA_MULTIPATH", multipath], ["RTA_PRIORITY", 7]]) == [
        DefaultRouteAdded(if_index=index, ipv6=False, gateway=gateway, metric=7)
        for index, gateway, dead in hops
        if not dead
    ]


def test_an_ipv4_route_through_an_ipv6_gateway() -> None:
    via = {"family": socket.AF_INET6, "addr": "fe80::1"}
    (found,) = route(False, [["RTA_OIF", 3], ["RTA_VIA", via]])
    assert (found.ipv6, found.gateway) == (False, str(ipaddress.ip_address("fe80::1")))


def test_dumps_are_what_pyroute2_reads() -> None:
    for request, kind in (
        (rt.dump_links(), ifinfmsg),
        (rt.dump_addresses(), ifaddrmsg),
        (rt.dump_routes(ipv6=True), rtmsg),
    ):
        message = kind(Pending(request, 9).encode())
        message.decode()
        assert message["header"]["sequence_number"] == 9
        assert message["header"]["flags"] == 0x301
    assert message["family"] == socket.AF_INET6


def test_the_question_for_a_route_is_what_pyroute2_reads() -> None:
    for source, destination, family in (
        ("10.0.0.1", "10.9.0.2", socket.AF_INET),
        ("fd00::1", "fd00:9::2", socket.AF_INET6),
    ):
        message = rtmsg(Pending(rt.find_route(source, destination), 9).encode())
        message.decode()
        assert message["header"]["flags"] == 0x5
        assert message["family"] == family
        assert message["src_len"] == message["dst_len"] == (32 if family == socket.AF_INET else 128)
        assert message.get_attr("RTA_SRC") == source
        assert message.get_attr("RTA_DST") == destination


@given(st.binary(max_size=80), st.sampled_from(sorted(rt.MINIMUM)))
def test_garbage_is_refused_or_read(data: bytes, kind: int) -> None:
    readers = {
        rt.RTM_NEWLINK: rt.link,
        rt.RTM_NEWADDR: rt.address,
        rt.RTM_NEWROUTE: rt.default_route,
    }
    with suppress(ValueError, struct.error):
        readers.get(kind, rt.link)(data, 0, len(data))
