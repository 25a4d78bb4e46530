# SPDX-License-Identifier: BSD-3-Clause
"""The baseline: a published rule that scores the subflows of a sender once a second.

    score = 0.2 · RTT / least RTT + 1.0 · retransmitted segments in per cent

It is the rule of ADAPTIVE-MPTCP-CONTROLLER (2026), with its published parameters: the share of
retransmitted segments is an exponential mean (½); after 3 s of warm-up, a subflow with a score
above 4 in 3 samples in a row becomes backup, where another active one is healthy, or at once if it
sent nothing for 3 s; it is active again after 3 samples below 4 - 1.5, or for a trial after 60 s;
a subflow changes at most every 5 s, and one at a time.  A subflow with 30 % or more retransmitted,
or without progress, is not healthy.  Paths are joined as by `fullmesh`, without a pause.
Its destruction of a subflow that has failed for 10 s is left out: it is backup by then.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from mptcpd_ebpf.plugin import (
    SECOND,
    Command,
    Connection,
    Context,
    JoiningPlugin,
    RequestSample,
    Subflow,
    SubflowKey,
    WakeAt,
    Want,
    join_target,
    same_family,
)

RTT_WEIGHT, RETRANSMIT_WEIGHT = 0.2, 1.0
DEMOTE_ABOVE, HYSTERESIS = 4.0, 1.5
SAMPLES = 3
FEW_SEGMENTS = 10
FAILING = 0.3
INTERVAL = SECOND
WARM_UP = 3 * SECOND
SILENT = 3 * SECOND
BETWEEN_ACTIONS = 5 * SECOND
TRIAL_AFTER = 60 * SECOND


@dataclass(slots=True)
class Scored:
    """What is known of one subflow.  Times are nanoseconds."""

    since: int
    progress_at: int
    changed_at: int
    segments: int = 0
    retransmits: int = 0
    rate: float = 0.0
    """Share of retransmitted segments, an exponential mean."""
    above: int = 0
    below: int = 0
    score: float = 0.0
    backup: str | None = None
    """Why it is backup; None: it is active."""

    def failing(self, now: int) -> bool:
        return self.rate >= FAILING or now - self.progress_at >= SILENT


class Score(JoiningPlugin):
    name = "score"

    def init(self, ctx: Context) -> Iterator[Command]:
        self.scored: dict[int, dict[SubflowKey, Scored]] = {}
        """By token and subflow."""
        yield from super().init(ctx)
        yield _next(ctx)

    def wants(self, ctx: Context, connection: Connection) -> Iterator[Want]:
        remote = join_target(connection)
        if connection.server_side or remote is None:
            return
        marked = {
            (key[0].ip, key[1]): each.backup
            for key, each in self.scored.get(connection.token, {}).items()
        }
        for address in ctx.world.usable_addresses():
            if same_family(address.ip, remote.ip):
                why = marked.get((address.ip, remote))
                yield Want(address.ip, remote, why or "every path carries data", why is not None)

    def connection_closed(self, ctx: Context, connection: Connection) -> Iterator[Command]:
        self.scored.pop(connection.token, None)
        yield from super().connection_closed(ctx, connection)

    def wake(self, ctx: Context) -> Iterator[Command]:
        yield _next(ctx)
        if ctx.connections:
            yield RequestSample(reason="the score is computed each second", routine=True)

    def sampled(self, ctx: Context) -> Iterator[Command]:
        yield from super().sampled(ctx)
        for connection in ctx.served():
            if not connection.server_side and self._step(ctx.now, connection):
                yield from self.keep(ctx, connection)

    def _step(self, now: int, connection: Connection) -> bool:
        """Scores the subflows; whether one of them changed."""
        known = self.scored.setdefault(connection.token, {})
        subflows = connection.usable_subflows()
        for key in [key for key in known if key not in {each.key: None for each in subflows}]:
            del known[key]
        for subflow in subflows:
            read(known.setdefault(subflow.key, Scored(now, now, 0)), subflow, now)
        warm = [s for s in subflows if s.measured and now - known[s.key].since >= WARM_UP]
        rtts = {s.key: s.measured.srtt_us for s in warm if s.measured and s.measured.srtt_us}
        healthy = [rtts[key] for key in rtts if not known[key].failing(now)]
        if not rtts:
            return False
        least = min(healthy or rtts.values())
        for key, rtt in rtts.items():
            count(known[key], RTT_WEIGHT * rtt / least + RETRANSMIT_WEIGHT * 100 * known[key].rate)
        return change({key: known[key] for key in rtts}, now)


def read(scored: Scored, subflow: Subflow, now: int) -> None:
    """Takes over the counters of a sample."""
    measured = subflow.measured
    if measured is None or measured.segments_out is None or measured.retransmits is None:
        return
    sent = measured.segments_out - scored.segments
    again = measured.retransmits - scored.retransmits
    if sent > 0:
        scored.progress_at = now
    if sent >= FEW_SEGMENTS or again > 0:
        share = again / sent if sent >= FEW_SEGMENTS else again / max(sent, again)
        scored.rate = (scored.rate + min(1.0, share)) / 2
    scored.segments, scored.retransmits = measured.segments_out, measured.retransmits


def count(scored: Scored, score: float) -> None:
    """Counts the samples in a row beyond a threshold."""
    scored.score = score
    scored.above = scored.above + 1 if score > DEMOTE_ABOVE else 0
    scored.below = scored.below + 1 if score < DEMOTE_ABOVE - HYSTERESIS else 0


def change(scored: dict[SubflowKey, Scored], now: int) -> bool:
    """Demotes or restores at most one subflow; whether it did."""

    def may(each: Scored) -> bool:
        return now - each.changed_at >= BETWEEN_ACTIONS

    healthy = [s for s in scored.values() if s.backup is None and not s.failing(now)]
    worst_first = sorted(scored.values(), key=lambda each: -each.score)
    if not healthy:
        for each in reversed(worst_first):
            if each.backup is not None and not each.failing(now):
                return _set(each, None, now)
    for each in worst_first:
        silent = now - each.progress_at >= SILENT
        spare = any(other is not each for other in healthy)
        if each.backup is None and spare and may(each) and (silent or each.above >= SAMPLES):
            why = "it sent nothing for 3 s" if silent else f"score {each.score:.1f} in 3 samples"
            return _set(each, why, now)
    for each in scored.values():
        if each.backup is None or not may(each):
            continue
        recovered = not each.failing(now) and each.below >= SAMPLES
        if recovered or now - each.changed_at >= TRIAL_AFTER:
            return _set(each, None, now)
    return False


def _set(scored: Scored, why: str | None, now: int) -> bool:
    scored.backup, scored.changed_at = why, now
    scored.above = scored.below = 0
    return True


def _next(ctx: Context) -> WakeAt:
    return WakeAt(at=ctx.now + INTERVAL, reason="the next sample")
