# SPDX-License-Identifier: BSD-3-Clause
"""Decides where new connections start while the default route does not work.

The kernel starts a connection on the default route, whatever is known about its path.  `Steering`
names another local address for each family while the default route's link is down, its uplink has
an outage (`Outages`), or the main table has lost it, and takes that back afterwards.

Pure: `turn` takes each event of the engine and returns commands with the rule that they follow.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.address import is_ipv6
from mptcpd_ebpf.core.commands import ProbePath, SteerNewConnections
from mptcpd_ebpf.core.model import SECOND, DefaultRoute, LocalAddress, World
from mptcpd_ebpf.core.outages import Outages, uplink_of
from mptcpd_ebpf.core.trials import AwayPath

MAIN_TABLE = 254
REFUSED = 10 * SECOND
"""Nanoseconds before a decision is repeated that could not be carried out."""

_NETWORK = (
    ev.LinkChanged,
    ev.LinkRemoved,
    ev.LocalAddressChanged,
    ev.LocalAddressRemoved,
    ev.DefaultRouteAdded,
    ev.DefaultRouteRemoved,
    ev.Resynchronised,
    ev.Configured,
    ev.Resumed,
)
"""Events that change which uplinks there are, or which may be used."""

Ruled = tuple[str, SteerNewConnections | ProbePath]
"""A command, and the rule that it follows."""


@dataclass(slots=True)
class Steered:
    """Where new connections of one family start, instead of on the default route."""

    local_ip: str
    interface: str
    reason: str
    since: int


class Steering:
    """Where new connections start."""

    def __init__(self) -> None:
        self.enabled = False
        self.steered: dict[bool, Steered] = {}
        """By whether IPv6; without an entry the default route applies."""
        self._outages = Outages()
        self._had_default: dict[bool, None] = {}
        self._not_before: dict[bool, int] = {}

    @property
    def deadline(self) -> int | None:
        """When `turn` has something to do, in CLOCK_MONOTONIC nanoseconds."""
        return self._outages.deadline

    def turn(
        self, event: ev.Event, world: World, away: Sequence[AwayPath], now: int
    ) -> Iterator[Ruled]:
        """Takes an event that the model already contains; `away`: what plugins have abandoned."""
        match event:
            case ev.ConnectionCreated(server_side=False) | ev.SubflowEstablished():
                self._outages.answered(world, event.local.ip, event.remote.ip, now)
            case ev.StartUnanswered():
                for probe in self._suspect(event, world, now):
                    yield "start-unanswered", probe
        known = self.steered or self._not_before or self._outages.known or away
        if not known and not isinstance(event, _NETWORK):
            return  # as after most events
        self._outages.take_abandoned(world, away, now)
        for probe in self._outages.probe_again(world, now):
            yield "outage-probed", probe
        for ipv6 in (False, True):
            yield from self._steer(world, ipv6, now)

    def probed(self, command: ProbePath, answered: bool, world: World, now: int) -> None:
        """A probe that `turn` asked for was answered, or was not in time."""
        self._outages.probed(command, answered, world, now)

    def unsent(self, command: ProbePath, error: int, world: World, now: int) -> None:
        """A probe that `turn` asked for could not be sent, for an errno."""
        self._outages.unsent(command, error, world, now)

    def refused(self, command: SteerNewConnections, now: int) -> None:
        """A decision could not be carried out."""
        self.steered.pop(command.ipv6, None)
        self._not_before[command.ipv6] = now + REFUSED

    def _suspect(self, event: ev.StartUnanswered, world: World, now: int) -> Iterator[ProbePath]:
        uplink = uplink_of(world, event.local_ip)
        # An application may have bound its socket to any other.
        if uplink is not None and uplink[0] in self._starting(world, uplink[1]):
            other = next(self._alternatives(world, uplink[1], {uplink[0]: None}), None)
            if other is not None:
                yield from self._outages.suspect(event, world, other.ip, now)

    def _starting(self, world: World, ipv6: bool) -> dict[int | None, None]:
        """The interfaces on which new connections start at present."""
        steered = self.steered.get(ipv6)
        if steered is not None:
            return {world.interface_of(steered.local_ip): None}
        return {route.if_index: None for route in _defaults(world, ipv6)}

    def _alternatives(
        self, world: World, ipv6: bool, without: dict[int, None]
    ) -> Iterator[LocalAddress]:
        """Addresses on other uplinks that work, one for each, the best first."""
        best: dict[int, LocalAddress] = {}
        for address in sorted(world.usable_addresses(), key=_rank):
            if_index = address.if_index
            if (
                is_ipv6(address.ip) == ipv6
                and if_index not in without
                and self._outages.why((if_index, ipv6)) is None
                and world.has_default_route(if_index, address.ip)
            ):
                best.setdefault(if_index, address)
        steered = self.steered.get(ipv6)
        yield from sorted(
            best.values(),
            key=lambda address: (
                # The choice stays as long as it works.
                steered is None or address.ip != steered.local_ip,
                _metric(world, address),
            ),
        )

    def _trouble(self, world: World, ipv6: bool, default: list[DefaultRoute]) -> str | None:
        """Why new connections do not start on the default route; None: they do."""
        if not default:
            known = ipv6 in self._had_default
            return "the main routing table has no default route any more" if known else None
        self._had_default[ipv6] = None
        for route in default:
            link = world.links.get(route.if_index)
            if link is None or link.loopback or not world.interface_allowed(link.name):
                return None  # not ours to judge
        for route in default:
            link = world.links[route.if_index]
            why = self._outages.why((route.if_index, ipv6))
            if not (link.up and link.running):
                return f"the default route's link {link.name} is down"
            if why is not None:
                return f"the default route's path over {link.name} does not work: {why}"
        return None

    def _steer(self, world: World, ipv6: bool, now: int) -> Iterator[Ruled]:
        default = _defaults(world, ipv6)
        trouble = self._trouble(world, ipv6, default)
        held = self.steered.get(ipv6)
        chosen = None
        if trouble is not None:
            without = {route.if_index: None for route in default}
            chosen = next(self._alternatives(world, ipv6, without), None)
        if chosen is not None and trouble is not None:
            if now < self._not_before.get(ipv6, 0):
                return
            if held is None or held.local_ip != chosen.ip:
                interface = world.interface_name(chosen.if_index) or ""
                self.steered[ipv6] = Steered(chosen.ip, interface, trouble, now)
                yield (
                    "path-does-not-work",
                    SteerNewConnections(
                        ipv6=ipv6, local_ip=chosen.ip, interface=interface, reason=trouble
                    ),
                )
        elif held is not None:
            del self.steered[ipv6]
            reason = "no other path is usable" if trouble else "the default route works again"
            yield "default-route", SteerNewConnections(ipv6=ipv6, reason=reason)


def _defaults(world: World, ipv6: bool) -> list[DefaultRoute]:
    """The next hops of the default route in force, several where it has several."""
    main = [r for r in world.routes if r.ipv6 == ipv6 and r.table == MAIN_TABLE]
    best = min((route.metric for route in main), default=0)
    return [route for route in main if route.metric == best]


def _rank(address: LocalAddress) -> tuple[bool, bool]:
    """Global addresses before local ones (RFC 4193), temporary ones (RFC 8981) before others."""
    return address.ip.startswith(("fc", "fd")), not address.temporary


def _metric(world: World, address: LocalAddress) -> tuple[bool, int]:
    """The metric of the interface's default route; those in other tables come last."""
    found = [
        (route.table != MAIN_TABLE, route.metric)
        for route in world.routes
        if route.if_index == address.if_index and route.ipv6 == is_ipv6(address.ip)
    ]
    return min(found, default=(True, 0))
