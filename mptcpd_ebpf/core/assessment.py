# SPDX-License-Identifier: BSD-3-Clause
"""What a path is worth to a connection: what it carries against what it costs the others.

Counters of a connection and its subflows are noted whenever they are known (`Readings`).  Two
readings give a subflow's `share` of the connection's data and the part of the time in which the
connection was `blocked` by it: the sender's stalls and the receiver's holes (docs/probes.md).

With the share s2 of a slow path and the blocked part b, the other paths would carry about
(1 - s2) / (1 - b) of the present goodput if they were never blocked.  So the slow path helps where
b is well below s2.  Elsewhere a comparison tells: the goodput with the path against the goodput
without it (`Comparison`).

Both directions count: bytes acknowledged and bytes received.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from mptcpd_ebpf.core.model import MS, SECOND, Connection, Subflow, SubflowKey

SHORTEST_WINDOW = 200 * MS
"""Nanoseconds between two readings that are compared, at least."""
WINDOW = 1500 * MS
"""Nanoseconds into the past that an assessment reaches, where readings allow."""
COMPARED = SECOND
"""Nanoseconds over which the goodput after a change is measured."""
LONGEST_DRAIN = 4
"""So many times a comparison is extended at most."""
KEPT = 8
"""Readings of one connection."""

HARMS = 3.0
"""`blocked` beyond so many times `share`: the path plainly harms."""
HELPS = 1.2
"""`blocked` below so many times `share`: the path helps, or costs next to nothing.  Not 1, because
data that waits in the receive buffer does not stop the other paths before the buffer is full."""
LARGE_SHARE = 0.4
"""A path that carries so much of the data helps, whatever it costs: of the harmful paths that were
measured (bench/), none carried a third."""
DRAINED = 0.1
"""A demoted path that blocks less than this part of the time has delivered what was in flight."""
FALLEN = 0.5
"""A goodput below so many times the one that a path left behind when it was demoted: the other
paths have become worse."""
WORSE = 0.95
"""A goodput below so many times another one is worse."""


class Counters(NamedTuple):
    """Cumulative values of one subflow."""

    carried: int
    """Bytes acknowledged and bytes received."""
    blocked_us: int
    """Time in which it blocked the connection, microseconds."""


class Reading(NamedTuple):
    """The counters of a connection at one moment."""

    at: int
    """CLOCK_MONOTONIC nanoseconds."""
    carried: int
    """Bytes acknowledged and received at the connection level."""
    subflows: dict[SubflowKey, Counters]


class Worth(NamedTuple):
    """A subflow's part in its connection over a window."""

    goodput: float
    """Of the connection, bytes per second."""
    share: float
    """Of the connection's data that the subflow carried, 0…1."""
    blocked: float
    """Part of the time in which the connection waited for the subflow, 0…1."""

    @property
    def harms(self) -> bool:
        return self.blocked > HARMS * self.share

    @property
    def helps(self) -> bool:
        return self.share >= LARGE_SHARE or self.blocked < HELPS * self.share


@dataclass(slots=True)
class Readings:
    """The newest readings of one connection."""

    kept: deque[Reading] = field(default_factory=lambda: deque(maxlen=KEPT))

    def note(self, connection: Connection, at: int) -> None:
        """Notes the counters that the model holds now, if the kernel reports them."""
        carried = _carried(connection)
        if carried is None or (self.kept and at <= self.kept[-1].at):
            return
        subflows = {each.key: counters(each) for each in connection.subflows.values()}
        self.kept.append(Reading(at, carried, subflows))

    def worth(self, connection: Connection, subflow: Subflow, now: int) -> Worth | None:
        """A subflow's worth since the newest reading that is old enough; None: not known.

        The subflow's own counters must be of `now`, as they are in an alarm.
        """
        carried = _carried(connection)
        before = self._before(now)
        if carried is None or before is None:
            return None
        elapsed = now - before.at
        moved = carried - before.carried
        mine = counters(subflow)
        then = before.subflows.get(subflow.key, Counters(0, 0))
        share = (mine.carried - then.carried) / moved if moved > 0 else 0.0
        blocked = (mine.blocked_us - then.blocked_us) * 1000 / elapsed
        return Worth(moved * SECOND / elapsed, min(share, 1.0), min(blocked, 1.0))

    def goodput(self, since: int) -> float | None:
        """Bytes per second from the first reading at or after `since` to the newest one."""
        first = next((each for each in self.kept if each.at >= since), None)
        if first is None or self.kept[-1].at - first.at < SHORTEST_WINDOW:
            return None
        last = self.kept[-1]
        return (last.carried - first.carried) * SECOND / (last.at - first.at)

    def latest(self) -> float | None:
        """Bytes per second between the newest two readings."""
        if len(self.kept) < 2:
            return None
        before, last = self.kept[-2], self.kept[-1]
        if last.at - before.at < SHORTEST_WINDOW:
            return None
        return (last.carried - before.carried) * SECOND / (last.at - before.at)

    def _before(self, now: int) -> Reading | None:
        """The oldest reading within `WINDOW`, else the newest older one."""
        old = [each for each in self.kept if now - each.at >= SHORTEST_WINDOW]
        within = [each for each in old if now - each.at <= WINDOW]
        return within[0] if within else old[-1] if old else None


@dataclass(slots=True)
class Comparison:
    """A path's role was changed, and the goodput afterwards is measured against that before."""

    before: float
    """Bytes per second."""
    begins: int
    """When the effect has settled, CLOCK_MONOTONIC nanoseconds."""
    ends: int

    extensions: int = 0

    def verdict(
        self, readings: Readings, connection: Connection, subflow: Subflow | None, now: int
    ) -> float | None:
        """The goodput after the change, bytes per second; None: not known.

        While the demoted subflow still blocks the connection with what was in flight on it, the
        comparison goes on: `ends` is then later than `now`.
        """
        worth = readings.worth(connection, subflow, now) if subflow is not None else None
        if worth is not None and worth.blocked > DRAINED and self.extensions < LONGEST_DRAIN:
            self.extensions += 1
            self.begins, self.ends = now, now + COMPARED
            return None
        return readings.goodput(self.begins)


def compare(before: float, now: int, rtt: int) -> Comparison:
    """Starts a comparison; `rtt` is that of the slowest path, nanoseconds."""
    begins = now + min(200 * MS + 2 * rtt, SECOND)
    return Comparison(before, begins, begins + COMPARED)


def counters(subflow: Subflow) -> Counters:
    """The counters of a subflow; what is not measured is 0."""
    measured = subflow.measured
    if measured is None:
        return Counters(0, 0)
    return Counters(
        (measured.bytes_acked or 0) + (measured.bytes_received or 0),
        (measured.stalled_us or 0) + (measured.holes_us or 0),
    )


def _carried(connection: Connection) -> int | None:
    if connection.bytes_acked is None and connection.bytes_received is None:
        return None
    return (connection.bytes_acked or 0) + (connection.bytes_received or 0)
