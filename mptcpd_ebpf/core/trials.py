# SPDX-License-Identifier: BSD-3-Clause
"""Probes paths that were left, until they may be used again.

A path probe is one SYN that is answered and opens nothing (`ProbePath`), so no connection is
touched before the path has recovered.  It counts when it is answered within twice the path's usual
RTT and a little.  Enough answers in a row bring the path back: under 30 % loss each way one probe
is answered in half of the cases, ten in a row are in one of a thousand.  Pauses grow after lost
probes; answered ones follow each other at once.  So a path that recovers is used again within
seconds, regardless of how long it was away.  Small probes alternate with probes of full size, and
the last ones are of full size: a path that has lost the ability to carry large packets passes
small ones.

Some networks drop every SYN with payload, and without CAP_NET_RAW nothing is sent.  There the path
is used again after a long pause that doubles with each relapse.

A connection without a subflow is joined again at once, over a path that is away too; its answer
ends the path's absence.

A path is identified by the local and the peer's address.  Plain data and generators of commands:
the plugin that owns a `Trials` passes its events in and yields the resulting commands.
"""

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.commands import (
    Command,
    Decision,
    DestroySubflow,
    ProbePath,
    ReportPath,
    WakeAt,
)
from mptcpd_ebpf.core.model import MS, SECOND, Connection, PathName, State, Subflow
from mptcpd_ebpf.core.paths import report_path
from mptcpd_ebpf.core.plugin import Context
from mptcpd_ebpf.core.roles import Role

SOON = 10 * SECOND
"""Nanoseconds: a path that fails again so soon after its return has relapsed."""
UNMEASURED_RTT = 100 * MS
LONGEST_PATIENCE = 3 * SECOND
"""Nanoseconds to wait for an answer at most."""
BETWEEN = 20 * MS
"""Nanoseconds from an answer to the next probe."""
UNSENT, LONGEST_UNSENT = 10 * SECOND, 320 * SECOND
"""Nanoseconds after which a path is used again where no probe can be sent; doubles with each
relapse."""
SMALL_ONLY = 300 * SECOND
"""The same for a path that answers small probes and no full-size ones, since the first of those."""
LAST_FULL = 2
"""So many probes at the end of a row are of full size."""


@dataclass(slots=True)
class AwayPath:
    """A path that is away."""

    name: PathName
    remote: SockAddr
    """Where probes go."""
    why: str
    fell_at: int
    usual_rtt: int
    """Nanoseconds, measured before the path failed."""
    needed: int
    """Consecutive answers after which it is used again."""
    full_size: bool
    """Probes of full size are among them."""
    pause: int
    next_at: int
    relapses: int
    """Number of consecutive failures soon after its return."""
    answered: int = 0
    """Consecutive answers."""
    probe_at: int | None = None
    """When the probe that is under way was sent."""
    unproven_at: int | None = None
    """When it is used again without enough answers; None as long as probes can show more."""

    @property
    def proof(self) -> str:
        """Why it is used again, in a few words."""
        if self.answered >= self.needed:
            return f"{self.needed} probes answered" if self.needed > 1 else "a probe was answered"
        return "without enough answered probes, to see whether it carries data"


def path_name(subflow: Subflow) -> PathName:
    return (subflow.local.ip, subflow.remote.ip)


def usual_rtt(subflow: Subflow) -> int:
    """Nanoseconds: the least RTT measured, `UNMEASURED_RTT` if there is none."""
    measured = subflow.measured
    if measured is None or not measured.min_rtt_us:
        return UNMEASURED_RTT
    return measured.min_rtt_us * 1000


def patience(rtt: int) -> int:
    """Nanoseconds after which a probe of a path with that RTT counts as unanswered."""
    return min(2 * rtt + 60 * MS, LONGEST_PATIENCE)


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

    `pause` and `longest_pause` are nanoseconds after a lost probe, at first and at most;
    `take_back` is called when a path has recovered.
    """

    def __init__(self, *, pause: int, longest_pause: int, take_back: Return) -> None:
        self._pause = pause
        self._longest_pause = longest_pause
        self._take_back = take_back
        self._away: dict[PathName, AwayPath] = {}
        self._returned: dict[PathName, tuple[int, int]] = {}
        """When a path was used again, and its relapses until then."""

    def __contains__(self, name: PathName) -> bool:
        return name in self._away

    def forget(self, ctx: Context, local_ip: str) -> Iterator[ReportPath]:
        """Our address is gone: its paths are no longer away when it returns."""
        for name in [name for name in self._away if name[0] == local_ip]:
            del self._away[name]
            yield from report_path(ctx, name, None, "its address was removed")

    def away(self) -> list[AwayPath]:
        """The paths that are away, in the order in which they failed."""
        return list(self._away.values())

    def put(self, ctx: Context, subflow: Subflow, why: str, needed: int) -> Iterator[Command]:
        """Marks the subflow's path as away; it is used again after `needed` answered probes.

        A single one is small: then nothing says that the path does not carry data.
        """
        name = path_name(subflow)
        usual = usual_rtt(subflow)
        lately = {n: was for n, was in self._returned.items() if ctx.now - was[0] < SOON}
        relapses = lately.pop(name)[1] + 1 if name in lately else 0
        self._returned = lately
        pause = self._pause if relapses < 2 else min(self._pause << relapses, 60 * SECOND)
        next_at = ctx.now + pause
        before = self._away.get(name)
        path = self._away[name] = AwayPath(
            name=name,
            remote=subflow.remote,
            # Another connection may report the same fault later.
            why=why if before is None else before.why,
            fell_at=ctx.now if before is None else before.fell_at,
            usual_rtt=usual,
            # A path with a long RTT must also return within seconds: fewer probes fit.
            needed=max(1, min(needed, 3 * SECOND // (usual + 50 * MS))),
            full_size=needed > 1,
            pause=pause,
            next_at=next_at,
            relapses=relapses,
        )
        yield from _report(ctx, path)
        yield WakeAt(at=next_at, reason="the next probe")

    # --- what happened

    def probed(self, ctx: Context, decision: Decision, rtt_us: int | None) -> Iterator[Command]:
        """A probe was answered, or not in time."""
        probe = decision.command
        assert isinstance(probe, ProbePath)
        path = self._away.get((probe.local_ip, probe.remote.ip))
        if path is None or path.probe_at != decision.at:
            return
        path.probe_at = None
        if rtt_us is not None and rtt_us * 1000 <= patience(path.usual_rtt):
            path.answered += 1
            path.next_at = ctx.now + BETWEEN
            if probe.full_size:
                path.unproven_at = None
        else:
            if not probe.full_size:
                path.unproven_at = None
            elif path.answered and path.unproven_at is None:
                path.unproven_at = ctx.now + (SMALL_ONLY << path.relapses)
            self._failed(ctx, path)
        yield from _report(ctx, path)
        yield WakeAt(at=path.next_at, reason="the next probe")

    def unsent(self, ctx: Context, probe: ProbePath, error: int = 0) -> Iterator[Command]:
        """A probe could not be sent, for an errno or because the guard refused it."""
        path = self._away.get((probe.local_ip, probe.remote.ip))
        if path is None or path.probe_at is None:
            return
        path.probe_at = None
        if error == errno.EPERM:
            path.unproven_at = path.fell_at + min(UNSENT << path.relapses, LONGEST_UNSENT)
        self._failed(ctx, path)
        yield from _report(ctx, path)
        yield WakeAt(at=path.next_at, reason="the next probe")

    def joined(self, ctx: Context, subflow: Subflow) -> Iterator[Command]:
        """A subflow was established: if its path is away, it stays only where it is needed.

        That is where it is its connection's only one, or where a path that was reset needs no
        further proof.
        """
        path = self._away.get(path_name(subflow))
        if path is None:
            return
        connection = ctx.world.connections[subflow.token]
        alone = connection.usable_subflows() == [subflow]
        if not alone and (subflow.backup or path.full_size):
            yield _end(subflow, "the path is away")
            return
        del self._away[path.name]
        yield from report_path(ctx, path.name, Role.ACTIVE, "a join was answered")

    # --- what is due

    def due(self, ctx: Context) -> Iterator[Command]:
        """Sends the probes that are due, and returns recovered paths to use."""
        for path in list(self._away.values()):
            if path.probe_at is not None:
                continue
            if path.next_at > ctx.now:
                yield WakeAt(at=path.next_at, reason="the next probe")
            else:
                yield from self._try(ctx, path)

    def _try(self, ctx: Context, path: AwayPath) -> Iterator[Command]:
        able = [connection for connection in ctx.served() if _could_join(connection, path)]
        if not able:
            # No connection can use the path any more: the next one starts without its history.
            del self._away[path.name]
            reason = "no connection is left that could use it; the next one does"
            yield from report_path(ctx, path.name, None, reason)
            return
        local_ip, _ = path.name
        if not any(address.ip == local_ip for address in ctx.world.usable_addresses()):
            yield from self._wait(ctx, path)
        elif path.answered >= path.needed or (path.unproven_at or ctx.now + 1) <= ctx.now:
            yield from self._return(ctx, path, able)
        else:
            yield self._probe(ctx, path)

    def _wait(self, ctx: Context, path: AwayPath) -> Iterator[WakeAt]:
        path.next_at = ctx.now + self._pause
        yield WakeAt(at=path.next_at, reason="the path may be free or usable then")

    def _probe(self, ctx: Context, path: AwayPath) -> ProbePath:
        local_ip, _ = path.name
        left = path.needed - path.answered
        path.probe_at = ctx.now
        return ProbePath(
            local_ip=local_ip,
            remote=path.remote,
            if_index=ctx.world.interface_of(local_ip) or 0,
            full_size=path.full_size and (left <= LAST_FULL or left % 2 == 1),
            within=patience(path.usual_rtt),
            reason=f"probe {path.answered + 1} of {path.needed}: is it answered in time?",
            routine=True,
        )

    def _return(self, ctx: Context, path: AwayPath, able: list[Connection]) -> Iterator[Command]:
        """Uses the path again, with a connection that can join over it."""
        local_ip, _ = path.name
        for connection in reversed(able):
            remote = join_target(connection)
            if (
                remote is not None
                and connection.state is State.ESTABLISHED
                and not any(s.local.ip == local_ip for s in connection.subflows.values())
            ):
                del self._away[path.name]
                self._returned[path.name] = (ctx.now, path.relapses)
                yield from report_path(ctx, path.name, Role.ACTIVE, path.proof)
                yield from self._take_back(ctx, path, connection, remote)
                return
        yield from self._wait(ctx, path)

    def _failed(self, ctx: Context, path: AwayPath) -> None:
        path.answered = 0
        path.next_at = ctx.now + path.pause
        path.pause = min(path.pause * 3 // 2, max(self._longest_pause, path.pause))


def _report(ctx: Context, path: AwayPath) -> Iterator[ReportPath]:
    yield from report_path(
        ctx, path.name, Role.AWAY, path.why, answered=path.answered, needed=path.needed
    )


def _could_join(connection: Connection, path: AwayPath) -> bool:
    target = join_target(connection)
    return target is not None and target.ip == path.name[1] and not connection.server_side


def _end(subflow: Subflow, reason: str) -> DestroySubflow:
    return DestroySubflow(
        token=subflow.token,
        local=subflow.local,
        remote=subflow.remote,
        reason=reason,
        routine=True,
    )
