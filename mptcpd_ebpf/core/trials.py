# SPDX-License-Identifier: BSD-3-Clause
"""Measures a path without putting data on it, until it may be used again.

A join marked backup carries no data while a regular subflow is usable, but its handshake crosses
the path both ways: a trial.  It is clean when it is answered within twice the path's usual RTT and
a little.  Enough clean trials in a row bring the path back: under 30 % loss each way one trial is
clean in half of the cases, ten in a row in one of a thousand.  Pauses grow after failed trials;
clean trials follow each other at once. So a path that recovers is used again within seconds,
regardless of how long it was away.

A connection without a subflow stays open for net.mptcp.close_timeout (a minute) and can be joined
again. There the trial is a regular join, and an answered one ends the path's absence.

A path is identified by the local and the peer's address; one connection at a time tries it for
all. Plain data and generators of commands: the plugin that owns a `Trials` passes its events in
and yields the resulting commands.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.address_ids import AddressIds
from mptcpd_ebpf.core.commands import (
    Command,
    CreateSubflow,
    DestroySubflow,
    WakeAt,
    WithdrawAddress,
)
from mptcpd_ebpf.core.model import MS, SECOND, Connection, State, Subflow, SubflowKey
from mptcpd_ebpf.core.plugin import Context

PathName = tuple[str, str]
"""The local address and the peer's."""

SOON = 10 * SECOND
"""Nanoseconds: a path that fails again so soon after its return has relapsed."""
UNMEASURED_RTT = 100 * MS
LONGEST_PATIENCE = 3 * SECOND
"""Nanoseconds to wait for a join when the connection has no other subflow."""


@dataclass(slots=True)
class Trial:
    """A pending join marked backup."""

    token: int
    started_at: int
    deadline: int
    counts: bool = True
    """False for a join that only adds an address id to the kernel's list, so that it can be
    withdrawn."""


@dataclass(slots=True)
class AwayPath:
    """A path that is away."""

    name: PathName
    why: str
    fell_at: int
    usual_rtt: int
    """Nanoseconds, measured before the path failed."""
    needed: int
    """Consecutive clean trials after which it is used again."""
    pause: int
    next_at: int
    relapses: int
    """Number of consecutive failures soon after its return."""
    clean: int = 0
    failed: int = 0
    """Consecutive failed trials."""
    trial: Trial | None = None
    answered: dict[tuple[int, SubflowKey], None] = field(default_factory=dict)
    """Subflows that trials have established: destroyed at once, or later if one was the last."""

    @property
    def patience(self) -> int:
        """Nanoseconds after which an unanswered trial has failed."""
        return 2 * self.usual_rtt + 60 * MS

    @property
    def last_patience(self) -> int:
        """The same for a connection without another subflow: it grows with each failure."""
        return min(self.patience << min(self.failed, 10), max(self.patience, LONGEST_PATIENCE))


def path_name(subflow: Subflow) -> PathName:
    return (subflow.local.ip, subflow.remote.ip)


def usual_rtt(subflow: Subflow) -> int:
    """Nanoseconds: the least RTT measured, `UNMEASURED_RTT` if there is none."""
    measured = subflow.measured
    if measured is None or not measured.min_rtt_us:
        return UNMEASURED_RTT
    return measured.min_rtt_us * 1000


def join_target(connection: Connection) -> SockAddr | None:
    """Where joins go: the initial address, or an announced one if the peer asks for that."""
    if not connection.deny_join_id0:
        return connection.remote
    for announced in connection.announced.values():
        return SockAddr(announced.ip, announced.port or connection.remote.port)
    return None


Return = Callable[[Context, AwayPath, Connection, SockAddr], Iterator[Command]]
"""Called for a recovered path: the path, a connection without a subflow on it, the address to
join."""


class Trials:
    """The paths that are away.

    `pause` and `longest_pause` are nanoseconds between failed trials, at first and at
    most; `take_back` is called when a path has recovered.
    """

    def __init__(
        self, ids: AddressIds, *, pause: int, longest_pause: int, take_back: Return
    ) -> None:
        self._ids = ids
        self._pause = pause
        self._longest_pause = longest_pause
        self._take_back = take_back
        self._away: dict[PathName, AwayPath] = {}
        self._returned: dict[PathName, tuple[int, int]] = {}
        """When a path was used again, and its relapses until then."""

    def __contains__(self, name: PathName) -> bool:
        return name in self._away

    def forget(self, local_ip: str) -> None:
        """Our address is gone: its paths are no longer away when it returns."""
        for name in [name for name in self._away if name[0] == local_ip]:
            del self._away[name]

    def under_way(self, name: PathName) -> bool:
        """Whether a trial of the path is pending."""
        path = self._away.get(name)
        return path is not None and path.trial is not None

    def put(self, ctx: Context, subflow: Subflow, why: str, needed: int) -> Iterator[Command]:
        """Marks the subflow's path as away; it is used again after `needed` clean trials."""
        name = path_name(subflow)
        usual = usual_rtt(subflow)
        lately = {n: was for n, was in self._returned.items() if ctx.now - was[0] < SOON}
        relapses = lately.pop(name)[1] + 1 if name in lately else 0
        self._returned = lately
        pause = self._pause if relapses < 2 else min(self._pause << relapses, 60 * SECOND)
        connection = ctx.world.connections.get(subflow.token)
        bare = connection is not None and not connection.usable_subflows()
        next_at = ctx.now if bare else ctx.now + pause
        # A path with a long RTT must also return within seconds: fewer trials fit.
        needed = max(1, min(needed, 3 * SECOND // (usual + 50 * MS)))
        self._away[name] = AwayPath(name, why, ctx.now, usual, needed, pause, next_at, relapses)
        yield WakeAt(at=next_at, reason="the next trial")

    def tell_peer(
        self, ctx: Context, connection: Connection, subflow: Subflow
    ) -> Iterator[Command]:
        """Withdraws a destroyed subflow's address id over another path, so that the peer closes it.

        The FIN goes over the bad path and may take seconds, while the peer continues to send
        there. The kernel withdraws only ids that it knows, and destroying removed any but 0
        (mptcp_pm_nl_subflow_destroy_doit): a join, whose answer does not matter, adds it again.
        """
        reason = "tell the peer over another path"
        if subflow.local_id != 0:
            path = self._away[path_name(subflow)]
            path.trial = Trial(connection.token, ctx.now, ctx.now + path.patience, counts=False)
            yield self._join(ctx, path, connection, subflow.remote, reason)
        yield WithdrawAddress(
            token=connection.token, address_id=subflow.local_id or 0, reason=reason, routine=True
        )

    def joined(self, ctx: Context, subflow: Subflow) -> Iterator[Command]:
        """A subflow was established: if its path is away, judges the trial and destroys the
        subflow."""
        path = self._away.get(path_name(subflow))
        if path is None:
            return
        connection = ctx.world.connections[subflow.token]
        if not subflow.backup and connection.usable_subflows() == [subflow]:
            del self._away[path.name]
            return
        trial = path.trial
        if trial is None or trial.token != subflow.token:
            # A trial that counted as unanswered is answered after all.
            yield _end(subflow, "the path is away")
            return
        path.trial = None
        path.answered[subflow.token, subflow.key] = None
        took = f"{(ctx.now - trial.started_at) / MS:.0f} ms"
        if not trial.counts:
            path.next_at = ctx.now + path.pause
            verdict = "it is not needed any more"
        elif ctx.now <= trial.deadline:
            path.clean += 1
            path.failed = 0
            path.next_at = ctx.now + 20 * MS
            verdict = f"the trial was answered in {took}"
        else:
            self._failed(ctx, path)
            verdict = f"the trial took {took}, the path has not recovered"
        yield _end(subflow, verdict)
        yield WakeAt(at=path.next_at, reason="the next trial")

    def refused(self, ctx: Context, command: CreateSubflow) -> Iterator[WakeAt]:
        """The kernel refused a join: if it was a trial, it has failed."""
        path = self._away.get((command.local_ip, command.remote.ip))
        if path is not None and path.trial is not None and path.trial.token == command.token:
            self._failed(ctx, path)
            yield WakeAt(at=path.next_at, reason="the next trial")

    def connection_closed(self, ctx: Context, token: int) -> Iterator[Command]:
        for path in self._away.values():
            if path.trial is not None and path.trial.token == token:
                path.trial = None
                path.next_at = ctx.now
        yield from self.due(ctx)

    def expire(self, ctx: Context) -> list[int]:
        """Ends trials that were not answered in time; returns the tokens of their connections."""
        late: dict[int, None] = {}
        for path in self._away.values():
            if path.trial is not None and path.trial.deadline <= ctx.now:
                late[path.trial.token] = None
                self._failed(ctx, path)
        return list(late)

    def due(self, ctx: Context) -> Iterator[Command]:
        """Starts the trials that are due, and returns recovered paths to use."""
        for path in list(self._away.values()):
            if path.trial is not None:
                yield WakeAt(at=path.trial.deadline, reason="the trial's end")
            elif path.next_at > ctx.now:
                yield WakeAt(at=path.next_at, reason="the next trial")
            else:
                yield from self._try(ctx, path)

    def _try(self, ctx: Context, path: AwayPath) -> Iterator[Command]:
        if not any(_could_join(connection, path) for connection in ctx.served()):
            # No connection can try the path any more: the next one starts without its history.
            del self._away[path.name]
            return
        yield from self._end_answered(ctx, path)
        choice = self._choose(ctx, path)
        if choice is None:
            path.next_at = ctx.now + self._pause
            yield WakeAt(at=path.next_at, reason="a connection may be free to try it then")
            return
        connection, remote = choice
        if path.clean >= path.needed:
            del self._away[path.name]
            self._returned[path.name] = (ctx.now, path.relapses)
            yield from self._take_back(ctx, path, connection, remote)
            return
        bare = not connection.usable_subflows()
        patience = path.last_patience if bare else path.patience
        path.trial = Trial(connection.token, ctx.now, ctx.now + patience)
        if not bare:
            which = f"trial {path.clean + 1} of {path.needed}"
            yield self._join(ctx, path, connection, remote, f"{which}: does it answer in time?")
        else:
            reason = f"the connection has no subflow left; {path.why}"
            yield self._join(ctx, path, connection, remote, reason, trial=False)
        yield WakeAt(at=path.trial.deadline, reason="the trial's end")

    def _end_answered(self, ctx: Context, path: AwayPath) -> Iterator[Command]:
        """A trial that was answered while its connection had no other subflow had to stay."""
        for token, key in list(path.answered):
            connection = ctx.connections.get(token)
            subflow = connection.subflows.get(key) if connection is not None else None
            if subflow is None:
                del path.answered[token, key]
            elif subflow.usable and subflow.backup:
                yield _end(subflow, "its trial is over")

    def _choose(self, ctx: Context, path: AwayPath) -> tuple[Connection, SockAddr] | None:
        """A connection that can try the path without risk, and where it would join."""
        local_ip, _ = path.name
        if not any(address.ip == local_ip for address in ctx.world.usable_addresses()):
            return None
        for connection in reversed(ctx.served()):
            remote = join_target(connection)
            if (
                remote is not None
                and _could_join(connection, path)
                and connection.state is State.ESTABLISHED
                and not any(s.local.ip == local_ip for s in connection.subflows.values())
            ):
                return connection, remote
        return None

    def _join(
        self,
        ctx: Context,
        path: AwayPath,
        connection: Connection,
        remote: SockAddr,
        reason: str,
        *,
        trial: bool = True,
    ) -> CreateSubflow:
        local_ip, _ = path.name
        return CreateSubflow(
            token=connection.token,
            local_ip=local_ip,
            local_id=self._ids.for_connection(connection, local_ip),
            remote=remote,
            if_index=ctx.world.interface_of(local_ip) or 0,
            backup=trial,
            reason=reason,
            routine=trial,
        )

    def _failed(self, ctx: Context, path: AwayPath) -> None:
        path.trial = None
        path.clean = 0
        path.failed += 1
        path.next_at = ctx.now + path.pause
        path.pause = min(path.pause * 3 // 2, max(self._longest_pause, path.pause))


def _could_join(connection: Connection, path: AwayPath) -> bool:
    target = join_target(connection)
    return target is not None and target.ip == path.name[1] and not connection.server_side


def _end(subflow: Subflow, verdict: str) -> DestroySubflow:
    return DestroySubflow(
        token=subflow.token,
        local=subflow.local,
        remote=subflow.remote,
        reason=verdict,
        routine=True,
    )
