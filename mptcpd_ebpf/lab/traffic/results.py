# SPDX-License-Identifier: BSD-3-Clause
"""The results of traffic, as plain data.

All times are CLOCK_MONOTONIC nanoseconds.  All processes of a machine share this clock, so the
times of sender, receiver, probes and daemon are comparable.
"""

from bisect import bisect_right
from collections.abc import Iterable
from itertools import pairwise

from msgspec import Struct


class Percentiles(Struct, frozen=True, kw_only=True):
    """A distribution of times in milliseconds; all None but `n` when there is none."""

    n: int
    min_ms: float | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    max_ms: float | None = None
    mean_ms: float | None = None


def percentiles(times_ns: Iterable[int]) -> Percentiles:
    """Percentiles by the nearest-rank rule: each is a value that occurred."""
    times = sorted(times_ns)
    if not times:
        return Percentiles(n=0)

    def rank(percent: int) -> float:
        return times[max(0, -(-percent * len(times) // 100) - 1)] / 1e6

    return Percentiles(
        n=len(times),
        min_ms=times[0] / 1e6,
        p50_ms=rank(50),
        p90_ms=rank(90),
        p99_ms=rank(99),
        max_ms=times[-1] / 1e6,
        mean_ms=sum(times) / len(times) / 1e6,
    )


class Message(Struct, frozen=True, array_like=True):
    """One message: a request with its response, or one of a stream."""

    sent_at: int
    """When it was due and passed to the socket."""
    latency_ns: int | None
    """Until the response (of a stream: the message) was complete; None if it never was."""


class _Result(Struct, frozen=True, kw_only=True):
    token: int | None
    """The client's local token; None without MPTCP, also after a fallback at the start."""
    error: str | None
    """Why the connection ended early, None if it did not."""


class _Messages(_Result, frozen=True, kw_only=True):
    messages: list[Message]

    @property
    def latency(self) -> Percentiles:
        return self.between(0, 1 << 63)

    def between(self, start: int, end: int) -> Percentiles:
        """Latency of the messages sent from `start` to before `end`."""
        return percentiles(
            message.latency_ns
            for message in self.messages
            if start <= message.sent_at < end and message.latency_ns is not None
        )

    @property
    def unanswered(self) -> int:
        return sum(message.latency_ns is None for message in self.messages)


class RequestResponseResult(_Messages, frozen=True, kw_only=True):
    """A message is a request; its latency is the time until the complete response."""


class StreamResult(_Messages, frozen=True, kw_only=True):
    """A message's latency is the time until it arrived at the other end."""


class ShortConnectionsResult(_Messages, frozen=True, kw_only=True):
    """A message is a connection, from connect to the complete response."""


class BulkResult(_Result, frozen=True, kw_only=True):
    started_at: int
    """When the sender began."""
    arrivals: list[tuple[int, int]]
    """(time, bytes received so far), one row per chunk."""

    @property
    def bytes(self) -> int:
        return self.arrivals[-1][1] if self.arrivals else 0

    @property
    def seconds(self) -> float:
        """From the sender's start to the last arrival."""
        return (self.arrivals[-1][0] - self.started_at) / 1e9 if self.arrivals else 0.0

    @property
    def mbit(self) -> float:
        """Mean goodput, Mbit/s."""
        return self.bytes * 8e-6 / self.seconds if self.arrivals else 0.0

    def mbit_between(self, start: int, end: int) -> float:
        """Goodput from `start` to `end`, Mbit/s, to the precision of a chunk."""
        return (self._bytes_at(end) - self._bytes_at(start)) * 8e3 / max(1, end - start)

    def _bytes_at(self, at: int) -> int:
        row = bisect_right(self.arrivals, (at, 1 << 62))
        return self.arrivals[row - 1][1] if row else 0

    @property
    def longest_gap_ms(self) -> float:
        """The longest time without a chunk's arrival."""
        times = [self.started_at, *(at for at, _ in self.arrivals)]
        return max((b - a for a, b in pairwise(times)), default=0) / 1e6


AnyResult = RequestResponseResult | StreamResult | ShortConnectionsResult | BulkResult
