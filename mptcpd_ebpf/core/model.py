# SPDX-License-Identifier: BSD-3-Clause
"""The core's model: connections with their subflows, links, addresses, routes.

`tracker` alone changes it; plugins and observers read it.  Everything is keyed and
kept in insertion order, so that walking it is the same in every run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase

from msgspec import Struct

from mptcpd_ebpf.core.address import SockAddr, is_ipv6
from mptcpd_ebpf.core.endpoints import HIGHEST_LIMIT, Endpoint, Limits
from mptcpd_ebpf.core.measurement import Measurement, Owner
from mptcpd_ebpf.core.roles import Role

SubflowKey = tuple[SockAddr, SockAddr]
"""Local and remote address of a subflow; with the token, its name within a namespace."""

PathName = tuple[str, str]
"""A path: the local address and the peer's."""

MS = 1_000_000
SECOND = 1000 * MS
"""Times in the core are CLOCK_MONOTONIC nanoseconds."""

SCOPE_LINK = 253
SCOPE_HOST = 254


class State(StrEnum):
    """The state of a connection or subflow."""

    OPENING = "opening"
    """Its handshake is under way: a join of ours, or a connection that is not fully established
    and refuses joins."""
    ESTABLISHED = "established"
    CLOSED = "closed"
    """One source has closed it; it is removed when the other has too, or soon after."""


@dataclass(slots=True)
class Subflow:
    """One TCP connection of an MPTCP connection."""

    token: int
    local: SockAddr
    remote: SockAddr
    state: State = State.ESTABLISHED
    initial: bool = False
    """Opened by MP_CAPABLE."""
    local_id: int | None = None
    remote_id: int | None = None
    if_index: int | None = None
    backup: bool = False
    """This host set its backup flag."""
    backup_set_at: int = 0
    """When this host last changed the flag (CLOCK_MONOTONIC nanoseconds): older measurements do
    not show it."""
    backup_by_peer: bool = False
    opened_at: int | None = None
    """CLOCK_MONOTONIC nanoseconds; None if it is older than the daemon and not known."""
    failed: bool = False
    """A join that closed without having been established."""
    measured: Measurement | None = None
    """The newest measurement."""
    error: int = 0
    reset_reason: int | None = None
    """Of the MP_TCPRST that ended it (RFC 8684, 3.6); None if the peer sent none."""
    reset_flags: int | None = None

    @property
    def key(self) -> SubflowKey:
        return (self.local, self.remote)

    @property
    def usable(self) -> bool:
        """It can carry data now; one whose socket holds an error is about to close."""
        return self.state is State.ESTABLISHED and not self.error

    def answered_since(self, at: int) -> bool:
        """Whether something came back after `at` (CLOCK_MONOTONIC nanoseconds), as measured."""
        measured = self.measured
        if measured is None or measured.idle_us is None or measured.timeouts:
            return False
        return measured.at - measured.idle_us * 1000 > at

    def __str__(self) -> str:
        return f"{self.local} → {self.remote}"


@dataclass(slots=True)
class Connection:
    """One MPTCP connection of this namespace."""

    token: int
    local: SockAddr
    remote: SockAddr
    """Of the initial subflow."""
    state: State = State.OPENING
    server_side: bool | None = None
    """None if it is older than the daemon and the kernel does not report it."""
    deny_join_id0: bool = False
    in_kernel: bool | None = None
    """The in-kernel path manager has it, and refuses commands for one connection. Fixed when the
    connection is created. None if not known."""
    opened_at: int | None = None
    local_ids: dict[str, int] = field(default_factory=dict)
    """The address ids (never 0) that the kernel uses for our addresses in this connection."""
    announced: dict[int, SockAddr] = field(default_factory=dict)
    """Addresses the peer announced, by their id; port 0 when it named none."""
    subflows: dict[SubflowKey, Subflow] = field(default_factory=dict)
    joins: dict[tuple[str, SockAddr], bool] = field(default_factory=dict)
    """Joins of ours that netlink has not reported, by our address and the peer's: whether as
    backup."""
    owner: Owner | None = None
    owner_asked: bool = False
    """The owner was looked up; `owner` is all that is known."""
    stalled_us: int | None = None
    bytes_acked: int | None = None
    bytes_received: int | None = None
    reinjected: int | None = None

    def usable_subflows(self) -> list[Subflow]:
        return [subflow for subflow in self.subflows.values() if subflow.usable]

    def joins_under_way(self) -> list[tuple[str, SockAddr]]:
        """Joins, regular and backup, that were requested and are not answered yet."""
        seen = [
            (subflow.local.ip, subflow.remote)
            for subflow in self.subflows.values()
            if subflow.state is State.OPENING and not subflow.initial
        ]
        return list(dict.fromkeys([*self.joins, *seen]))


@dataclass(slots=True)
class Link:
    """A network interface."""

    if_index: int
    name: str
    up: bool
    running: bool
    loopback: bool = False
    point_to_point: bool = False


@dataclass(slots=True)
class LocalAddress:
    """An address of this namespace."""

    if_index: int
    ip: str
    prefix_len: int
    scope: int = 0
    tentative: bool = False
    deprecated: bool = False
    temporary: bool = False
    existing: bool = False
    """It existed when the daemon started, and has existed since."""
    since: int | None = field(default=None, compare=False)
    """When it was added (CLOCK_MONOTONIC nanoseconds); None if it existed before."""


class AddressPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which of our addresses are used at all; the names are those of mptcpd's notify-flags."""

    existing: bool = True
    """Also those that existed when the daemon started."""
    skip_link_local: bool = True
    """Not fe80::/10 and 169.254.0.0/16."""
    skip_loopback: bool = True
    """Not those of host scope."""
    check_route: bool = False
    """Only while a default route of their family leads through their interface."""


@dataclass(slots=True, frozen=True)
class DefaultRoute:
    if_index: int
    ipv6: bool
    gateway: str | None = None
    metric: int = 0
    table: int = 254


@dataclass(slots=True, frozen=True)
class PathReport:
    """What a plugin uses a path for, as it last reported (`ReportPath`)."""

    plugin: str
    state: Role
    reason: str
    since: int
    """CLOCK_MONOTONIC nanoseconds."""
    probes_answered: int = 0
    probes_needed: int = 0


@dataclass
class World:
    """The whole model."""

    connections: dict[int, Connection] = field(default_factory=dict)
    """By token."""
    links: dict[int, Link] = field(default_factory=dict)
    addresses: dict[tuple[int, str], LocalAddress] = field(default_factory=dict)
    """By interface index and address."""
    routes: dict[DefaultRoute, None] = field(default_factory=dict)
    listeners: dict[SockAddr, int] = field(default_factory=dict)
    """MPTCP listeners and how often each was opened."""

    paths: dict[PathName, PathReport] = field(default_factory=dict)
    """What plugins reported of paths that are or were not active; the last report is the newest."""

    allowed_interfaces: list[str] = field(default_factory=list)
    """Patterns of the interfaces that may carry subflows, as configured; none means all."""
    denied_interfaces: list[str] = field(default_factory=list)
    """Patterns of those that may not; beats the former."""
    address_policy: AddressPolicy = field(default_factory=AddressPolicy)
    """Which addresses may, as configured."""

    endpoints: list[Endpoint] = field(default_factory=list)
    """The in-kernel path manager's, as last read."""
    limits: Limits | None = None
    """Its limits; None if they were never read."""
    highest_limit: int = HIGHEST_LIMIT
    """The highest limit that the kernel accepts, as far as known."""
    limits_before: Limits | None = None
    """Their values before this daemon set them; None if it did not."""

    def interface_name(self, if_index: int | None) -> str | None:
        link = self.links.get(if_index) if if_index is not None else None
        return link.name if link else None

    def interface_allowed(self, name: str) -> bool:
        """Whether the configuration lets an interface of that name carry subflows."""

        def matches(patterns: list[str]) -> bool:
            return any(fnmatchcase(name, pattern) for pattern in patterns)

        return not matches(self.denied_interfaces) and (
            not self.allowed_interfaces or matches(self.allowed_interfaces)
        )

    def can_carry(self, subflow: Subflow) -> bool:
        """Whether a subflow is usable and its address is on an interface with a carrier.

        A socket outlives its address, but nothing arrives on it.  An address that never was on an
        interface, as of a transparent proxy, is taken for present.
        """
        if not subflow.usable:
            return False
        if_index = self.interface_of(subflow.local.ip)
        if if_index is None:
            return subflow.if_index is None
        return self.has_carrier(if_index)

    def has_carrier(self, if_index: int | None) -> bool:
        """Whether an interface is up and running, as far as known."""
        link = self.links.get(if_index) if if_index is not None else None
        return link is None or (link.up and link.running)

    def strays(self, connection: Connection) -> list[Subflow]:
        """Usable subflows on interfaces that the configuration does not allow. The application
        chooses where a connection starts, and the peer where it joins: those are left out.
        """
        if connection.server_side:
            return []
        named = [(s, self.interface_name(s.if_index)) for s in connection.usable_subflows()]
        return [
            subflow
            for subflow, name in named
            if name is not None and not subflow.initial and not self.interface_allowed(name)
        ]

    def __post_init__(self) -> None:
        self._interfaces: dict[str, int] | None = None
        self._usable: dict[bool, list[LocalAddress]] = {}

    def network_changed(self) -> None:
        """Drops what was derived from links, addresses, routes and their policy."""
        self._interfaces = None
        self._usable.clear()

    def interface_of(self, ip: str) -> int | None:
        """The interface that holds one of our addresses."""
        if self._interfaces is None:
            self._interfaces = {}
            for address in self.addresses.values():
                self._interfaces.setdefault(address.ip, address.if_index)
        return self._interfaces.get(ip)

    def usable_addresses(self, *, deprecated: bool = False) -> Sequence[LocalAddress]:
        """Addresses a subflow can start from now.

        Their interface is up, running, allowed and no loopback; they are not tentative, not
        deprecated (unless those are asked for: good for what uses them already), and the
        configuration's `AddressPolicy` lets them in.
        """
        known = self._usable.get(deprecated)
        if known is not None:
            return known
        usable = self._usable[deprecated] = []
        for address in self.addresses.values():
            link = self.links.get(address.if_index)
            if (
                link is not None
                and link.up
                and link.running
                and not link.loopback
                and self.interface_allowed(link.name)
                and not address.tentative
                and (deprecated or not address.deprecated)
                and self.lets_in(address)
            ):
                usable.append(address)
        return usable

    def lets_in(self, address: LocalAddress) -> bool:
        """Whether the configuration's `AddressPolicy` allows an address."""
        policy = self.address_policy
        # 169.254/16 is link-local (RFC 3927) even where it was configured with global scope.
        link_local = address.scope == SCOPE_LINK or address.ip.startswith("169.254.")
        return (
            (policy.existing or not address.existing)
            and not (policy.skip_link_local and link_local)
            and not (policy.skip_loopback and address.scope == SCOPE_HOST)
            and (not policy.check_route or self.has_default_route(address.if_index, address.ip))
        )

    def has_default_route(self, if_index: int, ip: str) -> bool:
        return any(
            route.if_index == if_index and route.ipv6 == is_ipv6(ip) for route in self.routes
        )
