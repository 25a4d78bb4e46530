# SPDX-License-Identifier: BSD-3-Clause
"""The types of the daemon's JSON: of the control socket and of every ``--json``.

Only types, and only the standard library, so that commands which print them start fast.  `SCHEMA`
is incremented when a field changes its meaning or is removed; new fields can be added at any time.
What is not known is null, never 0.  docs/control.md describes each field.
"""

from typing import Any, TypedDict

SCHEMA = 1


class Announced(TypedDict):
    """An address that the peer announced (ADD_ADDR, RFC 8684, 3.4.1)."""

    id: int
    ip: str
    port: int | None
    """The port of the connection if the peer announced none."""


class SubflowView(TypedDict):
    """One TCP connection of an MPTCP connection.  Counters start at its opening."""

    local: str
    """``ip:port``, IPv6 as ``[ip]:port``; IPv4-mapped addresses as IPv4."""
    remote: str
    local_id: int | None
    """Address ids (RFC 8684, 3.4.1); 0 is the address of the initial subflow."""
    remote_id: int | None
    interface: str | None
    state: str
    """``opening`` or ``established``."""
    backup: bool
    """Marked as backup by either side."""
    srtt_us: int | None
    """Smoothed round-trip time, microseconds."""
    min_rtt_us: int | None
    """Minimum round-trip time in the kernel's window, microseconds."""
    rtt_us: int | None
    """Newest raw round-trip sample, microseconds."""
    rttvar_us: int | None
    """Variation of the round-trip time, microseconds."""
    retransmits: int | None
    """Retransmitted segments."""
    lost: int | None
    """Segments that the kernel marked lost."""
    timeouts: int | None
    """Present number of consecutive retransmission timeouts."""
    segments_out: int | None
    """Data segments sent, retransmissions included."""
    bytes_sent: int | None
    bytes_acked: int | None
    bytes_received: int | None
    segments_in: int | None
    """Data segments received, repeated ones included."""
    out_of_order: int | None
    """Segments received out of the subflow's own order."""
    rcv_rtt_us: int | None
    """Round-trip time as the receiver estimates it from arriving data, microseconds."""
    holes_ms: float | None
    """Time in which received data waited for data of this subflow, milliseconds."""
    cwnd: int | None
    """Congestion window, segments."""
    in_flight: int | None
    """Segments sent and not yet acknowledged."""
    opened_at: float | None
    """Seconds since 1970 (UTC)."""


class ConnectionView(TypedDict):
    """One MPTCP connection."""

    token: str
    """The local token, eight hexadecimal digits, as `ss -M` and the kernel show it."""
    server_side: bool | None
    path_manager: str | None
    """``kernel`` or ``userspace``; None if it has not been read from the kernel."""
    local: str
    """Of the initial subflow."""
    remote: str
    pid: int | None
    """Of the process that opened it; on a server, of the listener's owner."""
    comm: str | None
    stalled_ms: float | None
    """Time in which the sender was stalled by a slow path, milliseconds."""
    bytes_acked: int | None
    """Bytes acknowledged by the peer at the connection level (DATA_ACK)."""
    bytes_received: int | None
    """Bytes received in the connection's order."""
    announced: list[Announced]
    subflows: list[SubflowView]


class Connections(TypedDict):
    """``GET /v1/connections`` and ``mptcpd-ebpf ls --json``."""

    schema: int
    connections: list[ConnectionView]


class PeerView(TypedDict):
    """A path to one peer."""

    ip: str
    state: str
    """``active``, ``standby``, ``away``, ``opening`` (a join is under way) or ``unused``."""
    reason: str
    """Why it is in this state, in one line; empty if there is nothing to say."""
    since: float | None
    """Since when, seconds since 1970 (UTC), if a plugin reported it."""
    plugin: str | None
    """The plugin that reported it."""
    probes_answered: int | None
    """Consecutive probes answered in time, while it is away…"""
    probes_needed: int | None
    """…and how many end its absence."""
    subflows: int
    """Established ones."""


class PathView(TypedDict):
    """A local address and its peers.  Figures are of the established subflows."""

    interface: str | None
    local_ip: str
    state: str
    """That of the peer that needs most attention; ``down`` without a carrier, ``unused`` if no
    connection uses it."""
    reason: str
    since: float | None
    connections: int
    subflows: int
    backup_subflows: int
    """Of them marked as backup by either side."""
    srtt_us: int | None
    """Mean smoothed round-trip time, microseconds."""
    srtt_max_us: int | None
    """The greatest of them."""
    retransmits: int | None
    """Segments retransmitted, of…"""
    segments_out: int | None
    """…data segments sent, retransmissions included."""
    sent_bytes_per_s: float | None
    """Rates since the last reading; null at the first."""
    received_bytes_per_s: float | None
    peer_count: int
    peers: list[PeerView]
    """At most 50, those that need most attention first."""


class Paths(TypedDict):
    """``GET /v1/paths`` and ``mptcpd-ebpf paths --json``."""

    schema: int
    paths: list[PathView]


class PathSummary(TypedDict):
    """A path that a plugin does not use at present, or only as a backup."""

    interface: str | None
    local_ip: str
    remote_ip: str
    state: str
    """``away`` or ``standby``."""
    reason: str
    since: float
    """Seconds since 1970 (UTC)."""
    plugin: str
    probes_answered: int
    probes_needed: int


class CauseView(TypedDict):
    """What led to a decision."""

    seq: int
    """Number of the event since the start of the daemon."""
    event: str
    """Its type: ``AlarmRaised`` …"""
    rule: str
    """The plugin handler, or the rule of the core, that made the decision."""


class DecisionView(TypedDict):
    """A command of a plugin or an operator, and whether the daemon sent it."""

    id: int
    t: float
    """Seconds since 1970 (UTC)."""
    plugin: str
    cause: CauseView
    action: str
    """The command's name: ``CreateSubflow``, ``DestroySubflow``, ``SetBackup`` …"""
    token: str | None
    subflow: str | None
    """``local → remote``, if the command has both."""
    reason: str
    """The reason, in one line."""
    refused: str | None
    """Why the daemon did not send it to the kernel; null if it did."""
    waited: float
    """Seconds for which the budget held it back before it was sent or refused."""
    command: dict[str, Any]
    """All fields of the command."""


class Decisions(TypedDict):
    """``GET /v1/decisions``: the newest ones, oldest first."""

    schema: int
    decisions: list[DecisionView]


class StoryEntry(TypedDict):
    """One thing that was seen or done."""

    t: float
    """Seconds since 1970 (UTC)."""
    kind: str
    """``connection``, ``subflow``, ``address``, ``alarm``, ``network``, ``daemon`` or
    ``decision``."""
    token: str | None
    """Of the connection that it is about; null: of none."""
    path: str | None
    """Name of the interface, or the local address if the interface is not known."""
    local_ip: str | None
    text: str
    """In words, with numbers and units."""
    outcome: str | None
    """What came of a decision: the kernel's answer and the effect.  What a closed subflow
    carried."""
    data: dict[str, Any]
    """The fields of the event or of the decision, with `effect` (`effects.Effect`) if it was
    measured."""


class Story(TypedDict):
    """``GET /v1/story`` and ``mptcpd-ebpf explain --json``: oldest first."""

    schema: int
    entries: list[StoryEntry]


class CarriedOut(TypedDict):
    """``POST /v1/command``, and ``--json`` of the commands that change something."""

    schema: int
    action: str
    """The command as text."""
    command: dict[str, Any]
    """All fields of the command, with the values of those that were left out."""
    through: str
    """``daemon``, or ``kernel`` if no daemon was used."""
    errno: int | None
    """The kernel's answer, 0 for success; null if the daemon did not send the command."""
    explanation: str | None
    """Why it failed, in one line; null if it succeeded."""
    caveat: str | None
    """Why it has no effect on new connections although it succeeded; null if it has."""


class EndpointView(TypedDict):
    """An endpoint of the in-kernel path manager."""

    id: int
    """Address id (RFC 8684, 3.4.1)."""
    ip: str
    port: int | None
    flags: list[str]
    """``signal``, ``subflow``, ``backup``, ``fullmesh``, ``implicit``, ``laminar``."""
    interface: str | None
    """The interface that it is bound to; null if none, or if the interface is gone."""
    if_index: int | None
    """The index of that interface, also if it is gone; null if it is bound to none."""


class Endpoints(TypedDict):
    """``GET /v1/endpoints`` and ``mptcpd-ebpf endpoint show --json``."""

    schema: int
    endpoints: list[EndpointView]


class LimitsView(TypedDict):
    """``GET /v1/limits``, ``mptcpd-ebpf limits --json``: limits of the in-kernel path manager."""

    schema: int
    subflows: int
    """Most subflows of a connection besides the initial one."""
    add_addr_accepted: int
    """Most announced addresses that a connection joins."""


class PluginView(TypedDict):
    name: str
    excluded: str | None
    """Why it is excluded; null while it is not."""


class ProbesView(TypedDict):
    backend: str
    """``core``, ``bcc`` or ``netlink``."""
    reason: str
    """Why this backend is used, in one line."""
    lost: dict[str, int] | None
    """Lost records and inserts, by cause; null without probes."""


class SteeredView(TypedDict):
    """Where new connections of one family start instead of the default route."""

    family: str
    """``IPv4`` or ``IPv6``."""
    interface: str
    local: str
    """Their local address."""
    since: float
    """Seconds since 1970 (UTC)."""
    reason: str
    """What is wrong with the default route, in one line."""


class NewConnectionsView(TypedDict):
    """Where new connections start (`initial_path`)."""

    steers: bool
    """Whether the daemon can start them elsewhere than on the default route."""
    reason: str
    """Why, in one line."""
    steered: list[SteeredView]
    """Empty while they start on the default route.  In a dry run, where they would start."""
    count: int | None
    """Connections steered since the start; null where `steers` is false."""


class JournalView(TypedDict):
    """The journal of a running daemon (docs/journal.md)."""

    path: str
    """Its file."""
    bytes: int
    """Size in use."""
    records_dropped: int
    """Events that could not be written since the start."""
    problem: str | None
    """Why nothing is written; null while all is well."""


class Status(TypedDict):
    """``GET /v1/status`` and ``mptcpd-ebpf status --json``."""

    schema: int
    version: str
    pid: int
    netns: int
    """Inode of the network namespace that the daemon serves."""
    started_at: float
    """Seconds since 1970 (UTC)."""
    paused: bool
    dry_run: bool
    """Plugins decide, and none of their commands is sent."""
    pending_restart: list[str]
    """Changed keys of the configuration that take effect only after a restart."""
    path_manager: str | None
    """The path manager of new connections: ``kernel``, ``userspace``; null if unreadable."""
    plugins: list[PluginView]
    probes: ProbesView
    new_connections: NewConnectionsView
    connections: int
    subflows: int
    events_lost: dict[str, int]
    """Overflows by source; each was followed by a resynchronisation."""
    decisions: int
    """Since the start."""
    decisions_refused: int
    paths: list[PathSummary]
    """Those that are away or on standby, the newest last."""
    journal: JournalView | None
    """Null if it is switched off."""
    log_messages_dropped: int
    """Because nothing read the log."""
