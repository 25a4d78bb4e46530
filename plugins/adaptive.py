# SPDX-License-Identifier: BSD-3-Clause
"""One subflow per usable interface, on the paths that do no harm.

The probes' alarms are the evidence, a preset states what follows from it (core/roles.py), and the
measured goodput decides where the evidence is ambiguous (core/assessment.py):

* A dead path, or a thin flow's path with loss or delay, is left: its subflow is destroyed, which
  sends its data again on the others at once, and the path is away until probes show that it has
  recovered (`Trials`).
* A path for which the others wait is marked backup, which MP_PRIO also asks of the peer, and used
  again after a pause that doubles with each repetition.  Where a full flow would lose goodput
  without it, the path stays, or the decision is undone.

On the server side nothing is joined or destroyed, since two managers at the two ends of one
connection would work against each other: a path that harms what the server sends is marked backup.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Annotated, ClassVar

from msgspec import Meta

from mptcpd_ebpf.plugin import (
    EVIDENCE,
    MS,
    SECOND,
    AlarmKind,
    AlarmRaised,
    Answer,
    AwayPath,
    Command,
    Connection,
    Context,
    Decision,
    Demotions,
    DestroySubflow,
    Evidence,
    JoiningPlugin,
    LocalAddress,
    Options,
    PathName,
    Preset,
    ProbePath,
    RequestSample,
    Role,
    SetBackup,
    SockAddr,
    State,
    Subflow,
    SubflowKey,
    Trials,
    WakeAt,
    Want,
    alarm_text,
    answer,
    join_target,
    mark,
    path_name,
    patience,
    report_path,
    same_family,
    usual_rtt,
)

Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]

REPEATED = 3 * SECOND
"""Nanoseconds within which a second hole alarm of a path is evidence where the first was not plain.
A single one also occurs on useful paths, while the peer's congestion windows open after a join
(docs/probes.md)."""


class AdaptiveOptions(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be set under `plugins: adaptive:`."""

    preset: Preset = Preset.AUTO
    """What connections need: auto, interactive, bulk, handover or backup; a rule can name another
    one for its connections."""
    prefer: list[str] = []
    """Patterns of interface names, the preferred first; others follow in the kernel's order."""
    metered: list[str] = []
    """Patterns of interfaces that carry data only while no other path works."""
    min_connection_age_ms: NotNegative = 0
    """Younger connections get no further subflow, unless their only path fails."""
    min_bytes: NotNegative = 0
    """The same for connections that have transferred fewer bytes."""
    probes_to_return: Positive = 10
    """Path probes in a row that must be answered in time before a path is used again."""
    probe_pause_ms: Positive = 400
    """Pause after a lost probe; grows by half with each up to `probe_pause_max_ms`."""
    probe_pause_max_ms: Positive = 1500
    demotion_s: Positive = 10
    """How long a path that blocks others stays backup at first; doubles with each relapse."""
    demotion_max_s: Positive = 320
    thin_segments: Positive = 10
    """At most so many segments in flight make a flow thin: loss and RTT hurt it."""


@dataclass(slots=True)
class ConnectionState:
    """What the plugin remembers of one connection.  Times are nanoseconds."""

    hole_at: dict[SubflowKey, int] = field(default_factory=dict)
    """When a subflow's last hole alarm was raised."""
    moving: dict[SubflowKey, int] = field(default_factory=dict)
    """Subflows on backup that are to be created anew, and when."""
    returned_rtt: int | None = None
    """Usual RTT of the path that just returned, until a sample shows which subflows are slower."""


class Adaptive(JoiningPlugin):
    name = "adaptive"
    priority = 10
    Options: ClassVar[type[Options]] = AdaptiveOptions

    options: AdaptiveOptions

    def init(self, ctx: Context) -> Iterator[Command]:
        self.states: dict[int, ConnectionState] = {}
        """By token."""
        self.sampled_for: dict[int, None] = {}
        """Tokens of the connections that wait for a sample."""
        self.standby: dict[PathName, None] = {}
        """Paths that were reported as on standby."""
        self.demotions = Demotions(
            first=self.options.demotion_s * SECOND, longest=self.options.demotion_max_s * SECOND
        )
        self.trials = Trials(
            pause=self.options.probe_pause_ms * MS,
            longest_pause=self.options.probe_pause_max_ms * MS,
            take_back=self._take_back,
        )
        yield from super().init(ctx)

    def exit(self, ctx: Context) -> Iterator[Command]:
        """Clears the backup flag of every subflow on which we set it."""
        for connection in ctx.served():
            for subflow in connection.usable_subflows():
                if subflow.backup:
                    yield mark(subflow, "the daemon ends", backup=False)

    def _state(self, token: int) -> ConnectionState:
        state = self.states.get(token)
        if state is None:
            state = self.states[token] = ConnectionState()
        return state

    def _preset(self, ctx: Context, connection: Connection) -> Preset:
        named = ctx.presets.get(connection.token)
        return Preset(named) if named is not None else self.options.preset

    # --- desired state: a subflow per usable interface, each with the role of its path

    def wants(self, ctx: Context, connection: Connection) -> Iterator[Want]:
        if connection.server_side:
            return
        remote = join_target(connection)
        if remote is None:
            return
        carrying = self.reconciler.carrying(ctx.world, connection)
        if carrying and self._is_short(ctx, connection):
            return
        places = self._places(ctx, connection, carrying, remote)
        there = {(s.local.ip, s.remote) for s in carrying}
        open_places = [
            place
            for place in places
            if place in there or not carrying or (place[0], place[1].ip) not in self.trials
        ]
        slow = {p: self.demotions.why_standby(connection.token, (p[0], p[1].ip)) for p in places}
        primary = next((place for place in open_places if not slow[place]), None)
        for place in open_places:
            local_ip, target = place
            name = (local_ip, target.ip)
            interface = ctx.world.interface_name(ctx.world.interface_of(local_ip)) or local_ip
            if (why := slow[place]) is not None:
                yield Want(local_ip, target, why, backup=True)
            elif self._stands_by(ctx, connection, interface, place == primary):
                yield Want(local_ip, target, f"{interface} stands by", backup=True)
            elif place in there:
                why = self.demotions.why_active(connection.token, name)
                yield Want(local_ip, target, why or f"{interface} carries data", backup=False)
            else:
                why = f"{interface} is usable and has no subflow"
                if not carrying:
                    left = "that works" if connection.usable_subflows() else "left"
                    why = f"the connection has no subflow {left}; {interface} is usable"
                yield Want(local_ip, target, why, backup=False)

    def _places(
        self, ctx: Context, connection: Connection, carrying: list[Subflow], remote: SockAddr
    ) -> list[tuple[str, SockAddr]]:
        """Between which addresses there is or should be a subflow, one an interface, in order of
        preference."""
        found: dict[int | None, tuple[str, SockAddr]] = {}
        moving = self._state(connection.token).moving
        for subflow in carrying:
            if subflow.key not in moving:
                if_index = subflow.if_index or ctx.world.interface_of(subflow.local.ip)
                found.setdefault(if_index, (subflow.local.ip, subflow.remote))
        for subflow in connection.subflows.values():
            # It is closing or moves: its interface gets another one when it is closed.
            if self.reconciler.is_leaving(subflow) or subflow.key in moving:
                found.setdefault(subflow.if_index, ("", remote))
        for address in ctx.world.usable_addresses():
            if same_family(address.ip, remote.ip) and not self.reconciler.declines(
                connection.token, address.ip
            ):
                found.setdefault(address.if_index, (address.ip, remote))
        ranked = sorted(found.items(), key=lambda item: self._rank(ctx, item[0]))
        return [place for _, place in ranked if place[0]]

    def _rank(self, ctx: Context, if_index: int | None) -> int:
        name = ctx.world.interface_name(if_index) or ""
        if _matches(name, self.options.metered):
            return len(self.options.prefer) + 1
        for rank, pattern in enumerate(self.options.prefer):
            if fnmatchcase(name, pattern):
                return rank
        return len(self.options.prefer)

    def _stands_by(
        self, ctx: Context, connection: Connection, interface: str, primary: bool
    ) -> bool:
        if primary:
            return False
        metered = _matches(interface, self.options.metered)
        return metered or self._preset(ctx, connection).one_active

    def _is_short(self, ctx: Context, connection: Connection) -> bool:
        """Whether the options say that the connection may be too short for another subflow."""
        age = ctx.now - (connection.opened_at or 0)
        moved = (connection.bytes_acked or 0) + (connection.bytes_received or 0)
        return (
            age < self.options.min_connection_age_ms * MS or moved < self.options.min_bytes
        ) and not connection.server_side

    def connection_established(self, ctx: Context, connection: Connection) -> Iterator[Command]:
        if self._is_short(ctx, connection):
            at = (connection.opened_at or 0) + self.options.min_connection_age_ms * MS
            yield _look_again(connection, max(at, ctx.now + 100 * MS))
        yield from super().connection_established(ctx, connection)

    def _look_at_short(self, ctx: Context, connection: Connection) -> Iterator[Command]:
        """Reads how much a connection has transferred, after pauses that double."""
        if self._is_short(ctx, connection):
            yield from self._sample(connection.token, "is the connection worth another subflow?")
            yield _look_again(connection, 2 * ctx.now - (connection.opened_at or 0))

    def keep(self, ctx: Context, connection: Connection) -> Iterator[Command]:
        if not connection.server_side:
            yield from super().keep(ctx, connection)
        elif connection.state is State.ESTABLISHED:
            yield from self.reconciler.set_flags(ctx, connection, self._flags(connection))

    def _flags(self, connection: Connection) -> list[Want]:
        """On the server side: the flags of the subflows that the peer made."""
        wants: dict[tuple[str, SockAddr], Want] = {}
        for subflow in connection.usable_subflows():
            name = path_name(subflow)
            slow = self.demotions.why_standby(connection.token, name)
            why = slow or self.demotions.why_active(connection.token, name) or "it carries data"
            pair = (subflow.local.ip, subflow.remote)
            wants[pair] = Want(*pair, why, backup=slow is not None)
        return list(wants.values())

    def delete_local_address(self, ctx: Context, address: LocalAddress) -> Iterator[Command]:
        yield from self.trials.forget(ctx, address.ip)
        yield from super().delete_local_address(ctx, address)

    # --- subflows open and close

    def new_subflow(
        self, ctx: Context, connection: Connection, subflow: Subflow
    ) -> Iterator[Command]:
        if connection.server_side:
            yield from self._read_soon(ctx, connection)
            return
        # A join that was destroyed just before its answer arrived is closing already.
        if self.reconciler.is_leaving(subflow):
            return
        yield from super().new_subflow(ctx, connection, subflow)
        was_away = path_name(subflow) in self.trials
        for command in self.trials.joined(ctx, subflow):
            if isinstance(command, DestroySubflow):
                yield self.reconciler.destroy(subflow, command.reason, routine=True)
            else:
                yield command
        if was_away and path_name(subflow) not in self.trials:
            for other in ctx.served():
                yield from self.keep(ctx, other)
        yield from self._read_soon(ctx, connection)

    def subflow_closed(
        self, ctx: Context, connection: Connection, subflow: Subflow
    ) -> Iterator[Command]:
        state = self._state(connection.token)
        ours = self.reconciler.is_leaving(subflow)
        state.hole_at.pop(subflow.key, None)
        state.moving.pop(subflow.key, None)
        lost = not ours and not connection.server_side and connection.state is not State.CLOSED
        if (
            lost
            and path_name(subflow) not in self.trials
            and connection.token in ctx.world.connections
            and self.reconciler.carrying(ctx.world, connection)
        ):
            why = f"{subflow} was closed ({_closing_words(subflow)})"
            yield from self.trials.put(ctx, subflow, why, needed=1)
        yield from super().subflow_closed(ctx, connection, subflow)

    def connection_closed(self, ctx: Context, connection: Connection) -> Iterator[Command]:
        self.states.pop(connection.token, None)
        self.demotions.connection_closed(connection.token)
        yield from self._report_restored(ctx, "the connection was closed")
        self.sampled_for.pop(connection.token, None)
        yield from super().connection_closed(ctx, connection)
        yield from self.trials.due(ctx)

    def answered(
        self, ctx: Context, decision: Decision, errno: int, explanation: str
    ) -> Iterator[Command]:
        command = decision.command
        if errno and isinstance(command, DestroySubflow):
            yield from self._stays(command)
        yield from super().answered(ctx, decision, errno, explanation)
        if errno and isinstance(command, ProbePath):
            yield from self.trials.unsent(ctx, command, errno)

    def path_probed(
        self, ctx: Context, decision: Decision, rtt_us: int | None
    ) -> Iterator[Command]:
        yield from self.trials.probed(ctx, decision, rtt_us)

    def refused(self, ctx: Context, decision: Decision) -> Iterator[Command]:
        command = decision.command
        yield from super().refused(ctx, decision)
        if isinstance(command, DestroySubflow):
            yield from self._stays(command)
        if isinstance(command, ProbePath):
            yield from self.trials.unsent(ctx, command)
        if isinstance(command, SetBackup) and command.backup:
            self.demotions.undo(command.token, (command.local.ip, command.remote.ip))
            yield from self._report_restored(ctx, "the daemon did not mark it backup")

    def _stays(self, command: DestroySubflow) -> Iterator[Command]:
        """A subflow was not destroyed after all."""
        state = self._state(command.token)
        if state.moving.pop((command.local, command.remote), None) is not None:
            yield SetBackup(
                token=command.token,
                local=command.local,
                remote=command.remote,
                backup=False,
                reason="the faster path failed again before this one moved behind it",
                routine=True,
            )

    # --- what the probes see

    def alarm(
        self, ctx: Context, connection: Connection, subflow: Subflow, alarm: AlarmRaised
    ) -> Iterator[Command]:
        # On backup it carries what was in flight, which a dead path never delivers.
        on_backup = subflow.backup or subflow.backup_by_peer
        if not subflow.usable or (on_backup and EVIDENCE[alarm.kind] is not Evidence.DEAD):
            return
        if self.reconciler.is_leaving(subflow):
            return
        others = [
            other
            for other in self.reconciler.carrying(ctx.world, connection)
            if other is not subflow
        ]
        if not others:
            yield from super().alarm(ctx, connection, subflow, alarm)
            return
        thin = (alarm.measurement.in_flight or 0) <= self.options.thin_segments
        if alarm.kind is AlarmKind.HOLE:
            thin = False  # what is received shows in no congestion window of ours
        regular = any(not other.backup for other in others)
        match answer(self._preset(ctx, connection), alarm.kind, thin=thin):
            case Answer.AWAY if alarm.kind is not AlarmKind.RTT or _is_slower(alarm, others):
                if not connection.server_side:
                    yield from self._leave(ctx, connection, subflow, alarm, len(others))
                elif regular:
                    yield from self._demote(ctx, connection, subflow, alarm)
            case Answer.STANDBY if regular:
                yield from self._demote(ctx, connection, subflow, alarm)
            case Answer.COMPARED if regular:
                if alarm.kind is not AlarmKind.HOLE or self._is_plain(ctx, connection, subflow):
                    yield from self._demote(ctx, connection, subflow, alarm, compared=True)
            case _:
                pass
        yield from self._read_soon(ctx, connection)

    def _leave(
        self,
        ctx: Context,
        connection: Connection,
        subflow: Subflow,
        alarm: AlarmRaised,
        others: int,
    ) -> Iterator[Command]:
        why = f"{alarm_text(alarm)}; {others} other subflow(s) can carry the data"
        yield self.reconciler.destroy(subflow, why)
        yield from self.trials.put(ctx, subflow, why, self.options.probes_to_return)
        yield from self.reconciler.withdraw_destroyed(
            ctx, connection, subflow, within=patience(usual_rtt(subflow))
        )
        yield from self.keep(ctx, connection)

    def _is_plain(self, ctx: Context, connection: Connection, subflow: Subflow) -> bool:
        """Whether a hole alarm is evidence: the second within `REPEATED`, or of a path that costs
        far more than it carries."""
        hole_at = self._state(subflow.token).hole_at
        before = hole_at.get(subflow.key)
        hole_at[subflow.key] = ctx.now
        worth = self.demotions.worth(ctx, connection, subflow)
        return (worth is not None and worth.harms) or (
            before is not None and ctx.now - before <= REPEATED
        )

    def _demote(
        self,
        ctx: Context,
        connection: Connection,
        subflow: Subflow,
        alarm: AlarmRaised,
        *,
        compared: bool = False,
    ) -> Iterator[Command]:
        words = alarm_text(alarm)
        yield from self.demotions.demote(ctx, connection, subflow, words, compared=compared)
        yield from self._report_demotion(ctx, connection, path_name(subflow))
        yield from self.keep(ctx, connection)

    def _report_demotion(
        self, ctx: Context, connection: Connection, name: PathName
    ) -> Iterator[Command]:
        reason = self.demotions.why_standby(connection.token, name)
        if reason is not None and name not in self.trials:
            self.standby[name] = None
            yield from report_path(ctx, name, Role.STANDBY, reason)

    def _report_restored(self, ctx: Context, why: str) -> Iterator[Command]:
        """Reports paths that no connection has on standby any more."""
        for name in [name for name in self.standby if not self.demotions.is_standby(name)]:
            del self.standby[name]
            if name not in self.trials:
                yield from report_path(ctx, name, Role.ACTIVE, why)

    # --- readings of the goodput

    def _read_soon(self, ctx: Context, connection: Connection) -> Iterator[Command]:
        if self.demotions.read_soon(ctx, connection):
            yield from self._sample(connection.token, "how much does each path carry?")

    def _sample(self, token: int, reason: str) -> Iterator[RequestSample]:
        """One sample serves all connections that wait for one."""
        if not self.sampled_for:
            yield RequestSample(reason=reason, routine=True)
        self.sampled_for[token] = None

    # --- paths that have recovered

    def _take_back(
        self, ctx: Context, path: AwayPath, connection: Connection, remote: SockAddr
    ) -> Iterator[Command]:
        local_ip, _ = path.name
        away_s = (ctx.now - path.fell_at) / SECOND
        interface = ctx.world.interface_name(ctx.world.interface_of(local_ip)) or local_ip
        recovered = f"{interface} is back after {away_s:.1f} s ({path.proof})"
        self._state(connection.token).returned_rtt = path.usual_rtt
        self.reconciler.path_works(*path.name)
        yield from self.reconciler.keep(
            ctx, connection, [Want(local_ip, remote, recovered, backup=False)]
        )
        for other in ctx.served():
            yield from self.keep(ctx, other)

    # --- order among subflows

    def _move_slower_ones(self, ctx: Context, connection: Connection) -> Iterator[Command]:
        """Puts slower subflows behind the one that returned.

        The kernel's scheduler takes the first of several idle subflows
        (mptcp_subflow_get_send), and a join comes last: a thin flow would stay on the slow
        path for good.  So the slower one is created anew, and marked backup before, so that
        nothing is lost when it closes.
        """
        state = self._state(connection.token)
        rtt = state.returned_rtt
        if rtt is None:
            return
        state.returned_rtt = None
        for other in self.reconciler.carrying(ctx.world, connection):
            in_flight = other.measured.in_flight if other.measured is not None else None
            thin = in_flight is not None and in_flight <= self.options.thin_segments
            if not thin or other.backup or usual_rtt(other) < 3 * rtt // 2:
                continue
            at = ctx.now + 2 * usual_rtt(other) + 50 * MS
            state.moving[other.key] = at
            reason = "the faster path has returned and goes first again"
            yield mark(other, reason, backup=True, routine=True)
            yield _wake(connection.token, at)

    def _end_moves(self, ctx: Context, connection: Connection) -> Iterator[Command]:
        state = self._state(connection.token)
        for key, at in list(state.moving.items()):
            subflow = connection.subflows.get(key)
            if subflow is None:
                del state.moving[key]
            elif at <= ctx.now and not self.reconciler.is_leaving(subflow):
                reason = "created anew behind the faster one"
                yield self.reconciler.destroy(subflow, reason, routine=True)

    # --- time

    def wake(self, ctx: Context) -> Iterator[Command]:
        yield from self.trials.due(ctx)

    def wake_connection(self, ctx: Context, connection: Connection) -> Iterator[Command]:
        if self.demotions.needs_sample(ctx.now, connection.token):
            yield from self._sample(connection.token, "how much does each path carry?")
        yield from self._look_at_short(ctx, connection)
        self.demotions.end_due(ctx.now, connection)
        yield from self._report_restored(ctx, "the pause is over, another try")
        yield from super().wake_connection(ctx, connection)
        yield from self._end_moves(ctx, connection)

    def sampled(self, ctx: Context) -> Iterator[Command]:
        yield from super().sampled(ctx)
        tokens, self.sampled_for = self.sampled_for, {}
        for token in tokens:
            connection = ctx.connections.get(token)
            if connection is None:
                continue
            yield from self._move_slower_ones(ctx, connection)
            yield from self.demotions.read(ctx, connection)
            yield from self.demotions.end_comparisons(ctx, connection)
            yield from self._report_restored(ctx, "without it the goodput is lower")
            yield from self.keep(ctx, connection)


def _wake(token: int, at: int) -> WakeAt:
    return WakeAt(at=at, token=token, reason="a change of a path's role is due")


def _look_again(connection: Connection, at: int) -> WakeAt:
    return WakeAt(at=at, token=connection.token, reason="is it worth another subflow?")


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _is_slower(alarm: AlarmRaised, others: list[Subflow]) -> bool:
    """Whether the RTT of an alarm is above that of the other subflows: else it does no harm."""
    best = min(
        (o.measured.srtt_us for o in others if o.measured and o.measured.srtt_us), default=None
    )
    return best is None or alarm.value > best


def _closing_words(subflow: Subflow) -> str:
    if subflow.reset_reason is not None:
        return f"MP_TCPRST reason {subflow.reset_reason}"
    return f"errno {subflow.error}" if subflow.error else "by the peer or the kernel"
