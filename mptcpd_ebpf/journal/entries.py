# SPDX-License-Identifier: BSD-3-Clause
"""The lines of the history (`history --json`); docs/journal.md describes them.

What is not known is null, never 0.
"""

from msgspec import Struct

SCHEMA = 1
"""Incremented when a field changes its meaning or is removed."""


class Entry(Struct, frozen=True, kw_only=True, tag_field="kind"):
    """One line of the history."""

    schema: int = SCHEMA
    t: float
    """Seconds since 1970 (UTC)."""


class PathEntry(Entry, frozen=True, kw_only=True, tag="path"):
    """A path was not active for a while."""

    interface: str | None
    local_ip: str
    peers: list[str]
    """Addresses of the peers."""
    state: str
    """``away`` or ``standby``."""
    reason: str
    plugin: str
    ended: float | None
    """Null while it lasts."""
    recovered: bool | None
    """Whether it was used again; false: nobody probed it any more. Null while it lasts."""
    ended_reason: str | None
    lasted_s: float | None
    connections_moved: int
    """Connections whose subflow on the path was destroyed."""
    moved_s: float | None
    """From the first to the last of them; null if there was none."""


class NetworkEntry(Entry, frozen=True, kw_only=True, tag="network"):
    """A link, address or default route changed."""

    subject: str
    """``link``, ``address`` or ``route``."""
    what: str
    """``up``, ``down``, ``added``, ``removed``."""
    interface: str | None
    ip: str | None
    detail: str | None


class DaemonEntry(Entry, frozen=True, kw_only=True, tag="daemon"):
    """The daemon started or ended, or something happened to it."""

    what: str
    detail: str | None


class ConnectionEntry(Entry, frozen=True, kw_only=True, tag="connection"):
    """A connection was opened or closed."""

    what: str
    """``opened``, or ``closed`` with its final values."""
    token: str
    local: str
    remote: str
    pid: int | None
    comm: str | None
    bytes_acked: int | None
    bytes_received: int | None


class SubflowEntry(Entry, frozen=True, kw_only=True, tag="subflow"):
    """A subflow was opened or closed, or a join failed."""

    what: str
    """``opened``, ``failed``, or ``closed`` with its final values."""
    token: str
    local: str
    remote: str
    interface: str | None
    error: int | None
    reset_reason: int | None
    srtt_us: int | None
    bytes_acked: int | None
    bytes_received: int | None
    retransmits: int | None
    segments_out: int | None


class AlarmEntry(Entry, frozen=True, kw_only=True, tag="alarm"):
    """A probe raised an alarm."""

    alarm: str
    token: str
    local: str
    remote: str
    interface: str | None
    value: int
    threshold: int
    srtt_us: int | None
    in_flight: int | None


class DecisionEntry(Entry, frozen=True, kw_only=True, tag="decision"):
    """A command of a plugin or operator and what became of it."""

    plugin: str
    cause: str
    """The type of the event that led to it."""
    action: str
    description: str
    token: str | None
    local: str | None
    remote: str | None
    reason: str
    refused: str | None
    """Why the daemon did not send it; null if it did."""
    errno: int | None
    """The kernel's answer; null if there was none."""
    explanation: str | None
