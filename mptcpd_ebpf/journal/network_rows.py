# SPDX-License-Identifier: BSD-3-Clause
"""Rows about links, addresses, default routes and the daemon itself (the table `events`)."""

from collections.abc import Callable
from typing import Any

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.journal.changes import Changes


class NetworkRows:
    """Writes each change once, however often it is reported."""

    def __init__(self, changes: Changes, run: int, greatest_id: int) -> None:
        self._changes = changes
        self._run = run
        self._id = greatest_id
        self._interfaces: dict[int, ev.LinkChanged] = {}
        self._addresses: dict[str, tuple[int, str | None]] = {}
        """By address: its interface, and the name, which an interface that is gone has no more."""
        self._routes: dict[tuple[Any, ...], None] = {}
        self._starting = False
        """The network is read for the first time: nothing has changed."""

    def of(self, event: ev.Event, t: float) -> None:
        """Takes in an event."""
        handler = _EVENTS.get(type(event))
        if handler is not None:
            handler(self, event, t)

    def interface(self, if_index: int | None, ip: str) -> str | None:
        """The name of an interface, or of the one that has an address."""
        if not if_index and ip in self._addresses:
            if_index, name = self._addresses[ip]
            return name
        link = self._interfaces.get(if_index or 0)
        return link.name if link is not None else None

    def _event(
        self,
        t: float,
        kind: str,
        what: str,
        *,
        interface: str | None = None,
        ip: str | None = None,
        detail: str | None = None,
    ) -> None:
        self._id += 1
        what = "present" if self._starting else what
        row = {
            "run": self._run,
            "t": t,
            "kind": kind,
            "what": what,
            "interface": interface,
            "ip": ip,
            "detail": detail,
        }
        self._changes.insert("events", self._id, row)

    def _link(self, event: ev.LinkChanged, t: float) -> None:
        held = self._interfaces.get(event.if_index)
        self._interfaces[event.if_index] = event
        usable = event.up and event.running
        if held is None or (held.up and held.running) != usable or held.name != event.name:
            self._event(t, "link", "up" if usable else "down", interface=event.name)

    def _link_removed(self, event: ev.LinkRemoved, t: float) -> None:
        held = self._interfaces.pop(event.if_index, None)
        if held is not None:
            self._event(t, "link", "removed", interface=held.name)

    def _address(self, event: ev.LocalAddressChanged, t: float) -> None:
        if event.ip not in self._addresses:
            name = self.interface(event.if_index, "")
            self._addresses[event.ip] = (event.if_index, name)
            self._event(t, "address", "added", interface=name, ip=event.ip)

    def _address_removed(self, event: ev.LocalAddressRemoved, t: float) -> None:
        if_index, name = self._addresses.get(event.ip, (None, None))
        if if_index == event.if_index:
            del self._addresses[event.ip]
            self._event(t, "address", "removed", interface=name, ip=event.ip)

    def _route(self, event: ev.DefaultRouteAdded | ev.DefaultRouteRemoved, t: float) -> None:
        key = (event.if_index, event.ipv6, event.gateway, event.metric, event.table)
        added = isinstance(event, ev.DefaultRouteAdded)
        if added == (key in self._routes):
            return
        if added:
            self._routes[key] = None
        else:
            del self._routes[key]
        detail = f"metric {event.metric}, table {event.table}, {'IPv6' if event.ipv6 else 'IPv4'}"
        self._event(
            t,
            "route",
            "added" if added else "removed",
            interface=self.interface(event.if_index, ""),
            ip=event.gateway,
            detail=detail,
        )

    def _daemon(self, event: ev.Event, t: float) -> None:
        detail = None
        if isinstance(event, ev.EventsLost):
            detail = event.source
        elif isinstance(event, ev.PluginExcluded):
            detail = f"{event.plugin}: {event.handler}() raised {event.error}"
        elif isinstance(event, ev.Configured):
            detail = ", ".join(plugin.name for plugin in event.plugins) or None
        self._event(t, "daemon", _DAEMON[type(event)], detail=detail)

    def _resynchronised(self, event: ev.Resynchronised, t: float) -> None:
        self._starting = event.at_start
        links = {link.if_index for link in event.links}
        for if_index in [each for each in self._interfaces if each not in links]:
            self._link_removed(ev.LinkRemoved(if_index=if_index), t)
        for link in event.links:
            self._link(link, t)
        addresses = {(address.ip, address.if_index) for address in event.addresses}
        known = [(ip, if_index) for ip, (if_index, _) in self._addresses.items()]
        for ip, if_index in [each for each in known if each not in addresses]:
            gone = ev.LocalAddressRemoved(if_index=if_index, ip=ip)
            self._address_removed(gone, t)
        for address in event.addresses:
            self._address(address, t)
        routes = {(r.if_index, r.ipv6, r.gateway, r.metric, r.table) for r in event.routes}
        for if_index, ipv6, gateway, metric, table in [
            each for each in self._routes if each not in routes
        ]:
            removed = ev.DefaultRouteRemoved(
                if_index=if_index, ipv6=ipv6, gateway=gateway, metric=metric, table=table
            )
            self._route(removed, t)
        for route in event.routes:
            self._route(route, t)
        self._starting = False


_DAEMON: dict[type[ev.Event], str] = {
    ev.Configured: "configured",
    ev.EventsLost: "events lost",
    ev.PluginExcluded: "plugin excluded",
    ev.Paused: "paused",
    ev.Resumed: "resumed",
    ev.Stopping: "stopping",
}

_EVENTS: dict[type[ev.Event], Callable[[NetworkRows, Any, float], None]] = {
    ev.LinkChanged: NetworkRows._link,
    ev.LinkRemoved: NetworkRows._link_removed,
    ev.LocalAddressChanged: NetworkRows._address,
    ev.LocalAddressRemoved: NetworkRows._address_removed,
    ev.DefaultRouteAdded: NetworkRows._route,
    ev.DefaultRouteRemoved: NetworkRows._route,
    ev.Resynchronised: NetworkRows._resynchronised,
    **dict.fromkeys(_DAEMON, NetworkRows._daemon),
}
KEPT = frozenset(_EVENTS)
"""The types of the events that may add a row."""
