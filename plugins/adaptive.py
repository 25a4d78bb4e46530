# SPDX-License-Identifier: BSD-3-Clause
"""One subflow per usable interface, on the paths that do not hurt.

What hurts is told by the probes' alarms, and judged here:

* nothing comes back, timeouts, loss or RTT on a thin flow: the subflow is destroyed,
  which re-injects its data on the others at once.  The path is then on trial: joins
  marked backup carry no data, and their handshakes measure it.  When enough of them in
  a row were answered in time, the path gets a regular subflow again.
* stalls: the path works, but is too slow beside its siblings.  The subflow is marked
  backup and tried again after a while that doubles with each relapse.

Loss and RTT of a subflow that is filled by a bulk transfer are its own doing and no
reason to act: there, only stalls and dead paths count.

Only the client side acts: two managers at the two ends of one connection would work
against each other.  A path is known by our address and the peer's; what one connection
learns of it serves all.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from mptcpd_ebpf.plugin import (
    AddressIds,
    AlarmKind,
    AlarmRaised,
    Command,
    Connection,
    Context,
    CreateSubflow,
    Decision,
    DestroySubflow,
    Link,
    LocalAddress,
    Options,
    Plugin,
    RequestSample,
    SetBackup,
    SockAddr,
    State,
    Subflow,
    WakeAt,
    WithdrawAddress,
)

MS = 1_000_000
SECOND = 1000 * MS

PathName = tuple[str, str]
"""Our address and the peer's."""


class AdaptiveOptions(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be set under `plugins: adaptive:`."""

    trials_to_return: int = 10
    """Handshakes in a row that must be answered in time before a path is used again."""
    trial_pause_ms: int = 400
    """Pause after a failed trial; grows by half with each up to `trial_pause_max_ms`."""
    trial_pause_max_ms: int = 1500
    demotion_s: int = 10
    """How long a stalling path stays backup at first; doubles with each relapse."""
    demotion_max_s: int = 320
    join_timeout_ms: int = 3000
    """A regular join that is not answered by then is given up and retried."""
    thin_segments: int = 10
    """At most so many segments in flight make a flow thin: loss and RTT hurt it."""


@dataclass(slots=True)
class Trial:
    """A join marked backup, under way or just answered."""

    token: int
    started_at: int
    deadline: int
    counts: bool = True
    """False for the one that only gives the kernel an address id to withdraw."""


@dataclass(slots=True)
class Path:
    """What is known of one path that was found wanting."""

    name: PathName
    why: str
    fell_at: int
    usual_rtt: int
    """Nanoseconds, from better times."""
    needed: int
    """Clean trials in a row that bring it back."""
    pause: int
    next_trial_at: int
    clean: int = 0
    trial: Trial | None = None


@dataclass(slots=True)
class Demotion:
    """A stalling subflow that was marked backup."""

    until: int
    hold: int


@dataclass(slots=True)
class Book:
    """All the plugin remembers, as plain data."""

    paths: dict[PathName, Path] = field(default_factory=dict)
    """Paths on trial."""
    joins: dict[tuple[int, str], int] = field(default_factory=dict)
    """Deadlines of regular joins under way, by token and our address."""
    returned: dict[PathName, int] = field(default_factory=dict)
    """When a path was last taken back."""
    relapses: dict[PathName, int] = field(default_factory=dict)
    """How often a path fell again soon after its return."""
    demotions: dict[PathName, Demotion] = field(default_factory=dict)
    leaving: dict[tuple[int, SockAddr, SockAddr], None] = field(default_factory=dict)
    """Subflows we destroyed and that are not gone yet."""
    overdue: bool = False
    """A sample was asked for to find joins to give up."""
    came_back: dict[int, int] = field(default_factory=dict)
    """Usual RTT (ns) of the path that a connection just got back, by token, until a
    sample tells which of its subflows are slower."""
    moving: dict[tuple[int, SockAddr, SockAddr], int] = field(default_factory=dict)
    """Subflows on backup that are to be made anew, and when."""


class Adaptive(Plugin):
    name = "adaptive"
    mode = "userspace"
    priority = 10
    Options: ClassVar[type[Options]] = AdaptiveOptions

    options: AdaptiveOptions

    def init(self, ctx: Context) -> Iterator[Command]:
        self.ids = AddressIds()
        self.book = Book()
        for connection in ctx.served():
            yield from self._join_missing(ctx, connection)

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

    def update_interface(self, ctx: Context, link: Link) -> Iterator[Command]:
        usable = link.up and link.running
        for connection in ctx.served():
            if usable:
                yield from self._join_missing(ctx, connection)
                continue
            for subflow in connection.usable_subflows():
                if subflow.if_index == link.if_index:
                    yield self._destroy(subflow, f"interface {link.name} lost its carrier")

    def delete_local_address(self, ctx: Context, address: LocalAddress) -> Iterator[Command]:
        for connection in ctx.served():
            for subflow in connection.usable_subflows():
                if subflow.local.ip == address.ip:
                    yield self._destroy(subflow, f"address {address.ip} was removed")

    def _join_missing(self, ctx: Context, connection: Connection) -> Iterator[Command]:
        """Joins from every usable interface that has no subflow in this connection."""
        if connection.server_side or connection.state is not State.ESTABLISHED:
            return
        remote = _join_target(connection)
        if remote is None:
            return
        served = {subflow.if_index for subflow in connection.subflows.values()}
        for address in ctx.world.usable_addresses():
            name = (address.ip, remote.ip)
            if (
                address.if_index in served
                or (":" in address.ip) != (":" in remote.ip)
                or name in self.book.paths
                or (connection.token, address.ip) in self.book.joins
            ):
                continue
            served.add(address.if_index)
            interface = ctx.world.interface_name(address.if_index)
            yield from self._join(
                ctx, connection, name, remote, f"{interface} is usable and has no subflow"
            )

    def _join(
        self,
        ctx: Context,
        connection: Connection,
        name: PathName,
        remote: SockAddr,
        reason: str,
    ) -> Iterator[Command]:
        deadline = ctx.now + self.options.join_timeout_ms * MS
        self.book.joins[connection.token, name[0]] = deadline
        yield self._create(ctx, connection, name[0], remote, reason)
        yield WakeAt(at=deadline, reason="the join may need another try")

    def _create(
        self,
        ctx: Context,
        connection: Connection,
        local_ip: str,
        remote: SockAddr,
        reason: str,
        *,
        trial: bool = False,
    ) -> CreateSubflow:
        return CreateSubflow(
            token=connection.token,
            local_ip=local_ip,
            local_id=self.ids.for_connection(connection, local_ip),
            remote=remote,
            if_index=ctx.world.interface_of(local_ip) or 0,
            backup=trial,
            reason=reason,
            routine=trial,
        )

    def _destroy(self, subflow: Subflow, reason: str, *, trial: bool = False) -> DestroySubflow:
        self.book.leaving[subflow.token, subflow.local, subflow.remote] = None
        return DestroySubflow(
            token=subflow.token,
            local=subflow.local,
            remote=subflow.remote,
            reason=reason,
            routine=trial,
        )

    # --- subflows come and go

    def new_subflow(
        self, ctx: Context, connection: Connection, subflow: Subflow
    ) -> Iterator[Command]:
        if connection.server_side:
            return
        joined = self.book.joins.pop((connection.token, subflow.local.ip), None)
        if joined is not None and connection.token in self.book.came_back:
            yield RequestSample(reason="which subflows are slower than the one that came back?")
        path = self.book.paths.get(_path_name(subflow))
        if path is not None and path.trial is not None and path.trial.token == connection.token:
            yield from self._trial_answered(ctx, path, subflow)

    def subflow_closed(
        self, ctx: Context, connection: Connection, subflow: Subflow
    ) -> Iterator[Command]:
        name = (subflow.token, subflow.local, subflow.remote)
        ours = name in self.book.leaving
        self.book.leaving.pop(name, None)
        if self.book.moving.pop(name, None) is not None:
            yield from self._join_missing(ctx, connection)
        if ours or connection.server_side or connection.state is State.CLOSED:
            return
        path = _path_name(subflow)
        if path not in self.book.paths and connection.token in ctx.world.connections:
            why = f"{subflow} was closed ({_closing_words(subflow)})"
            yield from self._put_on_trial(ctx, subflow, why, needed=1)

    def connection_closed(self, ctx: Context, connection: Connection) -> Iterator[Command]:
        token = connection.token
        book = self.book
        book.joins = {key: at for key, at in book.joins.items() if key[0] != token}
        book.leaving = {key: None for key in book.leaving if key[0] != token}
        book.moving = {key: at for key, at in book.moving.items() if key[0] != token}
        book.came_back.pop(token, None)
        for path in book.paths.values():
            if path.trial is not None and path.trial.token == token:
                path.trial = None
                path.next_trial_at = ctx.now
        yield from self._next_trials(ctx)

    def answered(
        self, ctx: Context, decision: Decision, errno: int, explanation: str
    ) -> Iterator[Command]:
        command = decision.command
        if errno == 0:
            return
        if isinstance(command, DestroySubflow):
            self.book.leaving.pop((command.token, command.local, command.remote), None)
        if isinstance(command, CreateSubflow):
            name = (command.local_ip, command.remote.ip)
            self.book.joins.pop((command.token, command.local_ip), None)
            path = self.book.paths.get(name)
            if path is not None and path.trial is not None:
                yield from self._trial_failed(ctx, path)

    # --- what hurts

    def alarm(
        self, ctx: Context, connection: Connection, subflow: Subflow, alarm: AlarmRaised
    ) -> Iterator[Command]:
        if connection.server_side or subflow.backup or not subflow.usable:
            return
        others = [
            other
            for other in connection.usable_subflows()
            if other is not subflow
            and (other.token, other.local, other.remote) not in self.book.leaving
        ]
        if not others:
            return
        if alarm.kind is AlarmKind.STALL:
            yield from self._demote(ctx, subflow, alarm)
        elif self._harmful(subflow, others, alarm):
            why = f"{_alarm_words(alarm)}; {len(others)} other subflow(s) can carry the data"
            yield self._destroy(subflow, why)
            needed = self.options.trials_to_return
            yield from self._put_on_trial(ctx, subflow, why, needed)
            yield from self._tell_peer(ctx, connection, subflow)

    def _harmful(self, subflow: Subflow, others: list[Subflow], alarm: AlarmRaised) -> bool:
        """Whether an alarm is reason enough to leave the path."""
        measured = alarm.measurement
        if alarm.kind in (AlarmKind.NO_PROGRESS, AlarmKind.TIMEOUTS):
            return True
        if (measured.in_flight or 0) > self.options.thin_segments:
            return False
        if alarm.kind is AlarmKind.LOSS:
            return True
        best = min(
            (o.measured.srtt_us for o in others if o.measured and o.measured.srtt_us), default=None
        )
        # RTT alone is no harm where the others are no faster.
        return best is None or alarm.value > best

    def _demote(self, ctx: Context, subflow: Subflow, alarm: AlarmRaised) -> Iterator[Command]:
        name = _path_name(subflow)
        held = self.book.demotions.get(name)
        longest = self.options.demotion_max_s * SECOND
        hold = min(held.hold * 2, longest) if held else self.options.demotion_s * SECOND
        self.book.demotions[name] = Demotion(until=ctx.now + hold, hold=hold)
        yield SetBackup(
            token=subflow.token,
            local=subflow.local,
            remote=subflow.remote,
            backup=True,
            reason=f"{_alarm_words(alarm)}; on backup for {hold // SECOND} s",
        )
        yield WakeAt(at=ctx.now + hold, reason="the demotion ends")

    # --- trials

    def _put_on_trial(
        self, ctx: Context, subflow: Subflow, why: str, needed: int
    ) -> Iterator[Command]:
        name = _path_name(subflow)
        usual = _usual_rtt(subflow)
        soon = ctx.now - self.book.returned.get(name, -(1 << 62)) < 10 * SECOND
        relapses = self.book.relapses.get(name, 0) + 1 if soon else 0
        self.book.relapses[name] = relapses
        pause = self.options.trial_pause_ms * MS
        if relapses > 1:
            pause = min(pause << relapses, 60 * SECOND)
        # A path with a long RTT must come back in seconds too: fewer trials fit.
        needed = max(1, min(needed, 3 * SECOND // (usual + 50 * MS)))
        self.book.paths[name] = Path(name, why, ctx.now, usual, needed, pause, ctx.now + pause)
        yield WakeAt(at=ctx.now + pause, reason="the next trial")

    def _tell_peer(
        self, ctx: Context, connection: Connection, subflow: Subflow
    ) -> Iterator[Command]:
        """Withdraws the address id over another path, so that the peer lets go at once too.

        The FIN of a destroyed subflow goes over the bad path and may take seconds; until
        then the peer goes on sending there.  The kernel withdraws only ids it knows, and
        destroying made it forget any but 0: a join, which nobody needs to answer,
        tells it again.
        """
        reason = "tell the peer over another path"
        if subflow.local_id != 0:
            path = self.book.paths[_path_name(subflow)]
            deadline = ctx.now + 2 * path.usual_rtt + 60 * MS
            path.trial = Trial(connection.token, ctx.now, deadline, counts=False)
            yield self._create(
                ctx, connection, subflow.local.ip, subflow.remote, reason, trial=True
            )
            yield WakeAt(at=deadline, reason="the trial's end")
        yield WithdrawAddress(
            token=connection.token, address_id=subflow.local_id or 0, reason=reason, routine=True
        )

    def _next_trials(self, ctx: Context) -> Iterator[Command]:
        """Starts the trials whose time has come."""
        for path in list(self.book.paths.values()):
            if path.trial is not None:
                continue
            if path.next_trial_at > ctx.now:
                yield WakeAt(at=path.next_trial_at, reason="the next trial")
                continue
            if not any(_join_ip(connection) == path.name[1] for connection in ctx.served()):
                # Nobody is left who could try it: forget, the next connection starts afresh.
                del self.book.paths[path.name]
                continue
            scout = self._scout(ctx, path)
            if scout is None:
                path.next_trial_at = ctx.now + self.options.trial_pause_ms * MS
                yield WakeAt(at=path.next_trial_at, reason="somebody may be free to try it then")
                continue
            connection, remote = scout
            if path.clean >= path.needed:
                yield from self._take_back(ctx, path, connection, remote)
                continue
            deadline = ctx.now + 2 * path.usual_rtt + 60 * MS
            path.trial = Trial(connection.token, ctx.now, deadline)
            yield self._create(
                ctx,
                connection,
                path.name[0],
                remote,
                f"trial {path.clean + 1} of {path.needed}: does the path answer in time?",
                trial=True,
            )
            yield WakeAt(at=deadline, reason="the trial's end")

    def _scout(self, ctx: Context, path: Path) -> tuple[Connection, SockAddr] | None:
        """A connection that can try the path without risk, and where it would join."""
        local_ip, remote_ip = path.name
        if not any(address.ip == local_ip for address in ctx.world.usable_addresses()):
            return None
        for connection in reversed(ctx.served()):
            remote = _join_target(connection)
            if (
                remote is not None
                and remote.ip == remote_ip
                and not connection.server_side
                and connection.state is State.ESTABLISHED
                and connection.usable_subflows()
                and not any(s.local.ip == local_ip for s in connection.subflows.values())
            ):
                return connection, remote
        return None

    def _trial_answered(self, ctx: Context, path: Path, subflow: Subflow) -> Iterator[Command]:
        assert path.trial is not None
        took = ctx.now - path.trial.started_at
        in_time = ctx.now <= path.trial.deadline
        counts = path.trial.counts
        path.trial = None
        if not counts:
            path.next_trial_at = ctx.now + path.pause
            verdict = "it has served"
        elif in_time:
            path.clean += 1
            path.next_trial_at = ctx.now + 20 * MS
            verdict = f"the trial was answered in {took / MS:.0f} ms"
        else:
            self._back_off(ctx, path)
            verdict = f"the trial took {took / MS:.0f} ms, the path is not healed"
        yield self._destroy(subflow, verdict, trial=True)
        yield WakeAt(at=path.next_trial_at, reason="the next trial")

    def _trial_failed(self, ctx: Context, path: Path) -> Iterator[Command]:
        path.trial = None
        self._back_off(ctx, path)
        yield WakeAt(at=path.next_trial_at, reason="the next trial")

    def _back_off(self, ctx: Context, path: Path) -> None:
        path.clean = 0
        path.next_trial_at = ctx.now + path.pause
        longest = max(self.options.trial_pause_max_ms * MS, path.pause)
        path.pause = min(path.pause * 3 // 2, longest)

    def _take_back(
        self, ctx: Context, path: Path, connection: Connection, remote: SockAddr
    ) -> Iterator[Command]:
        del self.book.paths[path.name]
        self.book.returned[path.name] = ctx.now
        healed = (
            f"{path.needed} trial(s) in a row were answered in time; "
            f"away for {(ctx.now - path.fell_at) / SECOND:.1f} s"
        )
        self.book.came_back[connection.token] = path.usual_rtt
        yield from self._join(ctx, connection, path.name, remote, healed)
        for other in ctx.served():
            if other is not connection:
                yield from self._join_missing(ctx, other)

    # --- time

    def wake(self, ctx: Context) -> Iterator[Command]:
        late_trials = [
            path
            for path in self.book.paths.values()
            if path.trial is not None and path.trial.deadline <= ctx.now
        ]
        late_joins = [name for name, at in self.book.joins.items() if at <= ctx.now]
        for path in late_trials:
            yield from self._trial_failed(ctx, path)
        for name in late_joins:
            del self.book.joins[name]
        if late_trials or late_joins:
            self.book.overdue = True
            yield RequestSample(reason="find the joins that were not answered, to give them up")
        yield from self._end_demotions(ctx)
        yield from self._end_moves(ctx)
        yield from self._next_trials(ctx)
        for at in self.book.joins.values():
            yield WakeAt(at=at, reason="the join may need another try")
        for path in self.book.paths.values():
            if path.trial is not None:
                yield WakeAt(at=path.trial.deadline, reason="the trial's end")

    def sampled(self, ctx: Context) -> Iterator[Command]:
        yield from self._move_slower_ones(ctx)
        if self.book.overdue:
            self.book.overdue = False
            yield from self._give_up_joins(ctx)

    # --- order among subflows

    def _move_slower_ones(self, ctx: Context) -> Iterator[Command]:
        """Puts slower subflows behind the one that came back.

        The kernel's scheduler takes the first of several idle subflows, and a join comes
        last: a thin flow would stay on the slow path for good.  So the slower one is
        made anew: first marked backup, so that nothing is lost when it goes.
        """
        for token, rtt in self.book.came_back.items():
            connection = ctx.world.connections.get(token)
            for other in connection.usable_subflows() if connection is not None else []:
                thin = other.measured is not None and (
                    (other.measured.in_flight or 0) <= self.options.thin_segments
                )
                if not thin or other.backup or _usual_rtt(other) < 3 * rtt // 2:
                    continue
                at = ctx.now + 2 * _usual_rtt(other) + 50 * MS
                self.book.moving[token, other.local, other.remote] = at
                yield SetBackup(
                    token=token,
                    local=other.local,
                    remote=other.remote,
                    backup=True,
                    reason="the faster path is back and shall be first again",
                    routine=True,
                )
                yield WakeAt(at=at, reason="its data has drained")
        self.book.came_back.clear()

    def _end_moves(self, ctx: Context) -> Iterator[Command]:
        for (token, local, remote), at in self.book.moving.items():
            if at > ctx.now:
                yield WakeAt(at=at, reason="its data has drained")
                continue
            connection = ctx.world.connections.get(token)
            subflow = connection.subflows.get((local, remote)) if connection is not None else None
            if subflow is not None:
                reason = "made anew behind the faster one"
                yield self._destroy(subflow, reason, trial=True)

    def _give_up_joins(self, ctx: Context) -> Iterator[Command]:
        for connection in ctx.served():
            for subflow in list(connection.subflows.values()):
                name = _path_name(subflow)
                path = self.book.paths.get(name)
                waiting = (connection.token, subflow.local.ip) in self.book.joins or (
                    path is not None and path.trial is not None
                )
                if subflow.state is not State.OPENING or waiting:
                    continue
                yield self._destroy(subflow, "the join was not answered", trial=path is not None)
                if path is None:
                    why = "a join was not answered"
                    yield from self._put_on_trial(ctx, subflow, why, needed=1)

    def _end_demotions(self, ctx: Context) -> Iterator[Command]:
        for name, demotion in list(self.book.demotions.items()):
            if ctx.now >= demotion.until + 10 * demotion.hold:
                del self.book.demotions[name]
                continue
            if ctx.now < demotion.until:
                yield WakeAt(at=demotion.until, reason="the demotion ends")
                continue
            for connection in ctx.served():
                for subflow in connection.usable_subflows():
                    if subflow.backup and _path_name(subflow) == name:
                        yield SetBackup(
                            token=subflow.token,
                            local=subflow.local,
                            remote=subflow.remote,
                            backup=False,
                            reason=f"{demotion.hold // SECOND} s on backup are over, another try",
                        )


def _path_name(subflow: Subflow) -> PathName:
    return (subflow.local.ip, subflow.remote.ip)


def _join_target(connection: Connection) -> SockAddr | None:
    """Where joins go: the initial address, or an announced one if the peer asks for that."""
    if not connection.deny_join_id0:
        return connection.remote
    for announced in connection.announced.values():
        return SockAddr(announced.ip, announced.port or connection.remote.port)
    return None


def _join_ip(connection: Connection) -> str | None:
    target = _join_target(connection)
    return target.ip if target is not None and not connection.server_side else None


def _usual_rtt(subflow: Subflow) -> int:
    """Nanoseconds: the RTT of the path in better times; 100 ms if it was never measured."""
    measured = subflow.measured
    if measured is None or not measured.min_rtt_us:
        return 100 * MS
    return measured.min_rtt_us * 1000


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
