# SPDX-License-Identifier: BSD-3-Clause
"""rtnetlink as records: links, local addresses and default routes out of the kernel's messages.

Pure: bytes in, records out; `rtnetlink` does the asking and listening.  A record is the
core event that states the fact, beside what the kernel's bookkeeping needs and the
core does not (`AddressKey`).  Numbers are those of include/uapi/linux/rtnetlink.h,
if_link.h, if_addr.h and if.h.

A default route has a destination of length 0 and type unicast; blackhole and
unreachable ones lead nowhere and are no routes here.  One with several next hops is
one record per next hop.
"""

import socket
from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from mptcpd_ebpf.core.events import DefaultRouteAdded, LinkChanged, LocalAddressChanged
from mptcpd_ebpf.core.names import name_of
from mptcpd_ebpf.kernel.netlink import (
    Buffer,
    Request,
    attribute,
    attributes,
    number,
    u32,
)

RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
RTM_NEWADDR = 20
RTM_DELADDR = 21
RTM_GETADDR = 22
RTM_NEWROUTE = 24
RTM_DELROUTE = 25
RTM_GETROUTE = 26

GROUPS = {"link": 1, "ipv4 address": 5, "ipv4 route": 7, "ipv6 address": 9, "ipv6 route": 11}
"""Multicast groups, RTNLGRP_*."""

IFINFOMSG = Struct("=BxHiII")
"""Family, type, index, flags, change."""
IFADDRMSG = Struct("=BBBBI")
"""Family, prefix length, flags, scope, index."""
RTMSG = Struct("=BBBBBBBBI")
"""Family, destination length, source length, tos, table, protocol, scope, type, flags."""
RTNEXTHOP = Struct("=HBBi")
"""Length, flags, hops, interface index."""

_IFF_UP = 0x1
_IFF_LOOPBACK = 0x8
_IFF_POINTOPOINT = 0x10
_IFF_RUNNING = 0x40
_IFLA_IFNAME = 3
_IFLA_EXT_MASK = 29
_RTEXT_FILTER_SKIP_STATS = 1 << 3

_IFA_ADDRESS = 1
_IFA_LOCAL = 2
_IFA_FLAGS = 8
_IFA_F_TEMPORARY = 0x01  # of an IPv4 address the same bit says "secondary"
_IFA_F_OPTIMISTIC = 0x04
_IFA_F_DADFAILED = 0x08
_IFA_F_DEPRECATED = 0x20
_IFA_F_TENTATIVE = 0x40

_RTA_DST = 1
_RTA_SRC = 2
_RTA_OIF = 4
_RTA_GATEWAY = 5
_RTA_PRIORITY = 6
_RTA_MULTIPATH = 9
_RTA_TABLE = 15
_RTA_VIA = 18
_RTN_UNICAST = 1
_RTM_F_CLONED = 0x200
_RTNH_F_DEAD = 0x1
_VIA_FAMILY = Struct("=H")


class AddressKey(NamedTuple):
    """What identifies an address for the kernel."""

    if_index: int
    ip: str
    prefix_len: int
    peer: bytes


def link(data: Buffer, start: int, end: int) -> LinkChanged | None:
    """None for a bridge's message about its ports, which has the same type."""
    family, _type, index, flags, _change = IFINFOMSG.unpack_from(data, start)
    if family != socket.AF_UNSPEC:
        return None
    found = attributes(data, start + IFINFOMSG.size, end)
    return LinkChanged(
        if_index=index,
        name=name_of(found.get(_IFLA_IFNAME, b"")),
        up=bool(flags & _IFF_UP),
        running=bool(flags & _IFF_RUNNING),
        loopback=bool(flags & _IFF_LOOPBACK),
        point_to_point=bool(flags & _IFF_POINTOPOINT),
    )


def address(data: Buffer, start: int, end: int) -> tuple[AddressKey, LocalAddressChanged] | None:
    """None for a family that is not IP."""
    family, prefix_len, flags, scope, index = IFADDRMSG.unpack_from(data, start)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    found = attributes(data, start + IFADDRMSG.size, end)
    # On a point-to-point link IFA_ADDRESS is the peer's; ours is IFA_LOCAL. Elsewhere
    # they are equal, or (IPv6) IFA_LOCAL is absent.
    raw = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if raw is None:
        return None
    if _IFA_FLAGS in found:
        flags = number(found[_IFA_FLAGS])
    ip = socket.inet_ntop(family, raw)
    unverified = flags & _IFA_F_TENTATIVE and not flags & _IFA_F_OPTIMISTIC
    return AddressKey(index, ip, prefix_len, found.get(_IFA_ADDRESS, b"")), LocalAddressChanged(
        if_index=index,
        ip=ip,
        prefix_len=prefix_len,
        scope=scope,
        tentative=bool(unverified or flags & _IFA_F_DADFAILED),
        deprecated=bool(flags & _IFA_F_DEPRECATED),
        temporary=family == socket.AF_INET6 and bool(flags & _IFA_F_TEMPORARY),
    )


def destination(data: Buffer, start: int, end: int) -> tuple[str, int] | None:
    """The prefix that a route leads to, as address and bits; None for a default route."""
    family, dst_len, *_, flags = RTMSG.unpack_from(data, start)
    if not dst_len or flags & _RTM_F_CLONED or family not in (socket.AF_INET, socket.AF_INET6):
        return None
    return socket.inet_ntop(family, attributes(data, start + RTMSG.size, end)[_RTA_DST]), dst_len


def default_route(data: Buffer, start: int, end: int) -> list[DefaultRouteAdded]:
    """The next hops of a default route; empty for every other route."""
    family, dst_len, _src_len, _tos, table, _protocol, _scope, kind, flags = RTMSG.unpack_from(
        data, start
    )
    if dst_len or kind != _RTN_UNICAST or flags & _RTM_F_CLONED:
        return []
    if family not in (socket.AF_INET, socket.AF_INET6):
        return []
    found = attributes(data, start + RTMSG.size, end)
    table = number(found[_RTA_TABLE]) if _RTA_TABLE in found else table
    metric = number(found.get(_RTA_PRIORITY, b""))

    def hop(if_index: int, inner: dict[int, bytes]) -> DefaultRouteAdded:
        return DefaultRouteAdded(
            if_index=if_index,
            ipv6=family == socket.AF_INET6,
            gateway=_gateway(family, inner),
            metric=metric,
            table=table,
        )

    if _RTA_OIF in found:
        return [] if flags & _RTNH_F_DEAD else [hop(number(found[_RTA_OIF]), found)]
    return [
        hop(if_index, inner)
        for if_index, hop_flags, inner in _next_hops(found.get(_RTA_MULTIPATH, b""))
        if not hop_flags & _RTNH_F_DEAD
    ]


def _gateway(family: int, found: dict[int, bytes]) -> str | None:
    if _RTA_GATEWAY in found:
        return socket.inet_ntop(family, found[_RTA_GATEWAY])
    if _RTA_VIA in found:  # an IPv4 route through an IPv6 gateway
        via = found[_RTA_VIA]
        return socket.inet_ntop(_VIA_FAMILY.unpack_from(via)[0], via[_VIA_FAMILY.size :])
    return None


def _next_hops(data: bytes) -> Iterator[tuple[int, int, dict[int, bytes]]]:
    start = 0
    while start + RTNEXTHOP.size <= len(data):
        length, flags, _hops, if_index = RTNEXTHOP.unpack_from(data, start)
        if length < RTNEXTHOP.size or start + length > len(data):
            raise ValueError(f"next hop of {length} bytes at offset {start} of {len(data)}")
        yield if_index, flags, attributes(data, start + RTNEXTHOP.size, start + length)
        start += (length + 3) & ~3


def dump_links() -> Request:
    body = IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    return Request(
        RTM_GETLINK,
        body + u32(_IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS),
        dump=True,
        fixed=IFINFOMSG.size,
    )


def dump_addresses() -> Request:
    body = IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    return Request(RTM_GETADDR, body, dump=True, fixed=IFADDRMSG.size)


def dump_routes(*, ipv6: bool, if_index: int = 0, kind: int = _RTN_UNICAST) -> Request:
    """All tables' unicast routes, or those through one interface; `kind` 0: of every kind."""
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    body = RTMSG.pack(family, 0, 0, 0, 0, 0, 0, kind, 0)
    if if_index:
        body += u32(_RTA_OIF, if_index)
    return Request(RTM_GETROUTE, body, dump=True, fixed=RTMSG.size)


def find_route(source: str, destination: str) -> Request:
    """Asks for the route that a packet from an address of ours would take."""
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    ends = [socket.inet_pton(family, ip) for ip in (source, destination)]
    bits = 8 * len(ends[0])
    body = RTMSG.pack(family, bits, bits, 0, 0, 0, 0, 0, 0)
    body += attribute(_RTA_SRC, ends[0]) + attribute(_RTA_DST, ends[1])
    return Request(RTM_GETROUTE, body, fixed=RTMSG.size)


def out_interface(route: Buffer) -> int | None:
    """The index of the interface that a found route leaves by."""
    found = attributes(route, RTMSG.size, len(route))
    return number(found[_RTA_OIF]) if _RTA_OIF in found else None


MINIMUM = {
    RTM_NEWLINK: IFINFOMSG.size,
    RTM_DELLINK: IFINFOMSG.size,
    RTM_NEWADDR: IFADDRMSG.size,
    RTM_DELADDR: IFADDRMSG.size,
    RTM_NEWROUTE: RTMSG.size,
    RTM_DELROUTE: RTMSG.size,
}
"""Shortest body of each message type that is read."""
