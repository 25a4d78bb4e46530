# SPDX-License-Identifier: BSD-3-Clause
"""Which commands are carried out now, which later, and which never.

    command ─▶ guard ─▶ evidence ─▶ budget ─▶ now
                 │          │         └─────▶ held back until there is room
                 │          └───────────────▶ held back until a new measurement was taken
                 └──────────────────────────▶ refused

What is held back is not told to its author, who goes on as if it had been sent.  It is checked
again before it is sent, and is void when it has become wrong: the subflow is gone or is the last
one, something has come back on it, or it waited for longer than `HOLD`.  Then its author is told
that it was refused.

Not limited: an operator's commands, what a plugin puts back when it ends, and the core's own.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from mptcpd_ebpf.core.budget import ALLOWED, ONCE, Budget, Path
from mptcpd_ebpf.core.commands import (
    MANUAL,
    Cause,
    Command,
    HeldBack,
    SetBackup,
    WithdrawAddress,
)
from mptcpd_ebpf.core.evidence import Evidence, Grounds
from mptcpd_ebpf.core.guard import Guard, TableTaking, Taking, affected, are_gone, is_destructive
from mptcpd_ebpf.core.model import SECOND, Connection, Subflow, World

MARKER = "backup flag"
"""The author of decisions that set the backup flag of a join where the kernel does not."""

HOLD = 10 * SECOND
"""Nanoseconds after which a command that still waits is void: its author decided on what was true
then."""

ASK_AGAIN = SECOND
"""Nanoseconds to wait for a measurement that was requested."""

TABLE: Path = ("the endpoints", "")
"""Stands for the path of commands on endpoints."""


@dataclass(slots=True)
class Held:
    """A command that waits."""

    at: int
    """When it was decided."""
    author: str
    cause: Cause
    command: Taking
    path: Path
    grounds: Grounds | None
    """The evidence for it then."""
    unverified: bool = False
    """It waits for a measurement and not for room."""
    void: str | None = None
    """Why it is not carried out any more; empty: its author need not be told."""


class Verdict(NamedTuple):
    """What becomes of a command; without either, it is carried out now."""

    refused: str | None = None
    held: bool = False


class Retried(NamedTuple):
    """A command that has waited, and why it is refused after all; None: it is carried out."""

    held: Held
    refused: str | None


@dataclass(slots=True)
class _Count:
    """Commands held back on a path since the last summary."""

    due: int
    count: int = 0


class Admission:
    """Guard, evidence and budget in front of the kernel, and the commands that wait."""

    def __init__(self, per_second: int = 200) -> None:
        self.guard = Guard()
        self.evidence = Evidence()
        self._budget = Budget(per_second)
        self._limited = True
        self._waiting: dict[tuple[str, Path], deque[Held]] = {}
        """For room in the budget; by author and path, the oldest first."""
        self._unverified: deque[Held] = deque()
        """For a new measurement."""
        self._held: dict[int, list[Held]] = {}
        """By token: all that wait."""
        self._counts: dict[tuple[str, Path], _Count] = {}
        self._asked_at: int | None = None
        """When a measurement was requested that has not come."""
        self._retry_at: int | None = None

    def set_rate(self, per_second: int) -> None:
        """Destructive commands a second, of each author on each path."""
        self._budget.per_second = per_second

    @contextmanager
    def without_rate(self) -> Iterator[None]:
        """Within, no rate applies: a plugin that ends puts back all that it created."""
        self._limited = False
        try:
            yield
        finally:
            self._limited = True

    @property
    def deadline(self) -> int | None:
        """When `retry` has something to do, CLOCK_MONOTONIC nanoseconds."""
        return self._retry_at

    @property
    def idle(self) -> bool:
        """Nothing waits, no summary is due, and nothing has passed lately."""
        return not (self._held or self._counts or self._budget.used)

    # --- one command

    def admit(self, author: str, cause: Cause, command: Command, world: World, now: int) -> Verdict:
        """Whether a command that was decided now is carried out; if so, it counts as passed."""
        if isinstance(command, SetBackup) and not command.backup:
            self._overtake(command)
        refused = self.guard.refusal(command, world, now)
        if refused is not None or not is_destructive(command):
            return Verdict(refused)
        if self._limited and author not in (MANUAL, MARKER):
            if isinstance(command, Taking):
                verdict = self._admit_one(author, cause, command, world, now)
            else:
                assert isinstance(command, TableTaking)
                verdict = self._admit_table(author, command, world, now)
            if verdict.refused is not None or verdict.held:
                return verdict
        self.guard.passed(command, world, now)
        return Verdict()

    def _admit_table(self, author: str, command: TableTaking, world: World, now: int) -> Verdict:
        if are_gone(command, world) or self._budget.take(author, TABLE, now):
            return Verdict()
        return Verdict(f"more than {self._budget.per_second} destructive commands a second")

    def _admit_one(
        self, author: str, cause: Cause, command: Taking, world: World, now: int
    ) -> Verdict:
        connection = world.connections[command.token]
        path = _path(command, connection)
        taken = self.guard.taken_anew(command, connection)
        grounds = self._grounds(taken, world, now)
        held = Held(now, author, cause, command, path, grounds)
        earlier = self._before(held, connection)
        if any(other.command == command for other in earlier):
            return Verdict(held=True)
        before = earlier[0] if earlier else None
        held.unverified = before.unverified if before else self._is_late(held, taken, now)
        if held.unverified:
            self._unverified.append(held)
        elif before is None and self._may_pass(held, taken, now):
            return Verdict()
        elif not self._budget.per_second:
            return Verdict("the configuration allows no destructive commands")
        else:
            self._wait_for_room(held, now)
        self._held.setdefault(command.token, []).append(held)
        return Verdict(held=True)

    def _before(self, held: Held, connection: Connection) -> list[Held]:
        """What already waits of the same author for the same subflow: the order is kept."""
        names = affected(held.command, connection).keys()
        return [
            other
            for other in self._held.get(held.command.token, ())
            if other.author == held.author
            and other.void is None
            and names & affected(other.command, connection).keys()
        ]

    def _grounds(self, taken: list[Subflow], world: World, now: int) -> Grounds | None:
        """The weakest evidence among the subflows; None if one is taken without any."""
        found = [self.evidence.grounds(world, subflow, now) for subflow in taken]
        known = [each for each in found if each is not None]
        if len(known) < len(found):
            return None
        return min(known, key=lambda each: each.value, default=None)

    def _is_late(self, held: Held, taken: list[Subflow], now: int) -> bool:
        return held.grounds is Grounds.SILENT and any(
            self.evidence.is_late(subflow, now) for subflow in taken
        )

    def _may_pass(self, held: Held, taken: list[Subflow], now: int) -> bool:
        """Takes the command out of the budget, if there is room."""
        command, path = held.command, held.path
        what, times = "leave", 0
        if isinstance(command, WithdrawAddress) and not taken:
            what, times = f"withdraw {command.address_id}", ONCE
        elif not taken:
            return True
        elif isinstance(command, SetBackup):
            what, times = "demote", ONCE
        if held.grounds is not None:
            times = max(times, ALLOWED[held.grounds])
        if self._budget.take_allowance(command.token, what, path, times, now):
            return True
        return self._budget.take(held.author, path, now)

    # --- what waits

    def _wait_for_room(self, held: Held, now: int) -> None:
        key = (held.author, held.path)
        self._waiting.setdefault(key, deque()).append(held)
        self._counts.setdefault(key, _Count(due=now + SECOND)).count += 1

    def _overtake(self, restored: SetBackup) -> None:
        """A demotion that waits is void when the flag is cleared again."""
        for held in self._held.get(restored.token, ()):
            waits = held.command
            if isinstance(waits, SetBackup) and (waits.local, waits.remote) == (
                restored.local,
                restored.remote,
            ):
                held.void = "a later command clears the flag"

    def drop(self, authors_kept: list[str]) -> None:
        """Forgets what other authors decided: they were paused, replaced or excluded."""
        for held in [each for of_one in self._held.values() for each in of_one]:
            if held.author not in authors_kept:
                held.void = ""

    def connection_closed(self, token: int) -> None:
        for held in self._held.get(token, ()):
            held.void = ""
        self._budget.connection_closed(token)

    def subflow_closed(self, subflow: Subflow) -> None:
        self.guard.settled(subflow.token, subflow.key)
        self.evidence.subflow_closed(subflow)

    def sampled(self, now: int) -> None:
        """Every subflow was measured."""
        self.evidence.sampled(now)
        self._asked_at = None

    def asks_for_sample(self, now: int) -> bool:
        """Whether a measurement is to be requested now."""
        if not self._unverified or (
            self._asked_at is not None and now - self._asked_at < ASK_AGAIN
        ):
            return False
        self._asked_at = now
        self._plan(now)
        return True

    def retry(self, world: World, now: int) -> list[Retried]:
        """What has waited and is sent or void now, in the order in which it was decided."""
        self._budget.expire(now)
        if not self._held:
            return []
        done = list(self._retry_unverified(world, now))
        for key in list(self._waiting):
            done += self._retry_waiting(key, world, now)
        for held, _ in done:
            self._release(held)
        self._plan(now)
        done.sort(key=lambda each: each.held.at)
        return [each for each in done if each.refused != ""]

    def _retry_unverified(self, world: World, now: int) -> Iterator[Retried]:
        while self._unverified:
            held = self._unverified[0]
            void = self._void(held, world, now)
            taken = self._taken(held, world) if void is None else []
            if void is None and self._is_late(held, taken, now):
                return
            self._unverified.popleft()
            if void is not None:
                yield Retried(held, void)
            elif self._may_pass(held, taken, now):
                self.guard.passed(held.command, world, now)
                yield Retried(held, None)
            else:
                held.unverified = False
                self._wait_for_room(held, now)

    def _retry_waiting(self, key: tuple[str, Path], world: World, now: int) -> Iterator[Retried]:
        queue = self._waiting[key]
        while queue:
            held = queue[0]
            void = self._void(held, world, now)
            if void is None:
                taken = self._taken(held, world)
                if self._is_late(held, taken, now):
                    held.unverified = True
                    self._unverified.append(queue.popleft())
                    continue
                if not self._may_pass(held, taken, now):
                    return
                self.guard.passed(held.command, world, now)
            yield Retried(queue.popleft(), void)
        del self._waiting[key]

    def _taken(self, held: Held, world: World) -> list[Subflow]:
        return self.guard.taken_anew(held.command, world.connections[held.command.token])

    def _void(self, held: Held, world: World, now: int) -> str | None:
        """Why a command that waits is not carried out; None if it still may be."""
        if held.void is not None:
            return held.void
        refused = self.guard.refusal(held.command, world, now)
        if refused is not None:
            return refused
        if now - held.at >= HOLD:
            return f"it waited for {HOLD // SECOND} s"
        taken = self._taken(held, world)
        grounds = self._grounds(taken, world, now)
        if taken and grounds is None and held.grounds in (Grounds.SILENT, Grounds.CUT_OFF):
            return "its path has recovered meanwhile"
        held.grounds = grounds or held.grounds
        return None

    def _release(self, held: Held) -> None:
        of_one = self._held[held.command.token]
        of_one.remove(held)
        if not of_one:
            del self._held[held.command.token]

    def _plan(self, now: int) -> None:
        """Sets the deadline."""
        times = [count.due for count in self._counts.values()]
        for (author, path), queue in self._waiting.items():
            room = self._budget.room_at(author, path, now)
            times += [queue[0].at + HOLD, *([room] if room is not None else [])]
        if self._unverified:
            times.append(self._unverified[0].at + HOLD)
            if self._asked_at is not None:
                times.append(self._asked_at + ASK_AGAIN)
        self._retry_at = min(times, default=None)

    def summaries(self, world: World, now: int) -> list[HeldBack]:
        """One for each author and path on which commands were held back in the last second."""
        found = []
        for key, counted in list(self._counts.items()):
            if counted.due > now:
                continue
            del self._counts[key]
            author, path = key
            found.append(
                HeldBack(
                    plugin=author,
                    path=_words(path, world),
                    count=counted.count,
                    waiting=len(self._waiting.get(key, ())),
                    per_second=self._budget.per_second,
                )
            )
        if found:
            self._plan(now)
        return found


def _path(command: Taking, connection: Connection) -> Path:
    """The path that a command takes subflows off; of a withdrawal, that of its address."""
    for local, remote in affected(command, connection):
        return (local.ip, remote.ip)
    assert isinstance(command, WithdrawAddress)
    for ip, address_id in connection.local_ids.items():
        if address_id == command.address_id:
            return (ip, connection.remote.ip)
    return (connection.local.ip, connection.remote.ip)


def _words(path: Path, world: World) -> str:
    local_ip, remote_ip = path
    ends = f"{local_ip} → {remote_ip}"
    name = world.interface_name(world.interface_of(local_ip))
    return f"{name} ({ends})" if name is not None else ends
