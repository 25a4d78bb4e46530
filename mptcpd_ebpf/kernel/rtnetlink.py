# SPDX-License-Identifier: BSD-3-Clause
"""The local network of one namespace, and its changes, as core events.

The kernel does not report everything.  An IPv4 route that is removed with its interface or with
its source address is removed without a message (net/ipv4/fib_frontend.c, fib_disable_ip and
fib_sync_down_addr; IPv6 is silent too where net.ipv6.route.skip_notify_on_dev_down is set), and
one that is replaced is reported as the new one only.  `NetworkState` therefore keeps what was
reported and derives what follows; `RouteEvents` asks again for the routes after a link changed or
an address went.

It also keeps quiet about messages that change nothing (a Wi-Fi scan sends a link
message each time), and takes an address for gone only when its last instance is:
the same address may stand twice on an interface, with two prefixes or peers.
"""

import struct
from collections.abc import Iterable
from typing import Self

from mptcpd_ebpf.core.events import (
    DefaultRouteAdded,
    DefaultRouteRemoved,
    Event,
    EventsLost,
    LinkChanged,
    LinkRemoved,
    LocalAddressChanged,
    LocalAddressRemoved,
)
from mptcpd_ebpf.kernel import route_messages as rt
from mptcpd_ebpf.kernel.errors import NetlinkRefused, errno_words
from mptcpd_ebpf.kernel.netlink import NLM_F_REPLACE, Buffer, Request, messages
from mptcpd_ebpf.kernel.transport import (
    NETLINK_ROUTE,
    MessagesLost,
    Requester,
    Subscription,
)

SOURCE = "rtnetlink events"
"""How `EventsLost` names this source."""
RECEIVE_BUFFER = 4 << 20
_BATCH = 256


def links(requester: Requester) -> list[LinkChanged]:
    """All interfaces.  Raises NetlinkRefused."""
    found = (rt.link(part, 0, len(part)) for part in _dump(requester, rt.dump_links()))
    return [link for link in found if link is not None]


def addresses(requester: Requester) -> list[LocalAddressChanged]:
    """All local addresses, IPv4 and IPv6.  Raises NetlinkRefused."""
    return [event for _key, event in _addresses(requester)]


def default_routes(requester: Requester) -> list[DefaultRouteAdded]:
    """Default routes of all tables, IPv4 and IPv6.  Raises NetlinkRefused."""
    return _routes(requester, ipv6=False) + _routes(requester, ipv6=True)


def specific_routes(requester: Requester, *, ipv6: bool) -> list[tuple[str, int]]:
    """The prefixes, as address and bits, to which a route of any table or kind leads that is not a
    default route: subnets of ours, our own addresses, multicast.  Raises NetlinkRefused."""
    parts = _dump(requester, rt.dump_routes(ipv6=ipv6, kind=0))
    found = (rt.destination(part, 0, len(part)) for part in parts)
    return list(dict.fromkeys(each for each in found if each is not None))


def _addresses(requester: Requester) -> list[tuple[rt.AddressKey, LocalAddressChanged]]:
    found = (rt.address(part, 0, len(part)) for part in _dump(requester, rt.dump_addresses()))
    return [address for address in found if address is not None]


def _routes(requester: Requester, *, ipv6: bool) -> list[DefaultRouteAdded]:
    return [
        hop
        for part in _dump(requester, rt.dump_routes(ipv6=ipv6))
        for hop in rt.default_route(part, 0, len(part))
    ]


def _dump(requester: Requester, request: Request) -> list[bytes]:
    reply = requester.ask(request)
    if reply.errno:
        raise NetlinkRefused(
            f"reading the local network: {errno_words(reply.errno)} {reply.message}".rstrip(),
            reply.errno,
        )
    return reply.parts


class NetworkState:
    """The links, addresses and routes reported so far; turns messages into changes. Pure."""

    def __init__(self) -> None:
        self.links: dict[int, LinkChanged] = {}
        self.routes: dict[DefaultRouteAdded, None] = {}
        self._instances: dict[tuple[int, str], dict[rt.AddressKey, LocalAddressChanged]] = {}
        self.routes_uncertain = False
        """Routes may have been removed without a message since this was last cleared."""

    def seed(
        self,
        links: Iterable[LinkChanged],
        addresses: Iterable[tuple[rt.AddressKey, LocalAddressChanged]],
        routes: Iterable[DefaultRouteAdded],
    ) -> None:
        """Starts again from dumps."""
        self.links = {link.if_index: link for link in links}
        self._instances = {}
        for key, event in addresses:
            self._instances.setdefault((key.if_index, key.ip), {})[key] = event
        self.routes = dict.fromkeys(routes)
        self.routes_uncertain = False

    def handle(self, kind: int, flags: int, data: Buffer, start: int, end: int) -> list[Event]:
        """Takes one message.  Raises ValueError or struct.error if it is mangled."""
        if end - start < rt.MINIMUM.get(kind, 0):
            raise ValueError(f"rtnetlink message type {kind} of {end - start} bytes")
        match kind:
            case rt.RTM_NEWLINK | rt.RTM_DELLINK:
                link = rt.link(data, start, end)
                if link is None:
                    return []
                return self._link(link) if kind == rt.RTM_NEWLINK else self._link_gone(link)
            case rt.RTM_NEWADDR | rt.RTM_DELADDR:
                found = rt.address(data, start, end)
                if found is None:
                    return []
                return self._address(*found, gone=kind == rt.RTM_DELADDR)
            case rt.RTM_NEWROUTE:
                hops = rt.default_route(data, start, end)
                return self._route(hops, replaces=bool(flags & NLM_F_REPLACE))
            case rt.RTM_DELROUTE:
                return [
                    self._forget(hop)
                    for hop in rt.default_route(data, start, end)
                    if hop in self.routes
                ]
        return []

    def settle_routes(self, present: Iterable[DefaultRouteAdded]) -> list[Event]:
        """Takes the present default routes, and returns what has changed."""
        now = dict.fromkeys(present)
        gone = [route for route in self.routes if route not in now]
        new = [route for route in now if route not in self.routes]
        self.routes.update(dict.fromkeys(new))
        self.routes_uncertain = False
        return [*map(self._forget, gone), *new]

    def _link(self, link: LinkChanged) -> list[Event]:
        before = self.links.get(link.if_index)
        if before == link:
            return []
        self.links[link.if_index] = link
        if before is not None and (before.up, before.running) != (link.up, link.running):
            self.routes_uncertain = True
        return [link]

    def _link_gone(self, link: LinkChanged) -> list[Event]:
        if self.links.pop(link.if_index, None) is None:
            return []
        self.routes_uncertain = True
        return [LinkRemoved(if_index=link.if_index)]

    def _address(
        self, key: rt.AddressKey, event: LocalAddressChanged, *, gone: bool
    ) -> list[Event]:
        name = (key.if_index, key.ip)
        instances = self._instances.setdefault(name, {})
        if not gone:
            if instances.get(key) == event:
                return []
            instances[key] = event
            return [event]
        known = instances.pop(key, None)
        self.routes_uncertain = True
        if instances:
            return [next(reversed(instances.values()))]
        del self._instances[name]
        return [LocalAddressRemoved(if_index=key.if_index, ip=key.ip)] if known else []

    def _route(self, hops: list[DefaultRouteAdded], *, replaces: bool) -> list[Event]:
        events: list[Event] = []
        if replaces and hops:
            slot = _slot(hops[0])
            replaced = [r for r in self.routes if _slot(r) == slot and r not in hops]
            events += map(self._forget, replaced)
        for hop in hops:
            if hop not in self.routes:
                self.routes[hop] = None
                events.append(hop)
        return events

    def _forget(self, route: DefaultRouteAdded) -> DefaultRouteRemoved:
        del self.routes[route]
        return DefaultRouteRemoved(
            if_index=route.if_index,
            ipv6=route.ipv6,
            gateway=route.gateway,
            metric=route.metric,
            table=route.table,
        )


def _slot(route: DefaultRouteAdded) -> tuple[bool, int, int]:
    """The place in a table that a replacing route takes over."""
    return route.ipv6, route.table, route.metric


class RouteEvents:
    """The subscription to one namespace's links, addresses and routes (the calling thread's)."""

    def __init__(self, subscription: Subscription, requester: Requester) -> None:
        self._subscription = subscription
        self._requester = requester
        self._state = NetworkState()
        self._seed()

    @classmethod
    def open(cls, *, receive_buffer: int = RECEIVE_BUFFER) -> Self:
        """Subscribes first, then reads what is there, so that nothing falls between."""
        subscription = Subscription.open(
            NETLINK_ROUTE, list(rt.GROUPS.values()), receive_buffer=receive_buffer
        )
        requester = Requester(NETLINK_ROUTE)
        try:
            return cls(subscription, requester)
        except BaseException:
            subscription.close()
            requester.close()
            raise

    def fileno(self) -> int:
        """Readable when events wait."""
        return self._subscription.fileno()

    def close(self) -> None:
        """Unsubscribes.  A second time does nothing."""
        self._subscription.close()
        self._requester.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self) -> list[Event]:
        """The events that wait, at most a few hundred; never blocks. Where the kernel dropped
        some, or one is malformed, an `EventsLost` takes their place, and the state has been read
        again.
        """
        events: list[Event] = []
        try:
            for data, length in self._subscription.receive(_BATCH):
                for kind, flags, _sequence, start, end in messages(data, length):
                    events += self._state.handle(kind, flags, data, start, end)
        except (MessagesLost, ValueError, struct.error):
            events.append(EventsLost(source=SOURCE))
            self._subscription.discard()
            self._seed()
        if self._state.routes_uncertain:
            events += self._state.settle_routes(default_routes(self._requester))
        return events

    def _seed(self) -> None:
        self._state.seed(
            links(self._requester), _addresses(self._requester), default_routes(self._requester)
        )
