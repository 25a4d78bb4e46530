# SPDX-License-Identifier: BSD-3-Clause
"""The shapes of what the daemon tells: the JSON of the control socket and of every ``--json``.

Only types, and only the standard library, so that a command which merely prints them
pays for nothing.  `SCHEMA` grows when a field changes its meaning or goes away; new
fields may come at any time.  What is not known is null, never 0.  docs/control.md
shows each with an example.
"""

from typing import Any, TypedDict

SCHEMA = 1


class Announced(TypedDict):
    """An address that the peer announced (ADD_ADDR, RFC 8684, 3.4.1)."""

    id: int
    ip: str
    port: int | None
    """Where the peer named none, the port that the connection was made to."""


class SubflowView(TypedDict):
    """One TCP connection of an MPTCP connection.  Counters run since it opened."""

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
    """Least round-trip time of the kernel's window, microseconds."""
    rtt_us: int | None
    """Newest raw round-trip sample, microseconds."""
    rttvar_us: int | None
    """Variation of the round-trip time, microseconds."""
    retransmits: int | None
    """Segments sent again."""
    lost: int | None
    """Segments the kernel took for lost."""
    timeouts: int | None
    """Retransmission timeouts in a row right now."""
    segments_out: int | None
    """Data segments sent, retransmissions included."""
    bytes_sent: int | None
    bytes_acked: int | None
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
    """``kernel`` or ``userspace``; None if nobody has asked the kernel."""
    local: str
    """Of the initial subflow."""
    remote: str
    pid: int | None
    """Of the process that opened it; on a server, of the listener's owner."""
    comm: str | None
    stalled_ms: float | None
    """Time the sender stood still for a slow path's sake, milliseconds."""
    bytes_acked: int | None
    """Bytes the peer acknowledged on the connection's level (DATA_ACK)."""
    announced: list[Announced]
    subflows: list[SubflowView]


class Connections(TypedDict):
    """``GET /v1/connections`` and ``mptcpd-ebpf ls --json``."""

    schema: int
    connections: list[ConnectionView]


class CauseView(TypedDict):
    """What led to a decision."""

    seq: int
    """Number of the event since the daemon's start."""
    event: str
    """Its type: ``AlarmRaised`` …"""
    rule: str
    """The plugin handler, or the rule of the core, that answered it."""


class DecisionView(TypedDict):
    """A command that a plugin asked for, and what became of it."""

    id: int
    t: float
    """Seconds since 1970 (UTC)."""
    plugin: str
    cause: CauseView
    action: str
    """The command's name: ``CreateSubflow``, ``DestroySubflow``, ``SetBackup`` …"""
    token: str | None
    subflow: str | None
    """``local → remote``, as far as the command names them."""
    reason: str
    """Why, in one line."""
    refused: str | None
    """Why the daemon did not send it to the kernel, null if it did."""
    command: dict[str, Any]
    """All fields of the command."""


class Decisions(TypedDict):
    """``GET /v1/decisions``: the newest ones, oldest first."""

    schema: int
    decisions: list[DecisionView]


class CarriedOut(TypedDict):
    """``POST /v1/command``, and what the commands that change something print with ``--json``."""

    schema: int
    action: str
    """What was asked for, in words."""
    command: dict[str, Any]
    """All fields of the command, those that were left out included."""
    through: str
    """``daemon``, or ``kernel`` if none was asked."""
    errno: int | None
    """The kernel's answer, 0 if it is done; null if the daemon did not send it."""
    explanation: str | None
    """Why it is not done, in one line; null if it is."""
    caveat: str | None
    """Why it is done and new connections take no notice; null if they do."""


class EndpointView(TypedDict):
    """An endpoint of the in-kernel path manager."""

    id: int
    """Address id (RFC 8684, 3.4.1)."""
    ip: str
    port: int | None
    flags: list[str]
    """``signal``, ``subflow``, ``backup``, ``fullmesh``, ``implicit``, ``laminar``."""
    interface: str | None
    """The one it is bound to; null if to none, or if that is gone."""
    if_index: int | None
    """Of that interface, also when it is gone; null if it is bound to none."""


class Endpoints(TypedDict):
    """``GET /v1/endpoints`` and ``mptcpd-ebpf endpoint show --json``."""

    schema: int
    endpoints: list[EndpointView]


class LimitsView(TypedDict):
    """``GET /v1/limits`` and ``mptcpd-ebpf limits --json``: of the in-kernel path manager."""

    schema: int
    subflows: int
    """Subflows a connection may have beside the initial one."""
    add_addr_accepted: int
    """Announced addresses that a connection joins."""


class PluginView(TypedDict):
    name: str
    excluded: str | None
    """Why it was kept out, null while it serves."""


class ProbesView(TypedDict):
    backend: str
    """``core``, ``bcc`` or ``netlink``."""
    reason: str
    """Why this one, in one line."""
    lost: dict[str, int] | None
    """Records and inserts that were lost, by cause; null without probes."""


class Status(TypedDict):
    """``GET /v1/status`` and ``mptcpd-ebpf status --json``."""

    schema: int
    version: str
    pid: int
    netns: int
    """Inode of the network namespace the daemon serves."""
    started_at: float
    """Seconds since 1970 (UTC)."""
    paused: bool
    waits_for_restart: list[str]
    """Keys of the configuration that a reload found changed and could not take up."""
    path_manager: str | None
    """The kernel's for new connections: ``kernel``, ``userspace``; null if unreadable."""
    plugins: list[PluginView]
    probes: ProbesView
    connections: int
    subflows: int
    events_lost: dict[str, int]
    """Overflows by source; each was followed by a resynchronisation."""
    decisions: int
    """Made since the start."""
    decisions_refused: int
