# SPDX-License-Identifier: BSD-3-Clause
"""Paths on standby because the others wait for them: how long, and whether that was right.

A path of a connection is demoted for a while that doubles with each relapse.  Where the goodput
before is known, it is compared with the goodput afterwards (assessment.py): a demotion without
which the connection was faster is undone, and the path then counts as useful for a while, which
also doubles.

Plain data and generators of commands: the plugin that owns a `Demotions` takes the samples, and
brings the subflows to what `why_standby` says.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from mptcpd_ebpf.core.assessment import FALLEN, WORSE, Comparison, Readings, Worth, compare
from mptcpd_ebpf.core.commands import WakeAt
from mptcpd_ebpf.core.model import MS, SECOND, Connection, PathName, Subflow
from mptcpd_ebpf.core.plugin import Context
from mptcpd_ebpf.core.trials import path_name, usual_rtt

READING_PAUSE = SECOND
"""Nanoseconds between the readings of a connection that transfers data over several paths."""
TRANSFERS = 125_000
"""Bytes per second above which a connection transfers data."""
SOME = 10_000
"""Bytes per second below which a connection is idle, and its goodput says nothing of its paths."""
LOW_READINGS = 2
"""Consecutive readings far below the former goodput that end a demotion."""
FORGOTTEN = 11
"""A path that behaves for so many times its last hold has not relapsed."""


@dataclass(slots=True)
class _Hold:
    """How long the last change of a path lasted."""

    length: int
    """Nanoseconds."""
    forgotten_at: int


@dataclass(slots=True)
class _Demotion:
    """A path of one connection on standby."""

    until: int
    reason: str
    comparison: Comparison | None
    goodput: float | None
    """Of the connection around the demotion, bytes per second; None: not known."""
    low: int = 0
    """Consecutive readings far below that."""


@dataclass(slots=True)
class _State:
    """What is known of one connection.  Times are CLOCK_MONOTONIC nanoseconds."""

    readings: Readings = field(default_factory=Readings)
    reading_at: int = 0
    """When the next reading is due; 0: none."""
    demoted: dict[PathName, _Demotion] = field(default_factory=dict)
    restored: dict[PathName, str] = field(default_factory=dict)
    """Paths whose demotion ended, and why."""
    useful_until: dict[PathName, int] = field(default_factory=dict)
    """Paths without which the goodput was less."""


class Demotions:
    """The demoted paths of all connections that a plugin serves.

    `first` and `longest`: nanoseconds of a path's first demotion, and at most.
    """

    def __init__(self, *, first: int, longest: int) -> None:
        self._first = first
        self._longest = longest
        self._states: dict[int, _State] = {}
        """By token."""
        self._holds: dict[PathName, _Hold] = {}

    def why_standby(self, token: int, name: PathName) -> str | None:
        """Why a path is on standby; None: it is not."""
        state = self._states.get(token)
        demotion = state.demoted.get(name) if state is not None else None
        return demotion.reason if demotion is not None else None

    def is_standby(self, name: PathName) -> bool:
        """Whether a path is on standby for some connection."""
        return any(name in state.demoted for state in self._states.values())

    def why_active(self, token: int, name: PathName) -> str | None:
        """Why a path is active again; None: it was not demoted."""
        state = self._states.get(token)
        return state.restored.get(name) if state is not None else None

    def demote(
        self, ctx: Context, connection: Connection, subflow: Subflow, words: str, *, compared: bool
    ) -> Iterator[WakeAt]:
        """Puts a subflow's path on standby; `words` are the evidence.

        If `compared`, nothing happens while the path counts as useful, and the effect on the
        goodput is measured where that before is known.
        """
        state = self._state(connection.token)
        name = path_name(subflow)
        comparison = None
        worth = self.worth(ctx, connection, subflow)
        if compared:
            if state.useful_until.get(name, 0) > ctx.now or (worth is not None and worth.helps):
                return
            if worth is not None:
                slowest = max(usual_rtt(each) for each in connection.usable_subflows())
                comparison = compare(worth.goodput, ctx.now, slowest)
        hold = self._next_hold(ctx.now, name)
        reason = f"{words}; on backup for {hold // SECOND} s"
        goodput = worth.goodput if worth is not None else None
        state.demoted[name] = _Demotion(ctx.now + hold, reason, comparison, goodput)
        yield _wake(connection.token, ctx.now + hold)
        if comparison is not None:
            yield _wake(connection.token, comparison.begins)
            yield _wake(connection.token, comparison.ends)

    def undo(self, token: int, name: PathName) -> None:
        """A demotion was not carried out: the path has not relapsed."""
        state = self._state(token)
        if state.demoted.pop(name, None) is not None:
            self._holds.pop(name, None)

    def end_due(self, now: int, connection: Connection) -> None:
        """Ends demotions whose time is over."""
        state = self._state(connection.token)
        for name in [name for name, held in state.demoted.items() if held.until <= now]:
            del state.demoted[name]
            hold = self._holds.get(name)
            over = "the demotion is over" if hold is None else f"{hold.length // SECOND} s are over"
            state.restored[name] = f"{over}, another try"

    def end_comparisons(self, ctx: Context, connection: Connection) -> Iterator[WakeAt]:
        """After a reading: undoes demotions that made the goodput worse."""
        state = self._state(connection.token)
        for name, demotion in list(state.demoted.items()):
            comparison = demotion.comparison
            if comparison is None or comparison.ends > ctx.now:
                continue
            subflow = next((s for s in connection.usable_subflows() if path_name(s) == name), None)
            after = comparison.verdict(state.readings, connection, subflow, ctx.now)
            if comparison.ends > ctx.now:
                yield _wake(connection.token, comparison.ends)
                continue
            demotion.comparison = None
            if after is None or after >= WORSE * comparison.before:
                demotion.goodput = after or demotion.goodput
                continue
            del state.demoted[name]
            state.useful_until[name] = ctx.now + self._next_hold(ctx.now, name)
            state.restored[name] = (
                f"without it the goodput is {_mbit(after)}, with it {_mbit(comparison.before)}"
            )

    # --- readings

    def worth(self, ctx: Context, connection: Connection, subflow: Subflow) -> Worth | None:
        """What a subflow is worth now, just after it was measured; None: not known."""
        return self._state(connection.token).readings.worth(connection, subflow, ctx.now)

    def read_soon(self, ctx: Context, connection: Connection) -> bool:
        """Notes what is known; True if a sample is needed, after which readings go on while the
        connection transfers data."""
        state = self._state(connection.token)
        state.readings.note(connection, ctx.now)
        if state.reading_at:
            return False
        state.reading_at = ctx.now + READING_PAUSE
        return True

    def read(self, ctx: Context, connection: Connection) -> Iterator[WakeAt]:
        """A sample was taken: notes it, and plans the next while the connection transfers data."""
        state = self._state(connection.token)
        state.readings.note(connection, ctx.now)
        self._restore_if_fallen(state)
        goodput = state.readings.goodput(ctx.now - 2 * READING_PAUSE)
        several = len(connection.usable_subflows()) > 1
        falling = any(demotion.low for demotion in state.demoted.values())
        state.reading_at = 0
        if several and (falling or goodput is None or goodput > TRANSFERS):
            state.reading_at = ctx.now + READING_PAUSE
            yield _wake(connection.token, state.reading_at)

    def _restore_if_fallen(self, state: _State) -> None:
        """Ends demotions when the goodput has fallen since: the other paths have become worse."""
        latest = state.readings.latest()
        for name, demotion in list(state.demoted.items()):
            fell = (
                latest is not None
                and demotion.comparison is None
                and demotion.goodput is not None
                and SOME < latest < FALLEN * demotion.goodput
            )
            demotion.low = demotion.low + 1 if fell else 0
            if demotion.low >= LOW_READINGS and latest is not None:
                del state.demoted[name]
                self._holds.pop(name, None)
                state.restored[name] = (
                    f"the goodput fell from {_mbit(demotion.goodput or 0)} to {_mbit(latest)}"
                )

    def needs_sample(self, now: int, token: int) -> bool:
        """Whether a reading is due, or the bounds of a comparison are."""
        state = self._state(token)
        return bool(state.reading_at and state.reading_at <= now) or any(
            held.comparison is not None for held in state.demoted.values()
        )

    def connection_closed(self, token: int) -> None:
        self._states.pop(token, None)

    def _state(self, token: int) -> _State:
        state = self._states.get(token)
        if state is None:
            state = self._states[token] = _State()
        return state

    def _next_hold(self, now: int, name: PathName) -> int:
        length = self._first
        held = self._holds.get(name)
        if held is not None and now < held.forgotten_at:
            length = min(held.length * 2, self._longest)
        self._holds[name] = _Hold(length, now + FORGOTTEN * length)
        return length


def _wake(token: int, at: int) -> WakeAt:
    return WakeAt(at=at + MS, token=token, reason="a change of a path's role is due")


def _mbit(goodput: float) -> str:
    return f"{goodput * 8 / 1e6:.1f} Mbit/s"
