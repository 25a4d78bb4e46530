# SPDX-License-Identifier: BSD-3-Clause
"""Which uplinks do not work, found out without a connection on them.

An uplink is an interface for one family: a path may work for IPv4 only.  It has an outage when

* a plugin has abandoned a path on it, and no other peer has answered on it since; or
* a SYN on it is not answered, and probes show that the destination answers on another uplink, and
  that on this one neither it answers nor the destination that answered last.

The outage ends when destinations that did not answer do: they are probed again, with pauses that
grow.  So it also ends where no connection is left that could show it.
"""

import errno
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.address import SockAddr, is_ipv6
from mptcpd_ebpf.core.commands import ProbePath
from mptcpd_ebpf.core.model import MS, SECOND, World
from mptcpd_ebpf.core.trials import AwayPath

Uplink = tuple[int, bool]
"""An interface's index, and whether IPv6."""

ANSWERED_PROBES = 3
"""Consecutive answered probes that end an outage; twice as many after each relapse…"""
MOST_ANSWERED_PROBES = 24
"""…up to this."""
RELAPSE = 60 * SECOND
"""Nanoseconds after the end of an outage in which another one is a relapse."""
FIRST_PAUSE, LONGEST_PAUSE = SECOND // 2, 3 * SECOND
"""Nanoseconds between unanswered probes; each pause is half as long again as the one before."""
NEXT_PROBE = 200 * MS
"""Nanoseconds after an answered one."""
PATIENCE = SECOND
"""Nanoseconds for the answer to a probe."""
DEAD_END = 60 * SECOND
"""Nanoseconds for which a destination is no evidence after it answered nowhere."""
MOST_REMEMBERED = 64
"""Peers remembered for an uplink, and destinations that are no evidence."""


@dataclass(slots=True)
class Outage:
    """An uplink on which new connections get no answer."""

    why: str
    local_ip: str
    witnesses: dict[SockAddr, None]
    """Destinations that did not answer on it, and do on other uplinks."""
    needed: int
    """Consecutive answered probes that end it."""
    relapses: int
    abandoned: bool = False
    """A plugin has abandoned the path, and finds out itself when it works again."""
    next_at: int = 0
    pause: int = FIRST_PAUSE
    clean: int = 0
    awaited: dict[SockAddr, None] = field(default_factory=dict)
    answered: bool = False
    """One of those that were probed together has answered."""


@dataclass(slots=True)
class Suspicion:
    """A destination that does not answer on an uplink: whose fault is it?"""

    remote: SockAddr
    local_ip: str
    witnesses: dict[SockAddr, None]
    awaited: dict[tuple[str, SockAddr], None]
    began_at: int
    answered: dict[str, None] = field(default_factory=dict)
    """The local addresses on which something answered."""
    repeated: bool = False
    """Another SYN to the destination was not answered either: it is not the loss of one."""
    spread: bool = False
    """Another destination did not answer either."""

    @property
    def elsewhere(self) -> bool:
        """Something answered on another uplink."""
        return any(ip != self.local_ip for ip in self.answered)

    @property
    def decided(self) -> bool:
        """Whether nothing that is still awaited could change the conclusion."""
        if not self.awaited:
            return True
        if not self.elsewhere or self.local_ip in self.answered:
            return False
        own = (self.local_ip, self.remote)
        return self.spread or (self.repeated and all(each == own for each in self.awaited))


class Outages:
    """The outages, and the probes that begin and end them."""

    def __init__(self) -> None:
        self._outages: dict[Uplink, Outage] = {}
        self._suspicions: dict[Uplink, Suspicion] = {}
        self._answered: dict[Uplink, dict[str, int]] = {}
        """When a peer last answered on an uplink, by its address."""
        self._ended: dict[Uplink, tuple[int, int]] = {}
        """When an uplink's last outage ended, and its relapses until then."""
        self._dead_ends: dict[str, int] = {}
        """Destinations that answered nowhere, and until when they are no evidence."""

    @property
    def deadline(self) -> int | None:
        """When `probe_again` has something to do, in CLOCK_MONOTONIC nanoseconds."""
        return min(
            (o.next_at for o in self._outages.values() if not o.abandoned and not o.awaited),
            default=None,
        )

    @property
    def known(self) -> bool:
        """Whether anything is known or suspected."""
        return bool(self._outages or self._suspicions)

    def why(self, uplink: Uplink) -> str | None:
        """Why an uplink does not work; None if nothing is known against it."""
        outage = self._outages.get(uplink)
        return outage.why if outage is not None else None

    def answered(self, world: World, local_ip: str, peer_ip: str, now: int) -> None:
        """Something from a peer arrived on one of our addresses."""
        uplink = uplink_of(world, local_ip)
        if uplink is not None:
            peers = self._answered.setdefault(uplink, {})
            peers.pop(peer_ip, None)
            peers[peer_ip] = now
            if len(peers) > MOST_REMEMBERED:
                del peers[next(iter(peers))]

    # --- paths that plugins abandoned

    def take_abandoned(self, world: World, away: Iterable[AwayPath], now: int) -> None:
        """`away` is all that plugins have abandoned at present."""
        still: dict[Uplink, None] = {}
        for path in away:
            local_ip, peer_ip = path.name
            uplink = uplink_of(world, local_ip)
            if uplink is None or self._refuted(uplink, peer_ip, path.fell_at):
                continue
            still[uplink] = None
            if uplink not in self._outages:
                self._begin(uplink, path.why, local_ip, {path.remote: None}, now)
            self._outages[uplink].abandoned = True
        for uplink, outage in list(self._outages.items()):
            if world.interface_of(outage.local_ip) != uplink[0]:
                del self._outages[uplink]
            elif outage.abandoned and uplink not in still:
                # The plugin found that the path works, or has no connection left to find out.
                outage.abandoned, outage.next_at, outage.needed = False, now, 1

    def _refuted(self, uplink: Uplink, peer_ip: str, fell_at: int) -> bool:
        """Whether another peer answered on the uplink since: then only that peer's path failed."""
        peers = self._answered.get(uplink, {})
        return any(at > fell_at and ip != peer_ip for ip, at in peers.items())

    # --- unanswered SYNs

    def suspect(
        self, event: ev.StartUnanswered, world: World, other_ip: str, now: int
    ) -> Iterator[ProbePath]:
        """A SYN was not answered: probes its destination on this uplink and from `other_ip`."""
        uplink = uplink_of(world, event.local_ip)
        if uplink is None or uplink in self._outages:
            return
        suspicion = self._suspicions.get(uplink)
        if suspicion is not None:
            suspicion.repeated |= event.began_at != suspicion.began_at
            suspicion.spread |= event.remote.ip != suspicion.remote.ip
            self._settle(uplink, suspicion, now)
            return
        if self._dead_ends.get(event.remote.ip, 0) > now:
            return
        # One SYN may be lost anywhere: the path gets another chance.
        probes = {(other_ip, event.remote): None, (event.local_ip, event.remote): None}
        witnesses = {event.remote: None}
        known = event.last_answered
        if known is not None and known.ip != event.remote.ip:
            # If this one answers, the path works.
            probes[event.local_ip, known] = None
            witnesses[known] = None
        self._suspicions[uplink] = Suspicion(
            event.remote, event.local_ip, witnesses, probes, event.began_at
        )
        interface = world.interface_name(uplink[0])
        for local_ip, remote in probes:
            reason = f"{event.remote} does not answer on {interface}: is it the path?"
            yield _probe(world, local_ip, remote, reason)

    def probed(self, command: ProbePath, answered: bool, world: World, now: int) -> None:
        """A probe that was asked for here was answered, or was not in time."""
        local_ip, remote = command.local_ip, command.remote
        if answered:
            self.answered(world, local_ip, remote.ip, now)
        for uplink, suspicion in list(self._suspicions.items()):
            if (local_ip, remote) not in suspicion.awaited:
                continue
            del suspicion.awaited[local_ip, remote]
            if answered:
                suspicion.answered[local_ip] = None
            self._settle(uplink, suspicion, now)
        for outage in self._outages.values():
            if outage.local_ip == local_ip and remote in outage.awaited:
                del outage.awaited[remote]
                outage.answered |= answered
                if not outage.awaited:
                    _count(outage, now)

    def unsent(self, command: ProbePath, error: int, world: World, now: int) -> None:
        """A probe could not be sent, for an errno: without a route nothing is answered either, but
        without the capability to probe nothing can be found out."""
        if error != errno.EPERM:
            self.probed(command, False, world, now)
            return
        sent = (command.local_ip, command.remote)
        for uplink in [u for u, each in self._suspicions.items() if sent in each.awaited]:
            del self._suspicions[uplink]
        for uplink in [
            u
            for u, each in self._outages.items()
            if each.local_ip == command.local_ip and command.remote in each.awaited
        ]:
            del self._outages[uplink]

    def _settle(self, uplink: Uplink, suspicion: Suspicion, now: int) -> None:
        if not suspicion.decided:
            return
        del self._suspicions[uplink]
        if suspicion.elsewhere and suspicion.local_ip not in suspicion.answered:
            why = f"{suspicion.remote} does not answer there, and does on another path"
            self._begin(uplink, why, suspicion.local_ip, suspicion.witnesses, now)
        elif not suspicion.elsewhere:
            self._dead_ends.pop(suspicion.remote.ip, None)
            self._dead_ends[suspicion.remote.ip] = now + DEAD_END
            if len(self._dead_ends) > MOST_REMEMBERED:
                del self._dead_ends[next(iter(self._dead_ends))]

    # --- outages

    def _begin(
        self, uplink: Uplink, why: str, local_ip: str, witnesses: dict[SockAddr, None], now: int
    ) -> None:
        ended, relapses = self._ended.pop(uplink, (0, -1))
        relapses = relapses + 1 if now - ended < RELAPSE else 0
        needed = min(ANSWERED_PROBES << min(relapses, 8), MOST_ANSWERED_PROBES)
        self._outages[uplink] = Outage(
            why, local_ip, witnesses, needed, relapses, next_at=now + FIRST_PAUSE
        )

    def probe_again(self, world: World, now: int) -> Iterator[ProbePath]:
        """Ends the outages that are over, and starts the probes that are due."""
        for uplink, outage in list(self._outages.items()):
            if outage.abandoned:
                continue
            if outage.clean >= outage.needed:
                del self._outages[uplink]
                self._ended[uplink] = (now, outage.relapses)
            elif not outage.awaited and outage.next_at <= now:
                outage.awaited = dict(outage.witnesses)
                outage.answered = False
                for remote in outage.witnesses:
                    reason = f"does {world.interface_name(uplink[0])} work again?"
                    yield _probe(world, outage.local_ip, remote, reason)


def uplink_of(world: World, local_ip: str) -> Uplink | None:
    """The uplink of one of our addresses."""
    if_index = world.interface_of(local_ip)
    return None if if_index is None else (if_index, is_ipv6(local_ip))


def _count(outage: Outage, now: int) -> None:
    if outage.answered:
        outage.clean += 1
        outage.next_at, outage.pause = now + NEXT_PROBE, FIRST_PAUSE
    else:
        outage.clean = 0
        outage.next_at = now + outage.pause
        outage.pause = min(outage.pause * 3 // 2, LONGEST_PAUSE)


def _probe(world: World, local_ip: str, remote: SockAddr, reason: str) -> ProbePath:
    return ProbePath(
        local_ip=local_ip,
        remote=remote,
        if_index=world.interface_of(local_ip) or 0,
        within=PATIENCE,
        reason=reason,
        routine=True,
    )
