# SPDX-License-Identifier: BSD-3-Clause
"""One subflow per usable interface, on the paths that do no harm.

The probes' alarms report harm, and it is judged here:

* No answers, timeouts, or loss and RTT on a thin flow: the subflow is destroyed, which
  re-injects its data on the others at once, and its path is away until trials show that it
  has recovered (see `Trials`).
* Stalls of what is sent, repeated holes in what is received: the path works, but is too slow
  beside its siblings.  The subflow is marked backup, which MP_PRIO also asks of the peer, and used
  again after a pause that doubles with each repetition.
* Silence of a subflow while received data waits for its data: the subflow is destroyed, as above.

Loss and RTT of a subflow that a bulk transfer fills are caused by the transfer itself and no
reason to act: there, only stalls and dead paths count.

Only the client side acts: two managers at the two ends of one connection would work
against each other.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from msgspec import Meta

from mptcpd_ebpf.plugin import (
    MS,
    SECOND,
    STRAY,
    AddressIds,
    AlarmKind,
    AlarmRaised,
    AwayPath,
    Command,
    Connection,
    Context,
    CreateSubflow,
    Decision,
    DefaultRoute,
    DestroySubflow,
    KernelCommand,
    Link,
    LocalAddress,
    Options,
    PathName,
    Plugin,
    RequestSample,
    SetBackup,
    SockAddr,
    State,
    Subflow,
    SubflowKey,
    Trials,
    WakeAt,
    join_target,
    path_name,
    tell_peer,
    usual_rtt,
)

Positive = Annotated[int, Meta(ge=1)]
FIRST_PAUSE, LONGEST_PAUSE = SECOND // 2, 60 * SECOND
"""Nanoseconds before a refused join is retried; the pause doubles with each refusal."""
REPEATED = 3 * SECOND
"""Nanoseconds within which a second hole alarm of a path is evidence.  A single one also occurs on
useful paths, while the peer's congestion windows open after a join (docs/probes.md)."""


class AdaptiveOptions(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be set under `plugins: adaptive:`."""

    trials_to_return: Positive = 10
    """Handshakes in a row that must be answered in time before a path is used again."""
    trial_pause_ms: Positive = 400
    """Pause after a failed trial; grows by half with each up to `trial_pause_max_ms`."""
    trial_pause_max_ms: Positive = 1500
    demotion_s: Positive = 10
    """How long a stalling path stays backup at first; doubles with each relapse."""
    demotion_max_s: Positive = 320
    join_timeout_ms: Positive = 3000
    """A regular join that is unanswered by then is destroyed and retried."""
    thin_segments: Positive = 10
    """At most so many segments in flight make a flow thin: loss and RTT hurt it."""


@dataclass(slots=True)
class Demotion:
    """A stalling path whose subflows were marked backup.  Nanoseconds."""

    until: int
    hold: int


@dataclass(slots=True)
class ConnectionState:
    """What the plugin remembers of one connection.  Addresses are ours, times nanoseconds."""

    joins: dict[str, int] = field(default_factory=dict)
    """By address: when a regular join that is under way has failed."""
    retries: dict[str, int] = field(default_factory=dict)
    """By address: when a refused join is retried."""
    refusals: dict[str, int] = field(default_factory=dict)
    """By address: how often in a row the kernel refused a join, as for want of a route."""
    declined: dict[str, None] = field(default_factory=dict)
    """Addresses whose subflow the operator destroyed: none is created again."""
    leaving: dict[SubflowKey, None] = field(default_factory=dict)
    """Subflows that were destroyed and are not closed yet."""
    moving: dict[SubflowKey, int] = field(default_factory=dict)
    """Subflows on backup that are to be created anew, and when."""
    returned_rtt: int | None = None
    """Usual RTT of the path that just returned, until a sample shows which subflows are slower."""
    overdue: bool = False
    """A sample was requested to find unanswered joins."""
    hole_at: dict[SubflowKey, int] = field(default_factory=dict)
    """When a subflow's last hole alarm was raised."""


class Adaptive(Plugin):
    name = "adaptive"
    mode = "userspace"
    priority = 10
    Options: ClassVar[type[Options]] = AdaptiveOptions

    options: AdaptiveOptions

    def init(self, ctx: Context) -> Iterator[Command]:
        self.ids = AddressIds()
        self.states: dict[int, ConnectionState] = {}
        """By token."""
        self.sampled_for: dict[int, None] = {}
        """Tokens of the connections that wait for a sample."""
        self.demotions: dict[PathName, Demotion] = {}
        self.trials = Trials(
            self.ids,
            pause=self.options.trial_pause_ms * MS,
            longest_pause=self.options.trial_pause_max_ms * MS,
            take_back=self._take_back,
        )
        yield from self.reloaded(ctx)

    def reloaded(self, ctx: Context) -> Iterator[Command]:
        deadline = ctx.now + self.options.join_timeout_ms * MS
        for connection in ctx.served():
            state = self._state(connection.token)
            state.declined.clear()
            yield from self._leave(connection, ctx.world.strays(connection), STRAY)
            for local_ip, remote in connection.joins_under_way():
                # Requested before this plugin was made; a backup join there was a trial.
                if not connection.joins.get((local_ip, remote)):
                    state.joins.setdefault(local_ip, deadline)
                    yield _wake(connection.token, deadline)
            yield from self._join_missing(ctx, connection)

    def exit(self, ctx: Context) -> Iterator[Command]:
        """Clears the backup flag of every subflow on which we set it."""
        for connection in ctx.served():
            for subflow in connection.usable_subflows():
                if subflow.backup and not connection.server_side:
                    yield _mark(subflow, "the daemon ends", backup=False)

    def _state(self, token: int) -> ConnectionState:
        state = self.states.get(token)
        if state is None:
            state = self.states[token] = ConnectionState()
        return state

    def _is_leaving(self, subflow: Subflow) -> bool:
        state = self.states.get(subflow.token)
        return state is not None and subflow.key in state.leaving

    def _moves(self, subflow: Subflow) -> bool:
        state = self.states.get(subflow.token)
        return state is not None and subflow.key in state.moving

    # --- a subflow per usable interface

    def connection_established(self, ctx: Context, connection: Connection) -> Iterator[Command]:
        yield from self._join_missing(ctx, connection)

    def new_address(
        self, ctx: Context, connection: Connection, address_id: int, address: SockAddr
    ) -> Iterator[Command]:
        yield from self._join_missing(ctx, connection)

    def new_local_address(self, ctx: Context, address: LocalAddress) -> Iterator[Command]:
        for connection in ctx.served():
            yield from self._join_missing(ctx, connection)

    def new_default_route(self, ctx: Context, route: DefaultRoute) -> Iterator[Command]:
        for connection in ctx.served():
            retries = self._state(connection.token).retries
            for ip in [ip for ip in retries if ctx.world.interface_of(ip) == route.if_index]:
                del retries[ip]
            yield from self._join_missing(ctx, connection)

    def update_interface(self, ctx: Context, link: Link) -> Iterator[Command]:
        for connection in ctx.served():
            if link.up and link.running:
                yield from self._leave(connection, ctx.world.strays(connection), STRAY)
                yield from self._join_missing(ctx, connection)
                continue
            there = [s for s in connection.usable_subflows() if s.if_index == link.if_index]
            yield from self._leave(connection, there, f"interface {link.name} lost its carrier")

    def delete_local_address(self, ctx: Context, address: LocalAddress) -> Iterator[Command]:
        for connection in ctx.served():
            self._state(connection.token).declined.pop(address.ip, None)
            there = [s for s in connection.usable_subflows() if s.local.ip == address.ip]
            yield from self._leave(connection, there, f"address {address.ip} was removed")

    def _leave(
        self, connection: Connection, subflows: list[Subflow], reason: str
    ) -> Iterator[Command]:
        """Destroys subflows whose path is gone."""
        if connection.server_side:
            return
        there = [subflow for subflow in subflows if not self._is_leaving(subflow)]
        yield from tell_peer(there, reason)
        for subflow in there:
            yield self._destroy(subflow, reason)

    def _join_missing(self, ctx: Context, connection: Connection) -> Iterator[Command]:
        """Joins from every usable interface that has no subflow in this connection."""
        if connection.server_side or connection.state is not State.ESTABLISHED:
            return
        remote = join_target(connection)
        if remote is None:
            return
        state = self._state(connection.token)
        taken = {subflow.if_index: None for subflow in connection.subflows.values()}
        taken |= {ctx.world.interface_of(ip): None for ip in state.declined}
        for address in ctx.world.usable_addresses():
            if (
                address.if_index in taken
                or (":" in address.ip) != (":" in remote.ip)
                or (address.ip, remote.ip) in self.trials
                or address.ip in state.joins
                or address.ip in state.retries
            ):
                continue
            taken[address.if_index] = None
            interface = ctx.world.interface_name(address.if_index)
            reason = f"{interface} is usable and has no subflow"
            yield from self._join(ctx, connection, address.ip, remote, reason)

    def _join(
        self, ctx: Context, connection: Connection, local_ip: str, remote: SockAddr, reason: str
    ) -> Iterator[Command]:
        deadline = ctx.now + self.options.join_timeout_ms * MS
        self._state(connection.token).joins[local_ip] = deadline
        yield CreateSubflow(
            token=connection.token,
            local_ip=local_ip,
            local_id=self.ids.for_connection(connection, local_ip),
            remote=remote,
            if_index=ctx.world.interface_of(local_ip) or 0,
            reason=reason,
        )
        yield _wake(connection.token, deadline)

    def _destroy(self, subflow: Subflow, reason: str, *, routine: bool = False) -> DestroySubflow:
        self._state(subflow.token).leaving[subflow.key] = None
        return DestroySubflow(
            token=subflow.token,
            local=subflow.local,
            remote=subflow.remote,
            reason=reason,
            routine=routine,
        )

    def _sample(self, token: int, reason: str) -> Iterator[RequestSample]:
        """One sample serves all connections that wait for one."""
        if not self.sampled_for:
            yield RequestSample(reason=reason)
        self.sampled_for[token] = None

    # --- subflows open and close

    def new_subflow(
        self, ctx: Context, connection: Connection, subflow: Subflow
    ) -> Iterator[Command]:
        # A join that was destroyed just before its answer arrived is closing already.
        if connection.server_side or self._is_leaving(subflow):
            return
        state = self._state(connection.token)
        joined = state.joins.pop(subflow.local.ip, None)
        if joined is not None and state.returned_rtt is not None:
            reason = "which subflows are slower than the one that returned?"
            yield from self._sample(connection.token, reason)
        for command in self.trials.joined(ctx, subflow):
            if isinstance(command, DestroySubflow):
                state.leaving[subflow.key] = None
            yield command

    def subflow_closed(
        self, ctx: Context, connection: Connection, subflow: Subflow
    ) -> Iterator[Command]:
        state = self._state(connection.token)
        ours = subflow.key in state.leaving
        state.leaving.pop(subflow.key, None)
        state.hole_at.pop(subflow.key, None)
        if state.moving.pop(subflow.key, None) is not None:
            yield from self._join_missing(ctx, connection)
        if ours or connection.server_side or connection.state is State.CLOSED:
            return
        if path_name(subflow) not in self.trials and connection.token in ctx.world.connections:
            why = f"{subflow} was closed ({_closing_words(subflow)})"
            yield from self.trials.put(ctx, subflow, why, needed=1)

    def connection_closed(self, ctx: Context, connection: Connection) -> Iterator[Command]:
        self.states.pop(connection.token, None)
        self.sampled_for.pop(connection.token, None)
        yield from self.trials.connection_closed(ctx, connection.token)

    def answered(
        self, ctx: Context, decision: Decision, errno: int, explanation: str
    ) -> Iterator[Command]:
        command = decision.command
        if errno and isinstance(command, DestroySubflow):
            yield from self._stays(command)
        if isinstance(command, CreateSubflow):
            if errno:
                yield from self._join_refused(ctx, command)
            elif command.token in self.states:
                self.states[command.token].refusals.pop(command.local_ip, None)

    def _join_refused(self, ctx: Context, command: CreateSubflow) -> Iterator[Command]:
        state = self.states.get(command.token) or ConnectionState()
        ip = command.local_ip
        waited_for = state.joins.pop(ip, None) is not None
        # A connection that is not established is joined when it is.
        connection = ctx.connections.get(command.token)
        if waited_for and connection is not None and connection.state is State.ESTABLISHED:
            count = state.refusals[ip] = state.refusals.get(ip, 0) + 1
            again = ctx.now + min(FIRST_PAUSE << min(count, 20) - 1, LONGEST_PAUSE)
            state.retries[ip] = again
            yield _wake(command.token, again)
        yield from self.trials.refused(ctx, command)

    def refused(self, ctx: Context, decision: Decision) -> Iterator[Command]:
        if isinstance(decision.command, DestroySubflow):
            yield from self._stays(decision.command)

    def _stays(self, command: DestroySubflow) -> Iterator[Command]:
        """A subflow was not destroyed after all."""
        state = self.states.get(command.token) or ConnectionState()
        key = (command.local, command.remote)
        state.leaving.pop(key, None)
        if state.moving.pop(key, None) is not None:
            yield SetBackup(
                token=command.token,
                local=command.local,
                remote=command.remote,
                backup=False,
                reason="the faster path failed again before this one moved behind it",
                routine=True,
            )

    def manual_command(self, ctx: Context, command: KernelCommand) -> tuple[()]:
        match command:
            case DestroySubflow() if ctx.serves(command.token):
                state = self._state(command.token)
                state.declined[command.local.ip] = None
                state.leaving[command.local, command.remote] = None
            case CreateSubflow() if command.token in self.states:
                self.states[command.token].declined.pop(command.local_ip, None)
        return ()

    # --- what does harm

    def alarm(
        self, ctx: Context, connection: Connection, subflow: Subflow, alarm: AlarmRaised
    ) -> Iterator[Command]:
        if connection.server_side or subflow.backup or not subflow.usable:
            return
        others = [
            other
            for other in connection.usable_subflows()
            if other is not subflow and not self._is_leaving(other)
        ]
        if not others:
            return
        if alarm.kind is AlarmKind.HOLE:
            # A hole cannot show which of two backup subflows would be better.
            if self._is_repeated(ctx, subflow) and any(not other.backup for other in others):
                yield from self._demote(ctx, subflow, alarm)
        elif alarm.kind is AlarmKind.STALL:
            yield from self._demote(ctx, subflow, alarm)
        elif self._harmful(others, alarm):
            why = f"{_alarm_words(alarm)}; {len(others)} other subflow(s) can carry the data"
            yield self._destroy(subflow, why)
            yield from self.trials.put(ctx, subflow, why, self.options.trials_to_return)
            yield from self.trials.tell_peer(ctx, connection, subflow)

    def _harmful(self, others: list[Subflow], alarm: AlarmRaised) -> bool:
        """Whether an alarm is reason enough to leave the path."""
        if alarm.kind in (AlarmKind.NO_PROGRESS, AlarmKind.TIMEOUTS, AlarmKind.SILENCE):
            return True
        if (alarm.measurement.in_flight or 0) > self.options.thin_segments:
            return False
        if alarm.kind is AlarmKind.LOSS:
            return True
        best = min(
            (o.measured.srtt_us for o in others if o.measured and o.measured.srtt_us), default=None
        )
        # RTT alone does no harm where the others are no faster.
        return best is None or alarm.value > best

    def _is_repeated(self, ctx: Context, subflow: Subflow) -> bool:
        """Whether the subflow had another hole alarm within `REPEATED`."""
        hole_at = self._state(subflow.token).hole_at
        before = hole_at.get(subflow.key)
        hole_at[subflow.key] = ctx.now
        return before is not None and ctx.now - before <= REPEATED

    def _demote(self, ctx: Context, subflow: Subflow, alarm: AlarmRaised) -> Iterator[Command]:
        name = path_name(subflow)
        held = self.demotions.get(name)
        longest = self.options.demotion_max_s * SECOND
        hold = min(held.hold * 2, longest) if held else self.options.demotion_s * SECOND
        self.demotions[name] = Demotion(until=ctx.now + hold, hold=hold)
        yield _mark(subflow, f"{_alarm_words(alarm)}; on backup for {hold // SECOND} s")
        yield WakeAt(at=ctx.now + hold, reason="the demotion ends")

    # --- paths that have recovered

    def _take_back(
        self, ctx: Context, path: AwayPath, connection: Connection, remote: SockAddr
    ) -> Iterator[Command]:
        local_ip, _ = path.name
        away_s = (ctx.now - path.fell_at) / SECOND
        interface = ctx.world.interface_name(ctx.world.interface_of(local_ip)) or local_ip
        recovered = f"{interface} is back after {away_s:.1f} s ({path.needed} probes answered)"
        self._state(connection.token).returned_rtt = path.usual_rtt
        yield from self._join(ctx, connection, local_ip, remote, recovered)
        for other in ctx.served():
            if other is not connection:
                yield from self._join_missing(ctx, other)

    def _end_demotions(self, ctx: Context) -> Iterator[Command]:
        for name, demotion in list(self.demotions.items()):
            if ctx.now >= demotion.until + 10 * demotion.hold:
                del self.demotions[name]
                continue
            if ctx.now < demotion.until:
                continue
            reason = f"{demotion.hold // SECOND} s on backup are over, another try"
            for connection in ctx.served():
                for subflow in connection.usable_subflows():
                    if subflow.backup and path_name(subflow) == name and not self._moves(subflow):
                        yield _mark(subflow, reason, backup=False)

    # --- order among subflows

    def _move_slower_ones(self, ctx: Context, connection: Connection) -> Iterator[Command]:
        """Puts slower subflows behind the one that returned.

        The kernel's scheduler takes the first of several idle subflows
        (mptcp_subflow_get_send), and a join comes last: a thin flow would stay on the slow
        path for good.  So the slower one is created anew, and marked backup before, so that
        nothing is lost when it closes.
        """
        state = self._state(connection.token)
        rtt, state.returned_rtt = state.returned_rtt, None
        if rtt is None:
            return
        for other in connection.usable_subflows():
            in_flight = other.measured.in_flight if other.measured is not None else None
            thin = in_flight is not None and in_flight <= self.options.thin_segments
            if not thin or other.backup or usual_rtt(other) < 3 * rtt // 2:
                continue
            at = ctx.now + 2 * usual_rtt(other) + 50 * MS
            state.moving[other.key] = at
            reason = "the faster path has returned and goes first again"
            yield _mark(other, reason, routine=True)
            yield _wake(connection.token, at)

    def _end_moves(self, ctx: Context, connection: Connection) -> Iterator[Command]:
        state = self._state(connection.token)
        for key, at in list(state.moving.items()):
            subflow = connection.subflows.get(key)
            if subflow is None:
                del state.moving[key]
            elif at <= ctx.now and key not in state.leaving:
                reason = "created anew behind the faster one"
                yield self._destroy(subflow, reason, routine=True)

    # --- time

    def wake(self, ctx: Context) -> Iterator[Command]:
        late = self.trials.expire(ctx)
        for token in late:
            if token in self.states:
                self.states[token].overdue = True
                yield from self._sample(token, "find the unanswered joins, to destroy them")
        yield from self._end_demotions(ctx)
        yield from self.trials.due(ctx)

    def wake_connection(self, ctx: Context, connection: Connection) -> Iterator[Command]:
        state = self._state(connection.token)
        late = [ip for ip, at in state.joins.items() if at <= ctx.now]
        for ip in late:
            del state.joins[ip]
        if late:
            state.overdue = True
            reason = "find the unanswered joins, to destroy them"
            yield from self._sample(connection.token, reason)
        due = [ip for ip, at in state.retries.items() if at <= ctx.now]
        for ip in due:
            del state.retries[ip]
        if due:
            yield from self._join_missing(ctx, connection)
        yield from self._end_moves(ctx, connection)

    def sampled(self, ctx: Context) -> Iterator[Command]:
        tokens, self.sampled_for = self.sampled_for, {}
        for token in tokens:
            connection = ctx.connections.get(token)
            if connection is None:
                continue
            yield from self._move_slower_ones(ctx, connection)
            state = self._state(token)
            if state.overdue:
                state.overdue = False
                yield from self._give_up_joins(ctx, connection)

    def _give_up_joins(self, ctx: Context, connection: Connection) -> Iterator[Command]:
        state = self._state(connection.token)
        for subflow in list(connection.subflows.values()):
            name = path_name(subflow)
            waiting = subflow.local.ip in state.joins or self.trials.under_way(name)
            if subflow.state is not State.OPENING or waiting:
                continue
            away = name in self.trials
            yield self._destroy(subflow, "the join was not answered", routine=away)
            if not away:
                yield from self.trials.put(ctx, subflow, "a join was not answered", needed=1)


def _wake(token: int, at: int) -> WakeAt:
    return WakeAt(at=at, token=token, reason="a join or a move is due")


def _mark(
    subflow: Subflow, reason: str, *, backup: bool = True, routine: bool = False
) -> SetBackup:
    return SetBackup(
        token=subflow.token,
        local=subflow.local,
        remote=subflow.remote,
        backup=backup,
        reason=reason,
        routine=routine,
    )


def _closing_words(subflow: Subflow) -> str:
    if subflow.reset_reason is not None:
        return f"MP_TCPRST reason {subflow.reset_reason}"
    return f"errno {subflow.error}" if subflow.error else "by the peer or the kernel"


def _alarm_words(alarm: AlarmRaised) -> str:
    """The alarm in one clause, with its numbers."""
    measured = alarm.measurement
    usual = f" (usual RTT {measured.min_rtt_us / 1000:.0f} ms)" if measured.min_rtt_us else ""
    match alarm.kind:
        case AlarmKind.NO_PROGRESS:
            flight = f" with {measured.in_flight} segments in flight" if measured.in_flight else ""
            return f"nothing came back for {alarm.value / 1000:.0f} ms{flight}{usual}"
        case AlarmKind.TIMEOUTS:
            return f"{alarm.value} retransmission timeouts in a row{usual}"
        case AlarmKind.LOSS:
            return f"{alarm.value} % of the last segments were lost"
        case AlarmKind.RTT:
            return f"RTT rose to {alarm.value / 1000:.0f} ms{usual}"
        case AlarmKind.STALL:
            return f"it held up the connection for {alarm.value / 1000:.0f} ms of the last second"
        case AlarmKind.HOLE:
            return f"received data waited for it for {alarm.value / 1000:.0f} ms of the last second"
        case AlarmKind.SILENCE:
            return f"nothing came on it for {alarm.value / 1000:.0f} ms while received data waits"
