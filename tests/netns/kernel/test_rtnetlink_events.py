# SPDX-License-Identifier: BSD-3-Clause
"""Links, addresses and default routes of a real namespace, against `ip -j` and its own events.

After every change the model built from events alone must equal a fresh dump; this finds the
changes that the kernel does not report.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TypeVar

import pytest

from mptcpd_ebpf.core import network
from mptcpd_ebpf.core.events import (
    DefaultRouteAdded,
    DefaultRouteRemoved,
    Event,
    EventsLost,
    LinkChanged,
    LinkRemoved,
    LocalAddressChanged,
    LocalAddressRemoved,
    Resynchronised,
)
from mptcpd_ebpf.core.model import World
from mptcpd_ebpf.kernel import rtnetlink
from mptcpd_ebpf.kernel.rtnetlink import RouteEvents
from mptcpd_ebpf.kernel.transport import NETLINK_ROUTE, Requester
from mptcpd_ebpf.lab import Host, Lab
from tests.netns.event_log import EventLog
from tests.waiting import until

E = TypeVar("E", bound=Event)


class Network:
    """A host whose network the test changes, a model from events and a dump."""

    def __init__(self, host: Host, far: Host, events: RouteEvents, requester: Requester) -> None:
        self.host, self.far = host, far
        self.log = EventLog(events)
        self._requester = requester
        self.world = World()
        network.resynchronise(self.world, self.dump(), 0)

    def dump(self) -> Resynchronised:
        return Resynchronised(
            connections=[],
            subflows=[],
            links=rtnetlink.links(self._requester),
            addresses=rtnetlink.addresses(self._requester),
            routes=rtnetlink.default_routes(self._requester),
        )

    def ip(self, arguments: str) -> list[Event]:
        """Runs `ip`, then holds the events' model against a dump; returns the events."""
        self.run(arguments)
        return self.settle()

    def run(self, arguments: str) -> str:
        """Runs `ip` and returns its output."""
        return self.host.run(["ip", *arguments.split()]).stdout

    def until(self, kind: type[E], matches: Callable[[E], bool]) -> E:
        """Waits for an asynchronous event; earlier ones count too."""
        self.log.events = []
        event = self.log.wait(kind, matches)
        for each in self.log.events:
            network.apply(self.world, each, 0)
        return event

    def settle(self) -> list[Event]:
        """Reads until the model equals a dump; returns the events it took.

        IPv4 events come before `ip` returns, IPv6 ones from a kernel worker a moment later.
        """
        self.log.events = []
        applied = 0
        fresh = World()

        def in_step() -> bool:
            nonlocal applied, fresh
            while self.log.take():
                pass
            for event in self.log.events[applied:]:
                network.apply(self.world, event, 0)
            applied = len(self.log.events)
            fresh = World()
            network.resynchronise(fresh, self.dump(), 0)
            return known(self.world) == known(fresh)

        until(in_step, lambda: f"{known(self.world)} is {known(fresh)}")
        return self.log.events

    def index(self, name: str) -> int:
        rows = json.loads(self.run(f"-j link show dev {name}"))
        index: int = rows[0]["ifindex"]
        return index


def known(world: World) -> tuple[object, object, object]:
    """The contents of a dump, without its order."""
    return world.links, world.addresses, set(world.routes)


@pytest.fixture
def net() -> Iterator[Network]:
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(ip="both"))
        with lab.client.entered():
            events = stack.enter_context(RouteEvents.open())
            requester = stack.enter_context(Requester(NETLINK_ROUTE))
        # No link-local addresses, which would change at a time of their own.
        lab.client.sysctl("ipv6.conf.default.addr_gen_mode", 1)
        # The lab does without duplicate address detection; here it is part of the matter.
        lab.client.sysctl("ipv6.conf.default.accept_dad", 1)
        lab.client.sysctl("ipv6.conf.default.dad_transmits", 1)
        made = Network(lab.client, lab.server, events, requester)
        made.run("link add one type veth peer name other")
        made.run("link set one up")
        made.run("link set other up")
        index = made.index("one")
        made.until(LinkChanged, lambda e: e.if_index == index and e.running)
        made.settle()
        yield made


def test_dumps_are_what_ip_shows(net: Network) -> None:
    net.run("-6 address add fd00:9::1/64 dev one nodad")
    net.run("address add 192.0.2.1 peer 192.0.2.9/32 dev one")
    net.run("route add default via 192.0.2.9 metric 7")
    net.run("-6 route add default via fd00:9::2 table 99")
    dump = net.dump()
    shown = json.loads(net.run("-j address show"))
    assert {(link.if_index, link.name) for link in dump.links} == {
        (row["ifindex"], row["ifname"]) for row in shown
    }
    assert {link.name for link in dump.links if link.up} == {
        row["ifname"] for row in shown if "UP" in row["flags"]
    }
    assert {(a.if_index, a.ip, a.prefix_len) for a in dump.addresses} == {
        (row["ifindex"], info["local"], info["prefixlen"])
        for row in shown
        for info in row["addr_info"]
    }
    routes = {(r.ipv6, r.gateway, r.metric, r.table) for r in dump.routes}
    assert (False, "192.0.2.9", 7, 254) in routes
    assert (True, "fd00:9::2", 1024, 99) in routes


def test_the_local_address_of_a_point_to_point_link(net: Network) -> None:
    index = net.index("one")
    (event,) = net.ip("address add 192.0.2.1 peer 192.0.2.9/32 dev one")
    assert event == LocalAddressChanged(if_index=index, ip="192.0.2.1", prefix_len=32)
    (event,) = net.ip("-6 address add fd00:9::1 peer fd00:9::9/128 dev one nodad")
    assert event == LocalAddressChanged(if_index=index, ip="fd00:9::1", prefix_len=128)


def test_an_address_on_two_interfaces_is_removed_with_the_second(net: Network) -> None:
    index = net.index("one")
    net.ip("address add 192.0.2.1/24 dev one")
    net.ip("address add 192.0.2.1/32 dev one")
    events = net.ip("address del 192.0.2.1/32 dev one")
    assert events == [LocalAddressChanged(if_index=index, ip="192.0.2.1", prefix_len=24)]
    events = net.ip("address del 192.0.2.1/24 dev one")
    assert LocalAddressRemoved(if_index=index, ip="192.0.2.1") in events


def test_ipv6_states(net: Network) -> None:
    """Tentative until duplicate address detection has ended; deprecated when its time is over."""
    net.run("-6 address add fd00:9::1/64 dev one")
    ours = "fd00:9::1"
    done = net.until(LocalAddressChanged, lambda e: e.ip == ours and not e.tentative)
    assert not done.deprecated
    first = next(e for e in net.log.events if isinstance(e, LocalAddressChanged))
    assert (first.ip, first.tentative) == (ours, True)
    (event,) = net.ip(f"-6 address change {ours}/64 dev one preferred_lft 0")
    assert isinstance(event, LocalAddressChanged)
    assert event.deprecated


def test_a_duplicate_address_stays_tentative(net: Network) -> None:
    net.run(f"link set other netns {net.far.name}")
    for line in ("link set other up", "-6 address add fd00:9::1/64 dev other nodad"):
        net.far.run(["ip", *line.split()])
    index = net.index("one")
    net.until(LinkChanged, lambda e: e.if_index == index and e.running)
    net.run("-6 address add fd00:9::1/64 dev one")

    def failed() -> bool:
        rows = json.loads(net.run("-j -6 address show dev one"))
        return any(info.get("dadfailed") for row in rows for info in row["addr_info"])

    net.until(
        LocalAddressChanged,
        lambda e: (e.if_index, e.ip) == (index, "fd00:9::1") and e.tentative and failed(),
    )


def test_carrier_renaming_and_removal(net: Network) -> None:
    index = net.index("one")
    net.run("link set other down")
    lost = net.until(LinkChanged, lambda e: e.if_index == index and not e.running)
    assert lost.up
    net.settle()
    # Kernels before 6.2 rename an interface only while it is down.
    net.ip("link set one down")
    net.ip("link set one name renamed")
    assert net.world.links[index].name == "renamed"
    assert LinkRemoved(if_index=index) in net.ip("link del renamed")


def test_routes_that_go_without_a_word(net: Network) -> None:
    """With the interface, with the source address, and by being replaced."""
    index = net.index("one")
    net.ip("address add 192.0.2.1/24 dev one")
    net.ip("address add 192.0.2.200/32 dev lo")

    def gone(gateway: str, metric: int) -> DefaultRouteRemoved:
        return DefaultRouteRemoved(if_index=index, ipv6=False, gateway=gateway, metric=metric)

    def added(gateway: str, metric: int) -> DefaultRouteAdded:
        return DefaultRouteAdded(if_index=index, ipv6=False, gateway=gateway, metric=metric)

    assert net.ip("route add default via 192.0.2.9 metric 5") == [added("192.0.2.9", 5)]
    events = net.ip("route replace default via 192.0.2.8 metric 5")
    assert events == [gone("192.0.2.9", 5), added("192.0.2.8", 5)]
    net.ip("route add default via 192.0.2.9 metric 6 src 192.0.2.200")
    assert gone("192.0.2.9", 6) in net.ip("address del 192.0.2.200/32 dev lo")
    assert gone("192.0.2.8", 5) in net.ip("link set one down")


def test_tables_next_hops_and_foreign_gateways(net: Network) -> None:
    one, other = net.index("one"), net.index("other")
    net.ip("address add 192.0.2.1/24 dev one")
    net.ip("address add 198.51.100.1/24 dev other")
    net.ip("-6 address add fd00:9::1/64 dev one nodad")
    both = net.ip("route add default metric 3 nexthop via 192.0.2.9 nexthop via 198.51.100.9")
    assert both == [
        DefaultRouteAdded(if_index=one, ipv6=False, gateway="192.0.2.9", metric=3),
        DefaultRouteAdded(if_index=other, ipv6=False, gateway="198.51.100.9", metric=3),
    ]
    (event,) = net.ip("-4 route add default via inet6 fd00:9::9 dev one table 1000")
    assert event == DefaultRouteAdded(if_index=one, ipv6=False, gateway="fd00:9::9", table=1000)
    (event,) = net.ip("route add default dev one metric 8")
    assert event == DefaultRouteAdded(if_index=one, ipv6=False, metric=8)
    assert net.ip("route add blackhole default metric 9") == []
    assert net.ip("route add 203.0.113.0/24 via 192.0.2.9") == []
    net.ip("link set other down")


def test_a_message_that_changes_nothing_is_no_event(net: Network) -> None:
    net.ip("address add 192.0.2.1/24 dev one")
    net.ip("link set one mtu 1400")
    assert net.ip("address replace 192.0.2.1/24 dev one") == []


def test_an_overflow_is_reported_and_resynchronised(net: Network) -> None:
    with net.host.entered():
        small = RouteEvents.open(receive_buffer=4096)
    with small:
        lines = [f"address add 192.0.2.{n}/24 dev one" for n in range(1, 100)]
        net.host.batch("ip", [*lines, "route add default via 192.0.2.250 metric 5"])
        log = EventLog(small)
        assert log.wait(EventsLost).source == rtnetlink.SOURCE
        log.drain()
        net.run("route del default via 192.0.2.250 metric 5")
        # Known although its message was lost, by the new dump.
        gone = log.wait(DefaultRouteRemoved)
        assert (gone.gateway, gone.metric) == ("192.0.2.250", 5)
