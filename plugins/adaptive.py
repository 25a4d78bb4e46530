# SPDX-License-Identifier: BSD-3-Clause
"""One subflow per usable interface, on the paths that do not hurt.

What hurts is told by the probes' alarms, and judged here:

* nothing comes back, timeouts, loss or RTT on a thin flow: the subflow is destroyed,
  which re-injects its data on the others at once, and its path is away until trials
  show that it healed (see `Trials`).
* stalls: the path works, but is too slow beside its siblings.  The subflow is marked
  backup and tried again after a while that doubles with each relapse.

Loss and RTT of a subflow that is filled by a bulk transfer are its own doing and no
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
"""Nanoseconds before a join that the kernel refused is asked for again; they double."""
Name = tuple[int, SubflowKey]
"""A subflow's token and addresses."""


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
    """A regular join that is not answered by then is given up and retried."""
    thin_segments: Positive = 10
    """At most so many segments in flight make a flow thin: loss and RTT hurt it."""


@dataclass(slots=True)
class Demotion:
    """A stalling path whose subflows were marked backup.  Nanoseconds."""

    until: int
    hold: int


@dataclass(slots=True)
class Book:
    """What the plugin remembers, as plain data."""

    joins: dict[tuple[int, str], int] = field(default_factory=dict)
    """By token and our address: until when a regular join that is under way is waited for."""
    put_off: dict[tuple[int, str], int] = field(default_factory=dict)
    """When one that the kernel refused is asked for again."""
    refusals: dict[tuple[int, str], int] = field(default_factory=dict)
    """How often in a row the kernel refused it, as for want of a route."""
    demotions: dict[PathName, Demotion] = field(default_factory=dict)
    declined: dict[tuple[int, str], None] = field(default_factory=dict)
    """By token and our address: a person had the subflow destroyed, and it is not made again."""
    leaving: dict[Name, None] = field(default_factory=dict)
    """Subflows we destroyed and that are not gone yet."""
    overdue: bool = False
    """A sample was asked for to find joins to give up."""
    came_back: dict[int, int] = field(default_factory=dict)
    """Usual RTT (ns) of the path that a connection just got back, by token, until a
    sample tells which of its subflows are slower."""
    moving: dict[Name, int] = field(default_factory=dict)
    """Subflows on backup that are to be made anew, and when."""

    def forget(self, token: int) -> None:
        """Drops what was remembered of a connection."""
        self.joins = {key: at for key, at in self.joins.items() if key[0] != token}
        self.put_off = {key: at for key, at in self.put_off.items() if key[0] != token}
        self.refusals = {key: count for key, count in self.refusals.items() if key[0] != token}
        self.declined = {key: None for key in self.declined if key[0] != token}
        self.leaving = {name: None for name in self.leaving if name[0] != token}
        self.moving = {name: at for name, at in self.moving.items() if name[0] != token}
        self.came_back.pop(token, None)


class Adaptive(Plugin):
    name = "adaptive"
    mode = "userspace"
    priority = 10
    Options: ClassVar[type[Options]] = AdaptiveOptions

    options: AdaptiveOptions

    def init(self, ctx: Context) -> Iterator[Command]:
        self.ids = AddressIds()
        self.book = Book()
        self.trials = Trials(
            self.ids,
            pause=self.options.trial_pause_ms * MS,
            longest_pause=self.options.trial_pause_max_ms * MS,
            take_back=self._take_back,
        )
        yield from self.reloaded(ctx)

    def reloaded(self, ctx: Context) -> Iterator[Command]:
        self.book.declined.clear()
        deadline = ctx.now + self.options.join_timeout_ms * MS
        for connection in ctx.served():
            yield from self._leave(connection, ctx.world.strays(connection), STRAY)
            for local_ip, remote in connection.joins_under_way():
                # Asked for before this one was made; what is a backup there was a trial.
                if not connection.joins.get((local_ip, remote)):
                    self.book.joins.setdefault((connection.token, local_ip), deadline)
                    yield WakeAt(at=deadline, reason="the join may need another try")
            yield from self._join_missing(ctx, connection)

    def exit(self, ctx: Context) -> Iterator[Command]:
        """Leaves no subflow on backup that only we held there."""
        for connection in ctx.served():
            for subflow in connection.usable_subflows():
                if subflow.backup and not connection.server_side:
                    yield _mark(subflow, "the daemon ends", backup=False)

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
            for token, ip in list(self.book.put_off):
                if token == connection.token and ctx.world.interface_of(ip) == route.if_index:
                    del self.book.put_off[token, ip]
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
            self.book.declined.pop((connection.token, address.ip), None)
            there = [s for s in connection.usable_subflows() if s.local.ip == address.ip]
            yield from self._leave(connection, there, f"address {address.ip} was removed")

    def _leave(
        self, connection: Connection, subflows: list[Subflow], reason: str
    ) -> Iterator[Command]:
        """Destroys subflows whose path is gone."""
        if connection.server_side:
            return
        there = [s for s in subflows if (s.token, s.key) not in self.book.leaving]
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
        taken = [subflow.if_index for subflow in connection.subflows.values()]
        taken += [
            ctx.world.interface_of(ip)
            for token, ip in self.book.declined
            if token == connection.token
        ]
        for address in ctx.world.usable_addresses():
            if (
                address.if_index in taken
                or (":" in address.ip) != (":" in remote.ip)
                or (address.ip, remote.ip) in self.trials
                or (connection.token, address.ip) in self.book.joins
                or (connection.token, address.ip) in self.book.put_off
            ):
                continue
            taken.append(address.if_index)
            interface = ctx.world.interface_name(address.if_index)
            reason = f"{interface} is usable and has no subflow"
            yield from self._join(ctx, connection, address.ip, remote, reason)

    def _join(
        self, ctx: Context, connection: Connection, local_ip: str, remote: SockAddr, reason: str
    ) -> Iterator[Command]:
        deadline = ctx.now + self.options.join_timeout_ms * MS
        self.book.joins[connection.token, local_ip] = deadline
        yield CreateSubflow(
            token=connection.token,
            local_ip=local_ip,
            local_id=self.ids.for_connection(connection, local_ip),
            remote=remote,
            if_index=ctx.world.interface_of(local_ip) or 0,
            reason=reason,
        )
        yield WakeAt(at=deadline, reason="the join may need another try")

    def _destroy(self, subflow: Subflow, reason: str, *, routine: bool = False) -> DestroySubflow:
        self.book.leaving[subflow.token, subflow.key] = None
        return DestroySubflow(
            token=subflow.token,
            local=subflow.local,
            remote=subflow.remote,
            reason=reason,
            routine=routine,
        )

    # --- subflows come and go

    def new_subflow(
        self, ctx: Context, connection: Connection, subflow: Subflow
    ) -> Iterator[Command]:
        # What was given up just before its answer was heard is on its way out.
        if connection.server_side or (subflow.token, subflow.key) in self.book.leaving:
            return
        joined = self.book.joins.pop((connection.token, subflow.local.ip), None)
        if joined is not None and connection.token in self.book.came_back:
            yield RequestSample(reason="which subflows are slower than the one that came back?")
        for command in self.trials.joined(ctx, subflow):
            if isinstance(command, DestroySubflow):
                self.book.leaving[subflow.token, subflow.key] = None
            yield command

    def subflow_closed(
        self, ctx: Context, connection: Connection, subflow: Subflow
    ) -> Iterator[Command]:
        name = (subflow.token, subflow.key)
        ours = name in self.book.leaving
        self.book.leaving.pop(name, None)
        if self.book.moving.pop(name, None) is not None:
            yield from self._join_missing(ctx, connection)
        if ours or connection.server_side or connection.state is State.CLOSED:
            return
        if path_name(subflow) not in self.trials and connection.token in ctx.world.connections:
            why = f"{subflow} was closed ({_closing_words(subflow)})"
            yield from self.trials.put(ctx, subflow, why, needed=1)

    def connection_closed(self, ctx: Context, connection: Connection) -> Iterator[Command]:
        self.book.forget(connection.token)
        yield from self.trials.connection_closed(ctx, connection.token)

    def answered(
        self, ctx: Context, decision: Decision, errno: int, explanation: str
    ) -> Iterator[Command]:
        command = decision.command
        if errno and isinstance(command, DestroySubflow):
            yield from self._stays(command)
        if not errno and isinstance(command, CreateSubflow):
            self.book.refusals.pop((command.token, command.local_ip), None)
        if errno and isinstance(command, CreateSubflow):
            name = (command.token, command.local_ip)
            waited_for = self.book.joins.pop(name, None) is not None
            # A connection that is not established is joined when it is.
            established = any(
                connection.token == command.token and connection.state is State.ESTABLISHED
                for connection in ctx.served()
            )
            if waited_for and established:
                count = self.book.refusals[name] = self.book.refusals.get(name, 0) + 1
                again = ctx.now + min(FIRST_PAUSE << min(count, 20) - 1, LONGEST_PAUSE)
                self.book.put_off[name] = again
                yield WakeAt(at=again, reason="the join may not be refused then")
            yield from self.trials.refused(ctx, command)

    def refused(self, ctx: Context, decision: Decision) -> Iterator[Command]:
        if isinstance(decision.command, DestroySubflow):
            yield from self._stays(decision.command)

    def _stays(self, command: DestroySubflow) -> Iterator[Command]:
        """A subflow was not destroyed after all."""
        name = (command.token, (command.local, command.remote))
        self.book.leaving.pop(name, None)
        if self.book.moving.pop(name, None) is not None:
            yield SetBackup(
                token=command.token,
                local=command.local,
                remote=command.remote,
                backup=False,
                reason="the faster path fell again before this one moved behind it",
                routine=True,
            )

    def manual_command(self, ctx: Context, command: KernelCommand) -> tuple[()]:
        match command:
            case DestroySubflow() if ctx.serves(command.token):
                self.book.declined[command.token, command.local.ip] = None
                self.book.leaving[command.token, (command.local, command.remote)] = None
            case CreateSubflow():
                self.book.declined.pop((command.token, command.local_ip), None)
        return ()

    # --- what hurts

    def alarm(
        self, ctx: Context, connection: Connection, subflow: Subflow, alarm: AlarmRaised
    ) -> Iterator[Command]:
        if connection.server_side or subflow.backup or not subflow.usable:
            return
        others = [
            other
            for other in connection.usable_subflows()
            if other is not subflow and (other.token, other.key) not in self.book.leaving
        ]
        if not others:
            return
        if alarm.kind is AlarmKind.STALL:
            yield from self._demote(ctx, subflow, alarm)
        elif self._harmful(others, alarm):
            why = f"{_alarm_words(alarm)}; {len(others)} other subflow(s) can carry the data"
            yield self._destroy(subflow, why)
            yield from self.trials.put(ctx, subflow, why, self.options.trials_to_return)
            yield from self.trials.tell_peer(ctx, connection, subflow)

    def _harmful(self, others: list[Subflow], alarm: AlarmRaised) -> bool:
        """Whether an alarm is reason enough to leave the path."""
        if alarm.kind in (AlarmKind.NO_PROGRESS, AlarmKind.TIMEOUTS):
            return True
        if (alarm.measurement.in_flight or 0) > self.options.thin_segments:
            return False
        if alarm.kind is AlarmKind.LOSS:
            return True
        best = min(
            (o.measured.srtt_us for o in others if o.measured and o.measured.srtt_us), default=None
        )
        # RTT alone is no harm where the others are no faster.
        return best is None or alarm.value > best

    def _demote(self, ctx: Context, subflow: Subflow, alarm: AlarmRaised) -> Iterator[Command]:
        name = path_name(subflow)
        held = self.book.demotions.get(name)
        longest = self.options.demotion_max_s * SECOND
        hold = min(held.hold * 2, longest) if held else self.options.demotion_s * SECOND
        self.book.demotions[name] = Demotion(until=ctx.now + hold, hold=hold)
        yield _mark(subflow, f"{_alarm_words(alarm)}; on backup for {hold // SECOND} s")
        yield WakeAt(at=ctx.now + hold, reason="the demotion ends")

    # --- what healed

    def _take_back(
        self, ctx: Context, path: AwayPath, connection: Connection, remote: SockAddr
    ) -> Iterator[Command]:
        healed = (
            f"{path.needed} trial(s) in a row were answered in time; "
            f"away for {(ctx.now - path.fell_at) / SECOND:.1f} s"
        )
        self.book.came_back[connection.token] = path.usual_rtt
        yield from self._join(ctx, connection, path.name[0], remote, healed)
        for other in ctx.served():
            if other is not connection:
                yield from self._join_missing(ctx, other)

    def _end_demotions(self, ctx: Context) -> Iterator[Command]:
        for name, demotion in list(self.book.demotions.items()):
            if ctx.now >= demotion.until + 10 * demotion.hold:
                del self.book.demotions[name]
                continue
            if ctx.now < demotion.until:
                yield WakeAt(at=demotion.until, reason="the demotion ends")
                continue
            reason = f"{demotion.hold // SECOND} s on backup are over, another try"
            for connection in ctx.served():
                for subflow in connection.usable_subflows():
                    moving = (subflow.token, subflow.key) in self.book.moving
                    if subflow.backup and not moving and path_name(subflow) == name:
                        yield _mark(subflow, reason, backup=False)

    # --- order among subflows

    def _move_slower_ones(self, ctx: Context) -> Iterator[Command]:
        """Puts slower subflows behind the one that came back.

        The kernel's scheduler takes the first of several idle subflows
        (mptcp_subflow_get_send), and a join comes last: a thin flow would stay on the slow
        path for good.  So the slower one is made anew: first marked backup, so that
        nothing is lost when it goes.
        """
        for token, rtt in self.book.came_back.items():
            connection = ctx.world.connections.get(token)
            for other in connection.usable_subflows() if connection is not None else []:
                in_flight = other.measured.in_flight if other.measured is not None else None
                thin = in_flight is not None and in_flight <= self.options.thin_segments
                if not thin or other.backup or usual_rtt(other) < 3 * rtt // 2:
                    continue
                at = ctx.now + 2 * usual_rtt(other) + 50 * MS
                self.book.moving[token, other.key] = at
                reason = "the faster path is back and shall be first again"
                yield _mark(other, reason, routine=True)
                yield WakeAt(at=at, reason="its data has drained")
        self.book.came_back.clear()

    def _end_moves(self, ctx: Context) -> Iterator[Command]:
        for (token, key), at in list(self.book.moving.items()):
            connection = ctx.world.connections.get(token)
            subflow = connection.subflows.get(key) if connection is not None else None
            if subflow is None:
                del self.book.moving[token, key]
            elif at > ctx.now:
                yield WakeAt(at=at, reason="its data has drained")
            elif (token, key) not in self.book.leaving:
                yield self._destroy(subflow, "made anew behind the faster one", routine=True)

    # --- time

    def wake(self, ctx: Context) -> Iterator[Command]:
        late = [name for name, at in self.book.joins.items() if at <= ctx.now]
        for name in late:
            del self.book.joins[name]
        due = [name for name, at in self.book.put_off.items() if at <= ctx.now]
        for name in due:
            del self.book.put_off[name]
        if self.trials.expire(ctx) or late:
            self.book.overdue = True
            yield RequestSample(reason="find the joins that were not answered, to give them up")
        for token in dict.fromkeys(token for token, _ in due):
            if ctx.serves(token):
                yield from self._join_missing(ctx, ctx.world.connections[token])
        yield from self._end_demotions(ctx)
        yield from self._end_moves(ctx)
        yield from self.trials.due(ctx)
        for at in (*self.book.joins.values(), *self.book.put_off.values()):
            yield WakeAt(at=at, reason="the join may need another try")

    def sampled(self, ctx: Context) -> Iterator[Command]:
        yield from self._move_slower_ones(ctx)
        if self.book.overdue:
            self.book.overdue = False
            yield from self._give_up_joins(ctx)

    def _give_up_joins(self, ctx: Context) -> Iterator[Command]:
        for connection in ctx.served():
            for subflow in list(connection.subflows.values()):
                name = path_name(subflow)
                waiting = (connection.token, subflow.local.ip) in self.book.joins
                if subflow.state is not State.OPENING or waiting or self.trials.under_way(name):
                    continue
                away = name in self.trials
                yield self._destroy(subflow, "the join was not answered", routine=away)
                if not away:
                    yield from self.trials.put(ctx, subflow, "a join was not answered", needed=1)


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
