# SPDX-License-Identifier: BSD-3-Clause
"""The local network's part of the model: links, addresses, default routes, listeners, endpoints.

The configuration states which interfaces and addresses may be used (`Configured`).
"""

from collections.abc import Callable
from typing import Any

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.model import DefaultRoute, Link, LocalAddress, World
from mptcpd_ebpf.core.plugin import Notice, Plugin


def apply(world: World, event: ev.Event, now: int) -> list[Notice]:
    """Brings links, addresses, routes or listeners up to date with one event."""
    handler = _APPLY.get(type(event))
    if isinstance(event, ev.LocalAddressChanged):
        notices = _address_changed(world, event, now)
    elif handler is not None:
        notices = handler(world, event)
    else:
        return []
    if notices or isinstance(event, ev.Configured):
        world.network_changed()
    return notices


def resynchronise(world: World, event: ev.Resynchronised, now: int) -> list[Notice]:
    """Replaces links, addresses and routes by the complete state; notices report the difference."""
    notices: list[Notice] = []
    links = {link.if_index for link in event.links}
    for if_index in [known for known in world.links if known not in links]:
        notices += _link_removed(world, ev.LinkRemoved(if_index=if_index))
    for link in event.links:
        notices += _link_changed(world, link)
    addresses = {(address.if_index, address.ip) for address in event.addresses}
    for if_index, ip in [known for known in world.addresses if known not in addresses]:
        notices += _address_removed(world, ev.LocalAddressRemoved(if_index=if_index, ip=ip))
    for address in event.addresses:
        notices += _address_changed(world, address, now, existing=event.at_start)
    routes = {_route(route) for route in event.routes}
    for route in [known for known in world.routes if known not in routes]:
        del world.routes[route]
        notices.append(Notice(Plugin.delete_default_route, (route,)))
    for new in event.routes:
        notices += _route_added(world, new)
    world.network_changed()
    return notices


def _link_changed(world: World, event: ev.LinkChanged) -> list[Notice]:
    known = event.if_index in world.links
    link = Link(
        event.if_index,
        event.name,
        event.up,
        event.running,
        event.loopback,
        event.point_to_point,
    )
    if known and world.links[event.if_index] == link:
        return []
    world.links[event.if_index] = link
    return [Notice(Plugin.update_interface if known else Plugin.new_interface, (link,))]


def _link_removed(world: World, event: ev.LinkRemoved) -> list[Notice]:
    link = world.links.pop(event.if_index, None)
    if link is None:
        return []
    notices = []
    for address in [a for a in world.addresses.values() if a.if_index == event.if_index]:
        del world.addresses[address.if_index, address.ip]
        notices.append(Notice(Plugin.delete_local_address, (address,)))
    for route in [r for r in world.routes if r.if_index == event.if_index]:
        del world.routes[route]
        notices.append(Notice(Plugin.delete_default_route, (route,)))
    notices.append(Notice(Plugin.delete_interface, (link,)))
    return notices


def _address_changed(
    world: World, event: ev.LocalAddressChanged, now: int, *, existing: bool = False
) -> list[Notice]:
    key = (event.if_index, event.ip)
    known = world.addresses.get(key)
    address = LocalAddress(
        event.if_index,
        event.ip,
        event.prefix_len,
        event.scope,
        event.tentative,
        event.deprecated,
        event.temporary,
        known.existing if known is not None else existing,
        known.since if known is not None else None if existing else now,
    )
    if known == address:
        return []
    world.addresses[key] = address
    return [Notice(Plugin.new_local_address, (address,))]


def _address_removed(world: World, event: ev.LocalAddressRemoved) -> list[Notice]:
    address = world.addresses.pop((event.if_index, event.ip), None)
    return [Notice(Plugin.delete_local_address, (address,))] if address is not None else []


def _route_added(world: World, event: ev.DefaultRouteAdded) -> list[Notice]:
    route = _route(event)
    if route in world.routes:
        return []
    world.routes[route] = None
    return [Notice(Plugin.new_default_route, (route,))]


def _route_removed(world: World, event: ev.DefaultRouteRemoved) -> list[Notice]:
    route = _route(event)
    if route not in world.routes:
        return []
    del world.routes[route]
    return [Notice(Plugin.delete_default_route, (route,))]


def _listener_created(world: World, event: ev.ListenerCreated) -> list[Notice]:
    listeners = world.listeners
    listeners[event.local] = listeners.get(event.local, 0) + 1
    return [Notice(Plugin.listener_created, (event.local,))]


def _listener_closed(world: World, event: ev.ListenerClosed) -> list[Notice]:
    listeners = world.listeners
    count = listeners.get(event.local, 0) - 1
    if count > 0:
        listeners[event.local] = count
    else:
        listeners.pop(event.local, None)
    return [Notice(Plugin.listener_closed, (event.local,))]


def _configured(world: World, event: ev.Configured) -> list[Notice]:
    config = event.config
    world.allowed_interfaces = config.allowed_interfaces
    world.denied_interfaces = config.denied_interfaces
    world.address_policy = config.addresses
    return []


def _endpoints_read(world: World, event: ev.EndpointsRead) -> list[Notice]:
    world.endpoints = event.endpoints
    world.limits, world.limits_before = event.limits, event.limits_before
    world.highest_limit = event.highest_limit
    return [Notice(Plugin.endpoints_read, ())]


def _route(event: ev.DefaultRouteAdded | ev.DefaultRouteRemoved) -> DefaultRoute:
    return DefaultRoute(event.if_index, event.ipv6, event.gateway, event.metric, event.table)


_APPLY: dict[type[ev.Event], Callable[[World, Any], list[Notice]]] = {
    ev.LinkChanged: _link_changed,
    ev.LinkRemoved: _link_removed,
    ev.LocalAddressRemoved: _address_removed,
    ev.DefaultRouteAdded: _route_added,
    ev.DefaultRouteRemoved: _route_removed,
    ev.ListenerCreated: _listener_created,
    ev.ListenerClosed: _listener_closed,
    ev.Configured: _configured,
    ev.EndpointsRead: _endpoints_read,
}
