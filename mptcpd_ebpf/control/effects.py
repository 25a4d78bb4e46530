# SPDX-License-Identifier: BSD-3-Clause
"""What came of a decision in numbers: goodput and waiting of the connection before and after it.

Alarms, samples and final records give counters of a connection at irregular times (`Effects.note`).
The two spans that are compared therefore have the lengths that the readings allow, and each length
is part of the result.  What happened to the path itself in the meantime is in the numbers too.
"""

from bisect import bisect_right
from math import inf
from typing import NamedTuple, TypedDict

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.measurement import Measurement

MS = 1_000_000
SHORTEST = 200 * MS
"""Nanoseconds between two readings that are compared, at least."""
BEFORE = 3000 * MS
AFTER = 5000 * MS
"""Nanoseconds that are looked at before and after a decision, where readings allow."""


class Reading(NamedTuple):
    """The counters of a connection at one moment."""

    at: int
    """CLOCK_MONOTONIC nanoseconds."""
    carried: int
    """Bytes acknowledged and received."""
    blocked_us: int
    """How long the connection has waited for its subflows, added up, microseconds."""


class Span(TypedDict):
    """A connection over some time."""

    seconds: float
    goodput_bit_s: float
    waited: float
    """Part of the time in which the connection waited for a subflow: stalls and holes; with
    several subflows the sum may exceed 1."""


class Effect(TypedDict):
    before: Span
    after: Span


class Effects:
    """The readings of all connections, and the times of decisions."""

    def __init__(self) -> None:
        self._readings: dict[int, list[Reading]] = {}
        self._blocked: dict[int, dict[tuple[SockAddr, SockAddr], int]] = {}
        self._decided: dict[int, list[int]] = {}

    def established(self, token: int, at: int) -> None:
        """A connection begins, with all counters at 0."""
        self._readings[token] = [Reading(at, 0, 0)]
        self._blocked[token] = {}

    def note(self, measured: Measurement) -> None:
        """A measurement of one subflow, which includes counters of its connection."""
        acked, received = measured.connection_bytes_acked, measured.connection_bytes_received
        if acked is None and received is None:
            return
        blocked = self._blocked.setdefault(measured.token, {})
        own = (measured.stalled_us or 0) + (measured.holes_us or 0)
        blocked[measured.local, measured.remote] = own
        reading = Reading(measured.at, (acked or 0) + (received or 0), sum(blocked.values()))
        known = self._readings.setdefault(measured.token, [])
        if known and reading.at < known[-1].at:
            return  # a final record that was read late
        if known and reading.at == known[-1].at:
            known.pop()
        known.append(reading)

    def decided(self, token: int, at: int) -> None:
        self._decided.setdefault(token, []).append(at)

    def of(self, token: int, at: int) -> Effect | None:
        """The effect of what was decided for a connection at `at`; None: there are no readings.

        The span after it ends with the connection's next decision.
        """
        known = self._readings.get(token, [])
        number = _after(known, at) - 1
        old_enough = _after(known, known[number].at - SHORTEST) - 1 if number > 0 else -1
        if old_enough < 0:
            return None
        base = known[number]
        first = known[min(_after(known, base.at - BEFORE - 1), old_enough)]
        # Without a reading at about the time of the decision, what follows begins with the next.
        begin = number if at - base.at <= SHORTEST else number + 1
        settled = _after(known, known[begin].at + SHORTEST - 1) if begin < len(known) else begin
        decided = self._decided.get(token, [])
        following = bisect_right(decided, at)
        limit = decided[following] if following < len(decided) else inf
        if settled == len(known) or known[settled].at > limit:
            return None
        last = known[max(_after(known, min(at + AFTER, limit)) - 1, settled)]
        return {"before": _span(first, base), "after": _span(known[begin], last)}


def _after(readings: list[Reading], at: float) -> int:
    """The position of the first reading after `at`."""
    return bisect_right(readings, at, key=lambda each: each.at)


def _span(first: Reading, last: Reading) -> Span:
    seconds = (last.at - first.at) / 1e9
    return {
        "seconds": round(seconds, 3),
        "goodput_bit_s": round((last.carried - first.carried) * 8 / seconds, 1),
        "waited": round(max(last.blocked_us - first.blocked_us, 0) / 1e6 / seconds, 3),
    }


def effect_text(effect: Effect) -> str:
    """The effect in one clause."""
    before, after = effect["before"], effect["after"]
    text = (
        f"{_rate(before['goodput_bit_s'])} in the {before['seconds']:.1f} s before, "
        f"{_rate(after['goodput_bit_s'])} in the {after['seconds']:.1f} s after"
    )
    if before["waited"] >= 0.005 or after["waited"] >= 0.005:
        text += (
            f"; the connection waited for subflows {before['waited']:.0%} of the time before, "
            f"{after['waited']:.0%} after"
        )
    return text


def _rate(bit_s: float) -> str:
    return f"{bit_s / 1e6:.1f} Mbit/s" if bit_s >= 1e6 else f"{bit_s / 1e3:.0f} kbit/s"
