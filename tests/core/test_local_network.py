# SPDX-License-Identifier: BSD-3-Clause
"""Links, addresses, default routes and listeners."""

from typing import Any

import pytest

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.configuration import CoreConfig
from mptcpd_ebpf.core.model import World
from mptcpd_ebpf.testing import configured
from tests.core.scenario import Listener, truth


def link(if_index: int = 2, name: str = "wan0", **more: Any) -> ev.LinkChanged:
    values: dict[str, Any] = {"up": True, "running": True} | more
    return ev.LinkChanged(if_index=if_index, name=name, **values)


def address(ip: str = "10.0.1.2", if_index: int = 2, **more: Any) -> ev.LocalAddressChanged:
    return ev.LocalAddressChanged(if_index=if_index, ip=ip, prefix_len=24, **more)


def route(if_index: int = 2, ipv6: bool = False, **more: Any) -> ev.DefaultRouteAdded:
    return ev.DefaultRouteAdded(if_index=if_index, ipv6=ipv6, **more)


def usable(world: World) -> list[str]:
    return [address.ip for address in world.usable_addresses()]


def test_an_address_is_usable_on_a_running_link_whichever_came_first() -> None:
    for order in ([link(), address()], [address(), link()]):
        assert usable(Listener(*order).tracker.world) == ["10.0.1.2"]


@pytest.mark.parametrize(
    "order",
    [
        [link(up=False), address()],
        [link(running=False), address()],
        [link(loopback=True), address()],
        [link(), address(tentative=True)],
        [link(), address(deprecated=True)],
        [link(), address("fe80::1", scope=253)],
        [link(), address("127.0.0.5", scope=254)],
        [link(), address("169.254.7.7")],
        [link(3), address()],
        [link(), address(), ev.LocalAddressRemoved(if_index=2, ip="10.0.1.2")],
        [link(), address(), ev.LinkRemoved(if_index=2)],
        [link(), address(), link(running=False)],
    ],
)
def test_unusable(order: list[ev.Event]) -> None:
    assert usable(Listener(*order).tracker.world) == []


@pytest.mark.parametrize(
    ("allow", "deny", "left"),
    [
        ([], [], ["10.0.1.2", "10.0.2.2"]),
        ([], ["wan*"], ["10.0.2.2"]),
        (["wan?"], [], ["10.0.1.2"]),
        (["*0"], ["lte0"], ["10.0.1.2"]),
        (["WAN0"], [], []),
    ],
)
def test_interfaces_that_are_not_allowed_are_not_used(
    allow: list[str], deny: list[str], left: list[str]
) -> None:
    net = Listener(link(), address(), link(3, "lte0"), address("10.0.2.2", 3))
    chosen = configured(config=CoreConfig(allowed_interfaces=allow, denied_interfaces=deny))
    assert net.tell(chosen) == []
    assert usable(net.tracker.world) == left
    net.tell(configured(config=CoreConfig()))
    assert usable(net.tracker.world) == ["10.0.1.2", "10.0.2.2"]


def test_an_address_comes_again_when_it_is_usable() -> None:
    net = Listener(link())
    assert net.tell(address("2001:db8::1", tentative=True)) == ["new_local_address"]
    assert usable(net.tracker.world) == []
    assert net.tell(address("2001:db8::1")) == ["new_local_address"]
    assert usable(net.tracker.world) == ["2001:db8::1"]
    assert net.tell(address("2001:db8::1")) == []


def test_links_are_reported_when_they_change() -> None:
    net = Listener()
    assert net.tell(link()) == ["new_interface"]
    assert net.tell(link()) == []
    assert net.tell(link(running=False)) == ["update_interface"]
    assert net.tell(ev.LinkRemoved(if_index=2)) == ["delete_interface"]
    assert net.tell(ev.LinkRemoved(if_index=2)) == []


def test_a_removed_link_takes_its_addresses_and_routes_along() -> None:
    net = Listener(link(), address(), route(), link(3, "lte0"), address("10.0.2.2", 3), route(3))
    assert net.tell(ev.LinkRemoved(if_index=2)) == [
        "delete_local_address",
        "delete_default_route",
        "delete_interface",
    ]
    world = net.tracker.world
    assert usable(world) == ["10.0.2.2"]
    assert (world.has_default_route(2, "10.0.1.2"), world.has_default_route(3, "10.0.2.2")) == (
        False,
        True,
    )


def test_one_address_on_two_interfaces_stays_when_one_loses_it() -> None:
    net = Listener(link(), address(), link(3, "lte0"), address(if_index=3))
    net.tell(ev.LocalAddressRemoved(if_index=2, ip="10.0.1.2"))
    assert net.tracker.world.interface_of("10.0.1.2") == 3


def test_default_routes_are_distinguished_by_family_metric_and_gateway() -> None:
    net = Listener()
    assert (
        net.tell(route(), route(metric=100), route(gateway="10.0.1.1")) == ["new_default_route"] * 3
    )
    assert net.tell(route()) == []
    assert not net.tracker.world.has_default_route(2, "2001:db8::1")
    removed = ev.DefaultRouteRemoved(if_index=2, ipv6=False)
    assert net.tell(removed, removed) == ["delete_default_route"]
    assert net.tracker.world.has_default_route(2, "10.0.1.2")


def test_listeners_are_counted() -> None:
    net = Listener()
    local = SockAddr("0.0.0.0", 443)
    net.tell(ev.ListenerCreated(local=local), ev.ListenerCreated(local=local))
    net.tell(ev.ListenerClosed(local=local))
    assert net.tracker.world.listeners == {local: 1}
    net.tell(ev.ListenerClosed(local=local), ev.ListenerClosed(local=local))
    assert net.tracker.world.listeners == {}


def test_a_resynchronisation_reports_the_difference() -> None:
    net = Listener(link(), address(), route(), link(3, "lte0"), address("10.0.2.2", 3), route(3))
    told = net.tell(
        truth(
            connections=[],
            links=[link(running=False), link(4, "sat0")],
            addresses=[address(), address("10.0.3.2", 4)],
            routes=[route(4)],
        )
    )
    assert told == [
        "delete_local_address",
        "delete_default_route",
        "delete_interface",
        "update_interface",
        "new_interface",
        "new_local_address",
        "delete_default_route",
        "new_default_route",
    ]
    assert usable(net.tracker.world) == ["10.0.3.2"]
