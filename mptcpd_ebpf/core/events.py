# SPDX-License-Identifier: BSD-3-Clause
"""Everything that can happen, as plain records.

One record type serves the engine, the journal, the control socket and replay, so
they are msgspec structs: tagged, frozen, and nothing but data.  Times are
CLOCK_MONOTONIC nanoseconds and come beside the event, as `now`.

Tokens are the connection's local token in host order.  Address ids are None where the kernel does
not report them.
"""

from msgspec import Struct

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.commands import KernelCommand
from mptcpd_ebpf.core.configuration import CoreConfig, PluginSpec
from mptcpd_ebpf.core.endpoints import HIGHEST_LIMIT, Endpoint, Limits
from mptcpd_ebpf.core.measurement import AlarmKind, Measurement, Owner


class Event(Struct, frozen=True, kw_only=True, tag=True, tag_field="event"):
    """Base of all events."""


# --- connections and subflows: generic netlink mptcp_pm_events
# (kernel: include/uapi/linux/mptcp_pm.h)


class ConnectionCreated(Event, frozen=True):
    """MPTCP_EVENT_CREATED: both sides agreed to use MPTCP."""

    token: int
    local: SockAddr
    remote: SockAddr
    server_side: bool = False
    deny_join_id0: bool = False
    """The peer asks not to join its initial address (RFC 8684, 3.1, the C flag)."""
    if_index: int | None = None


class ConnectionEstablished(Event, frozen=True):
    """MPTCP_EVENT_ESTABLISHED: fully established, subflows may be created."""

    token: int
    local: SockAddr
    remote: SockAddr
    server_side: bool = False
    deny_join_id0: bool = False
    if_index: int | None = None


class ConnectionClosed(Event, frozen=True):
    """MPTCP_EVENT_CLOSED: the connection is closed; its token may be used again.

    Missing where the peer closed it with MP_FASTCLOSE: the kernel destroys the token first.
    """

    token: int


class AddressAnnounced(Event, frozen=True):
    """MPTCP_EVENT_ANNOUNCED: the peer sent ADD_ADDR (RFC 8684, 3.4.1)."""

    token: int
    address_id: int
    """1…255, the peer's own numbering."""
    ip: str
    port: int = 0
    """If the peer named none, the kernel fills in the connection's remote port
    (mptcp_event_addr_announced). 0 means that port too."""


class AddressWithdrawn(Event, frozen=True):
    """MPTCP_EVENT_REMOVED: the peer sent REMOVE_ADDR (RFC 8684, 3.4.2).

    It may not have announced that id before. The kernel closes the subflows to it itself.
    """

    token: int
    address_id: int


class SubflowEstablished(Event, frozen=True):
    """MPTCP_EVENT_SUB_ESTABLISHED: a join succeeded, ours or the peer's.

    The initial subflow has no such event.

    Here and in the two below, `backup` is the peer's flag (``sf->backup``), never ours, and
    `error` is the socket's errno (net/mptcp/pm_netlink.c).
    """

    token: int
    local: SockAddr
    remote: SockAddr
    local_id: int | None = None
    remote_id: int | None = None
    backup: bool = False
    if_index: int | None = None
    error: int = 0


class SubflowClosed(Event, frozen=True):
    """MPTCP_EVENT_SUB_CLOSED: a subflow was closed while its connection exists, or a join of ours
    failed (without a SubflowEstablished before). The initial subflow has this event too.
    """

    token: int
    local: SockAddr
    remote: SockAddr
    local_id: int | None = None
    remote_id: int | None = None
    backup: bool = False
    if_index: int | None = None
    error: int = 0
    """The socket's errno, 0 if none."""
    reset_reason: int | None = None
    """MP_TCPRST reason (RFC 8684, 3.6), None if the peer sent none."""
    reset_flags: int | None = None
    """MP_TCPRST flags: 1, the error was transient, and a new subflow may be tried at once."""


class SubflowPriority(Event, frozen=True):
    """MPTCP_EVENT_SUB_PRIORITY: the peer sent MP_PRIO (RFC 8684, 3.3.8).

    The kernel reports nothing about the MP_PRIO that this host sends.
    """

    token: int
    local: SockAddr
    remote: SockAddr
    local_id: int | None = None
    remote_id: int | None = None
    backup: bool = False
    if_index: int | None = None


class ListenerCreated(Event, frozen=True):
    """MPTCP_EVENT_LISTENER_CREATED: an MPTCP socket of the namespace listens (not on Linux 6.1)."""

    local: SockAddr
    """``0.0.0.0`` or ``::`` where it takes any address."""


class ListenerClosed(Event, frozen=True):
    """MPTCP_EVENT_LISTENER_CLOSED: it stopped listening (not on Linux 6.1)."""

    local: SockAddr


# --- the local network: rtnetlink


class LinkChanged(Event, frozen=True):
    """An interface is new or changed."""

    if_index: int
    name: str
    up: bool
    """Administratively up (IFF_UP)."""
    running: bool
    """Has carrier and is operational (IFF_RUNNING)."""
    loopback: bool = False
    point_to_point: bool = False


class LinkRemoved(Event, frozen=True):
    """RTM_DELLINK: the interface is gone, or has moved to another namespace.

    Its addresses go with it, each with an event of its own.
    """

    if_index: int


class LocalAddressChanged(Event, frozen=True):
    """An address of ours is new or changed.  `ip` is the local one, also on point-to-point."""

    if_index: int
    ip: str
    prefix_len: int
    scope: int = 0
    """rtnetlink scope: 0 universe, 200 site, 253 link, 254 host."""
    tentative: bool = False
    """Duplicate address detection has not ended (or failed): not usable yet."""
    deprecated: bool = False
    temporary: bool = False


class LocalAddressRemoved(Event, frozen=True):
    """RTM_DELADDR: the address is gone from that interface; another one may still have it."""

    if_index: int
    ip: str


class DefaultRouteAdded(Event, frozen=True):
    """RTM_NEWROUTE of a default route, in any table; a route with several next hops is one event
    for each."""

    if_index: int
    """Through which interface."""
    ipv6: bool
    gateway: str | None = None
    """None for a route that is directly connected."""
    metric: int = 0
    """Lower is preferred (rtnetlink's priority)."""
    table: int = 254
    """Of the routing policy; 254 is the main one."""


class DefaultRouteRemoved(Event, frozen=True):
    """Such a route is gone: by RTM_DELROUTE, or without a message together with its interface or
    source address, which `RouteEvents` detects. The fields are those it was added with."""

    if_index: int
    ipv6: bool
    gateway: str | None = None
    metric: int = 0
    table: int = 254


# --- the probes


class AlarmRaised(Event, frozen=True):
    """A probe saw a subflow cross a threshold."""

    kind: AlarmKind
    measurement: Measurement
    value: int = 0
    """What crossed: microseconds for rtt, no-progress and stall, per cent for loss, a count."""
    limit: int = 0
    """The threshold it crossed, in the same unit."""


class SubflowEnded(Event, frozen=True):
    """The probes' final record of a subflow (`measurement.closed`)."""

    measurement: Measurement


class Sampled(Event, frozen=True):
    """The answer to a RequestSample: every live subflow of the namespace, read at one moment."""

    measurements: list[Measurement]
    with_owners: bool = False


# --- new connections, where they are steered


class StartUnanswered(Event, frozen=True):
    """A SYN from an address of ours was sent again, and none from there was answered meanwhile."""

    local_ip: str
    remote: SockAddr
    began_at: int
    """When the first SYN was sent (CLOCK_MONOTONIC nanoseconds)."""
    last_answered: SockAddr | None = None
    """The last destination that answered a SYN from this address, None: none has so far."""


# --- the in-kernel path manager's table


class EndpointsRead(Event, frozen=True):
    """The answer to a ReadEndpoints."""

    endpoints: list[Endpoint]
    limits: Limits
    highest_limit: int = HIGHEST_LIMIT
    """Most that a limit can be on this kernel."""
    limits_before: Limits | None = None
    """Their value before this daemon set them; None if it did not."""


class ConnectionMode(Struct, frozen=True, kw_only=True):
    """Which path manager has a connection."""

    token: int
    in_kernel: bool


class ModesRead(Event, frozen=True):
    """Which path manager has the connections for which that was not known."""

    modes: list[ConnectionMode]


# --- the daemon itself


class Tick(Event, frozen=True):
    """The engine's deadline has come."""


class CommandAsked(Event, frozen=True):
    """The operator requests a command. The guard may refuse it; plugins and `Paused` do not
    matter."""

    command: KernelCommand


class CommandAnswered(Event, frozen=True):
    """The kernel's answer to a decision's command."""

    decision_id: int
    errno: int = 0
    explanation: str = ""
    port: int = 0
    """The port that was chosen for an announcement, if any."""


class PathProbed(Event, frozen=True):
    """The peer answered a decision's `ProbePath`; the engine itself sees that none came in time."""

    decision_id: int
    rtt_us: int
    size: int
    """Bytes of the IP packet that was answered."""


class EventsLost(Event, frozen=True):
    """A source overflowed; a Resynchronised follows."""

    source: str


class LiveConnection(Struct, frozen=True, kw_only=True):
    """A connection found in a dump of the kernel's sockets."""

    token: int
    local: SockAddr
    remote: SockAddr
    server_side: bool | None = None
    owner: Owner | None = None


class Resynchronised(Event, frozen=True):
    """The complete state, read again: what is not listed is gone."""

    connections: list[LiveConnection]
    subflows: list[Measurement]
    links: list[LinkChanged]
    addresses: list[LocalAddressChanged]
    routes: list[DefaultRouteAdded]
    at_start: bool = False
    """The first one: its addresses existed before the daemon."""


class Started(Event, frozen=True):
    """The first event of a run: what the decisions depend on besides other events."""

    seed: int
    """Of the plugins' random numbers."""
    joins_marked: bool = True
    """The kernel sets the backup flag of a join itself (not on Linux 6.1)."""
    steers: bool = False
    """New connections can be started on another path (`initial_path: steer`)."""


class Configured(Event, frozen=True):
    """A configuration and its plugins, all of them validated, are in force from now on."""

    config: CoreConfig
    plugins: list[PluginSpec]
    endpoints: EndpointsRead | None = None
    """The endpoint table, so that plugins that end remove only what is still theirs."""


class PluginExcluded(Event, frozen=True):
    """A plugin raised or took too long, and is not called until the next configuration."""

    plugin: str
    handler: str
    error: str
    call: int
    """Number of the handler call since the start: a replay ends the same one."""


class Paused(Event, frozen=True):
    """From now on nothing is decided."""


class Resumed(Event, frozen=True):
    """Plugins begin again, from the model."""


class Stopping(Event, frozen=True):
    """The daemon ends: later events change the model alone, until `Stopped`."""


class Stopped(Event, frozen=True):
    """The last event of a run: plugins put back what they changed."""

    keep: list[str] = []
    """Plugins whose endpoints stay."""
    endpoints: EndpointsRead | None = None
    """As in `Configured`."""


AnyEvent = (
    ConnectionCreated
    | ConnectionEstablished
    | ConnectionClosed
    | AddressAnnounced
    | AddressWithdrawn
    | SubflowEstablished
    | SubflowClosed
    | SubflowPriority
    | ListenerCreated
    | ListenerClosed
    | LinkChanged
    | LinkRemoved
    | LocalAddressChanged
    | LocalAddressRemoved
    | DefaultRouteAdded
    | DefaultRouteRemoved
    | AlarmRaised
    | SubflowEnded
    | Sampled
    | StartUnanswered
    | EndpointsRead
    | ModesRead
    | Tick
    | CommandAsked
    | CommandAnswered
    | PathProbed
    | EventsLost
    | Resynchronised
    | Started
    | Configured
    | PluginExcluded
    | Paused
    | Resumed
    | Stopping
    | Stopped
)
