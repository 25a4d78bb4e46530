# SPDX-License-Identifier: BSD-3-Clause
"""Several subflows on the same two addresses, of which the slowest is replaced from time to time.

Networks with equal-cost paths spread flows by their ports: two subflows may share a crowded
path while others lie idle.  So every interval the subflow that moved the fewest bytes is
replaced, if it lags well behind the others: a new one joins from another port first, and if it is
established an interval later, the slow one is destroyed.  An idle connection is left alone.
"""

from collections.abc import Iterable, Iterator
from typing import Annotated, ClassVar

from msgspec import Meta

from mptcpd_ebpf.plugin import (
    SECOND,
    Command,
    Connection,
    Context,
    JoiningPlugin,
    Options,
    RequestSample,
    Subflow,
    SubflowKey,
    WakeAt,
    Want,
    join_target,
)


class RefreshOptions(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be set under `plugins: refresh:`."""

    subflows: Annotated[int, Meta(ge=2, le=64)] = 4
    """Of each connection, the initial one included."""
    interval_s: Annotated[int, Meta(ge=1)] = 3
    """Between two checks of a connection's subflows."""
    lag_percent: Annotated[int, Meta(ge=1, le=100)] = 50
    """A subflow that moved less than this share of the median is replaced."""
    least_kib: Annotated[int, Meta(ge=1)] = 256
    """What a connection must have moved within an interval to be judged at all."""


class Refresh(JoiningPlugin):
    name = "refresh"
    Options: ClassVar[type[Options]] = RefreshOptions

    options: RefreshOptions

    def init(self, ctx: Context) -> Iterable[Command]:
        self.moved: dict[tuple[int, SubflowKey], int] = {}
        """Bytes acknowledged on each subflow at the last check."""
        self.going: dict[int, SubflowKey] = {}
        """By token: the subflow that is destroyed when its successor is established."""
        self.look_at = ctx.now + self.options.interval_s * SECOND
        self.looking = False
        """A sample was requested."""
        yield WakeAt(at=self.look_at, reason="the next look")
        yield from super().init(ctx)

    def wants(self, ctx: Context, connection: Connection) -> Iterator[Want]:
        remote = join_target(connection)
        if connection.server_side or remote is None:
            return
        if any(address.ip == connection.local.ip for address in ctx.world.usable_addresses()):
            number = self.options.subflows + (connection.token in self.going)
            reason = f"{number} subflows are wanted on this path"
            yield Want(connection.local.ip, remote, reason, number=number)

    def wake(self, ctx: Context) -> Iterable[Command]:
        if ctx.now >= self.look_at:
            self.look_at = ctx.now + self.options.interval_s * SECOND
            if ctx.served():
                self.looking = True
                yield RequestSample(reason="which subflow is the slowest?")
        yield WakeAt(at=self.look_at, reason="the next look")

    def sampled(self, ctx: Context) -> Iterable[Command]:
        yield from super().sampled(ctx)
        if not self.looking:
            return
        self.looking = False
        moved: dict[tuple[int, SubflowKey], int] = {}
        for connection in ctx.served():
            now = {s.key: _bytes_acked(s) for s in connection.usable_subflows()}
            since = {
                key: acked - self.moved[connection.token, key]
                for key, acked in now.items()
                if (connection.token, key) in self.moved
            }
            moved |= {(connection.token, key): acked for key, acked in now.items()}
            yield from self._judge(ctx, connection, since)
        self.moved = moved

    def _judge(
        self, ctx: Context, connection: Connection, since: dict[SubflowKey, int]
    ) -> Iterator[Command]:
        """Replaces the subflow that lags, if all were there during the whole interval."""
        token = connection.token
        if token in self.going:
            yield from self._end_going(connection)
            return
        whole = len(since) >= self.options.subflows
        if connection.server_side or not whole or sum(since.values()) < self._least():
            return
        ordered = sorted(since.values())
        median = ordered[len(ordered) // 2]
        slowest = min(since, key=lambda key: since[key])
        if since[slowest] * 100 < median * self.options.lag_percent:
            self.going[token] = slowest
            yield from self.keep(ctx, connection)

    def _end_going(self, connection: Connection) -> Iterator[Command]:
        """Destroys the slowest if its successor is still established an interval later. A peer at
        its limit answers a join, and resets it a round trip later.
        """
        slowest = connection.subflows.get(self.going[connection.token])
        if slowest is None or len(connection.usable_subflows()) <= self.options.subflows:
            del self.going[connection.token]
        elif not self.reconciler.is_leaving(slowest):
            yield self.reconciler.destroy(slowest, "it is the slowest; another takes its place")

    def _least(self) -> int:
        return self.options.least_kib * 1024

    def subflow_closed(
        self, ctx: Context, connection: Connection, subflow: Subflow
    ) -> Iterable[Command]:
        if self.going.get(connection.token) == subflow.key:
            del self.going[connection.token]
        yield from super().subflow_closed(ctx, connection, subflow)

    def connection_closed(self, ctx: Context, connection: Connection) -> Iterable[Command]:
        self.going.pop(connection.token, None)
        return super().connection_closed(ctx, connection)


def _bytes_acked(subflow: Subflow) -> int:
    measured = subflow.measured
    return (measured.bytes_acked or 0) if measured is not None else 0
