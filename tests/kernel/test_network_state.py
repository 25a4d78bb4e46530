# SPDX-License-Identifier: BSD-3-Clause
"""What follows from rtnetlink's messages, without a kernel; tests/netns holds it to a real one."""

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcpd_ebpf.core.events import (
    DefaultRouteAdded,
    DefaultRouteRemoved,
    Event,
    LinkChanged,
    LinkRemoved,
    LocalAddressChanged,
    LocalAddressRemoved,
)
from mptcpd_ebpf.kernel import route_messages as rt
from mptcpd_ebpf.kernel.netlink import NLM_F_REPLACE, attribute, u32
from mptcpd_ebpf.kernel.rtnetlink import NetworkState

UP_AND_RUNNING = 0x41
IFLA_IFNAME, IFA_LOCAL, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY = 3, 2, 4, 5, 6
Message = tuple[int, int, bytes]
"""Type, flags, body."""


def link(index: int, *, flags: int = UP_AND_RUNNING, gone: bool = False) -> Message:
    body = rt.IFINFOMSG.pack(0, 1, index, flags, 0) + attribute(IFLA_IFNAME, b"eth\0")
    return rt.RTM_DELLINK if gone else rt.RTM_NEWLINK, 0, body


def address(index: int, ip: str, prefix_len: int = 24, *, gone: bool = False) -> Message:
    body = rt.IFADDRMSG.pack(socket.AF_INET, prefix_len, 0, 0, index)
    body += attribute(IFA_LOCAL, socket.inet_aton(ip))
    return rt.RTM_DELADDR if gone else rt.RTM_NEWADDR, 0, body


def route(
    index: int, gateway: str, metric: int = 0, *, gone: bool = False, replace: bool = False
) -> Message:
    body = rt.RTMSG.pack(socket.AF_INET, 0, 0, 0, 254, 0, 0, 1, 0)
    body += u32(RTA_OIF, index) + u32(RTA_PRIORITY, metric)
    body += attribute(RTA_GATEWAY, socket.inet_aton(gateway))
    kind = rt.RTM_DELROUTE if gone else rt.RTM_NEWROUTE
    return kind, NLM_F_REPLACE if replace else 0, body


def tell(state: NetworkState, message: Message) -> list[Event]:
    kind, flags, body = message
    return state.handle(kind, flags, body, 0, len(body))


def added(index: int, gateway: str, metric: int = 0) -> DefaultRouteAdded:
    return DefaultRouteAdded(if_index=index, ipv6=False, gateway=gateway, metric=metric)


def removed(index: int, gateway: str, metric: int = 0) -> DefaultRouteRemoved:
    return DefaultRouteRemoved(if_index=index, ipv6=False, gateway=gateway, metric=metric)


INDEX = st.integers(1, 3)
IP = st.sampled_from(["192.0.2.1", "192.0.2.2"])
MESSAGES = st.one_of(
    st.builds(link, INDEX, flags=st.sampled_from([0, 1, UP_AND_RUNNING]), gone=st.booleans()),
    st.builds(address, INDEX, IP, st.sampled_from([24, 32]), gone=st.booleans()),
    st.builds(route, INDEX, IP, st.sampled_from([0, 5]), gone=st.booleans(), replace=st.booleans()),
)


@given(st.lists(MESSAGES, max_size=30))
def test_the_same_message_again_is_no_news(messages: list[Message]) -> None:
    state = NetworkState()
    for message in messages:
        tell(state, message)
        if message[0] not in (rt.RTM_DELADDR,):
            assert tell(state, message) == []


@given(st.lists(MESSAGES, max_size=30))
def test_events_alone_keep_track(messages: list[Message]) -> None:
    """A model built from events alone has the same links, addresses and routes."""
    state = NetworkState()
    links: dict[int, LinkChanged] = {}
    addresses: set[tuple[int, str]] = set()
    routes: set[tuple[int, str | None, int]] = set()
    truth: set[tuple[int, str, int]] = set()
    for message in messages:
        for event in tell(state, message):
            match event:
                case LinkChanged():
                    links[event.if_index] = event
                case LinkRemoved():
                    del links[event.if_index]
                case LocalAddressChanged():
                    addresses.add((event.if_index, event.ip))
                case LocalAddressRemoved():
                    addresses.remove((event.if_index, event.ip))
                case DefaultRouteAdded():
                    assert (event.if_index, event.gateway, event.metric) not in routes
                    routes.add((event.if_index, event.gateway, event.metric))
                case DefaultRouteRemoved():
                    routes.remove((event.if_index, event.gateway, event.metric))
        if message[0] in (rt.RTM_NEWADDR, rt.RTM_DELADDR):
            found = rt.address(message[2], 0, len(message[2]))
            assert found is not None
            change = truth.add if message[0] == rt.RTM_NEWADDR else truth.discard
            change(found[0][:3])
    assert links == state.links
    assert routes == {(r.if_index, r.gateway, r.metric) for r in state.routes}
    assert addresses == {(index, ip) for index, ip, _prefix in truth}


def test_a_replaced_route_is_gone() -> None:
    state = NetworkState()
    assert tell(state, route(1, "192.0.2.1", 5)) == [added(1, "192.0.2.1", 5)]
    assert tell(state, route(1, "192.0.2.2", 7)) == [added(1, "192.0.2.2", 7)]
    assert tell(state, route(2, "192.0.2.9", 5, replace=True)) == [
        removed(1, "192.0.2.1", 5),
        added(2, "192.0.2.9", 5),
    ]


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(link(1, flags=0), id="link down"),
        pytest.param(link(1, gone=True), id="link removed"),
        pytest.param(address(1, "192.0.2.7", gone=True), id="address removed"),
    ],
)
def test_routes_are_requested_again_after_a_loss(message: Message) -> None:
    state = NetworkState()
    for told in (link(1), address(1, "192.0.2.7"), route(1, "192.0.2.1"), route(1, "192.0.2.2")):
        tell(state, told)
    assert not state.routes_uncertain
    tell(state, message)
    assert state.routes_uncertain
    now = [added(1, "192.0.2.2"), added(2, "192.0.2.3")]
    assert state.settle_routes(now) == [removed(1, "192.0.2.1"), added(2, "192.0.2.3")]
    assert not state.routes_uncertain
    assert tell(state, route(1, "192.0.2.1", gone=True)) == [], "its late message is no news"


@pytest.mark.parametrize("kind", sorted(rt.MINIMUM))
def test_a_message_that_is_too_short_is_refused(kind: int) -> None:
    with pytest.raises((ValueError, struct.error)):
        NetworkState().handle(kind, 0, bytes(4), 0, 4)


def test_foreign_messages_are_passed_over() -> None:
    assert NetworkState().handle(68, 0, bytes(64), 0, 64) == []
