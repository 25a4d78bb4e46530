# SPDX-License-Identifier: BSD-3-Clause
"""Publishes every event and its decisions to the log, the control socket and other observers.

Observers get immutable records after the commands of the event have been sent.  So they can neither
change nor delay a decision.  An observer that raises is dropped, with an error in the log.
"""

import logging
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from msgspec.structs import replace

from mptcpd_ebpf.control import describe
from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.commands import (
    ActingCommand,
    AnnounceAddress,
    ConnectionCommand,
    Decision,
    OwnCommand,
    ProbePath,
    ReadEndpoints,
    ReportPath,
    RequestSample,
)
from mptcpd_ebpf.core.recording import Head, Record, encode
from mptcpd_ebpf.core.roles import Role
from mptcpd_ebpf.daemon.log_bursts import Bursts, Later
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure

log = logging.getLogger("mptcpd-ebpf")


class Observer(Protocol):
    """Gets every record of the run, in order."""

    def publish(self, record: Record) -> None:
        """Raises `Failure` for an expected reason to be dropped, such as a full disk."""


class Observers:
    """All observers, in the order in which they were added."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = list(observers)

    def add(self, observer: Observer) -> None:
        self._observers.append(observer)

    def publish(self, record: Record) -> None:
        for observer in list(self._observers):
            try:
                observer.publish(record)
            except Failure as failure:
                self._observers.remove(observer)
                log.error("%s; the daemon continues without it", failure)
            except Exception:
                self._observers.remove(observer)
                log.exception("%s failed; the daemon continues without it", type(observer).__name__)


class PathLines:
    """Logs the states of paths: one line, and one more for all that follow within `BURST`.

    An interface that fails may lead to hundreds of peers, each of which is a path.
    """

    BURST = 2_000_000_000
    """Nanoseconds."""

    def __init__(self) -> None:
        self._until: dict[tuple[str, Role | None], int] = {}
        """By interface and state: when the burst ends."""
        self._more: dict[tuple[str, Role | None], int] = {}
        """How many of its lines were left out."""

    def log(self, report: ReportPath, now: int) -> None:
        if report.routine:
            log.debug("%s", describe.path_state(report))
            return
        key = (report.interface or report.local_ip, report.state)
        if now < self._until.get(key, 0):
            self._more[key] = self._more.get(key, 0) + 1
            return
        self._until[key] = now + self.BURST
        level = _level(report.state)
        log.log(level, "%s: %s", describe.path_state(report), report.reason)

    def summarise(self, now: int) -> None:
        """Logs what was left out of the bursts that have ended."""
        if not self._until:
            return
        for key in [key for key, until in self._until.items() if until <= now]:
            del self._until[key]
            more = self._more.pop(key, 0)
            if more:
                name, state = key
                words = "not probed any more" if state is None else _STATES[state]
                peers = "peer" if more == 1 else "peers"
                log.log(_level(state), "%s: paths to %d more %s are %s", name, more, peers, words)


_STATES = {Role.ACTIVE: "back", Role.STANDBY: "standby", Role.AWAY: "away"}


def _level(state: Role | None) -> int:
    return logging.WARNING if state in (Role.STANDBY, Role.AWAY) else logging.INFO


class LogObserver:
    """Logs decisions, the kernel's refusals, and changes of the daemon's state.

    Equal decisions for many connections become one line a second (`Bursts`).
    """

    def __init__(self, later: Later | None = None) -> None:
        self._bursts = Bursts(later)
        self._now = 0
        self._unanswered: dict[int, Decision] = {}
        self._lost: dict[str, int] = {}
        self._paths = PathLines()

    def publish(self, record: Record) -> None:
        self._paths.summarise(record.now)
        self._now = record.now
        line = _LINES.get(type(record.event))
        if line is not None:
            line(self, record.event)
        for decision in record.decisions:
            if isinstance(decision.command, RequestSample | ReadEndpoints):
                continue
            if isinstance(decision.command, ReportPath):
                self._paths.log(decision.command, record.now)
                continue
            level = logging.DEBUG if decision.command.routine else logging.INFO
            self._log(decision, level, describe.decision(decision), describe.decisions)
            if decision.refused is None:
                self._unanswered[decision.id] = decision
        for held in record.held:
            log.warning("%s", describe.held_back(held))

    def flush(self) -> None:
        """Logs what waits for the end of the second."""
        self._bursts.flush()

    def _log(
        self,
        decision: Decision,
        level: int,
        line: str,
        many: Callable[[Decision, int], str],
        *kind: object,
    ) -> None:
        """Logs a line about a decision; `many` makes one about equal decisions."""
        if not isinstance(decision.command, ConnectionCommand):
            log.log(level, "%s", line)
            return
        same = (describe.kind(decision), *kind)
        self._bursts.add(self._now, same, level, line, lambda count: many(decision, count))

    def _answered(self, event: ev.CommandAnswered) -> None:
        decision = self._unanswered.pop(event.decision_id, None)
        if decision is None:
            return
        command = decision.command
        if event.errno:
            # A path that is gone for good would fill the log.
            level = logging.DEBUG if isinstance(command, ProbePath) else logging.WARNING
            why = event.explanation
            line = f"not done: {describe.action(command)}: {why}"
            self._log(
                decision,
                level,
                line,
                lambda made, count: f"not done: {describe.actions(made.command, count)}: {why}",
                event.errno,
            )
        elif isinstance(command, AnnounceAddress) and command.listen:
            log.info("announce %s: listening on port %d", command.ip, event.port)

    def _events_lost(self, event: ev.EventsLost) -> None:
        count = self._lost[event.source] = self._lost.get(event.source, 0) + 1
        log.warning(
            "events lost from %s (overflow %d since the start): reading the kernel's state again",
            event.source,
            count,
        )

    def _excluded(self, event: ev.PluginExcluded) -> None:
        log.error(
            "plugin %s is excluded: %s() raised %s; correct it and run 'mptcpd-ebpf reload'",
            event.plugin,
            event.handler,
            event.error,
        )

    def _paused(self, _event: ev.Paused) -> None:
        log.info("paused: plugins decide nothing until 'mptcpd-ebpf resume'")

    def _resumed(self, _event: ev.Resumed) -> None:
        log.info("resumed: plugins decide again")


_LINES: dict[type[ev.Event], Callable[[LogObserver, Any], None]] = {
    ev.CommandAnswered: LogObserver._answered,
    ev.EventsLost: LogObserver._events_lost,
    ev.PluginExcluded: LogObserver._excluded,
    ev.Paused: LogObserver._paused,
    ev.Resumed: LogObserver._resumed,
}


class Statistics:
    """Counts decisions and overflows since the start, and keeps the newest decisions."""

    REMEMBERED = 1000

    def __init__(self) -> None:
        self.decided = 0
        self.refused = 0
        self.events_lost: dict[str, int] = {}
        """Overflows by source."""
        self._decisions: dict[int, Decision] = {}
        self._order: deque[int] = deque()

    @property
    def decisions(self) -> list[Decision]:
        """The newest ones, oldest first, without requests for samples and endpoints."""
        return [self._decisions[number] for number in self._order]

    def publish(self, record: Record) -> None:
        event = record.event
        if isinstance(event, ev.EventsLost):
            self.events_lost[event.source] = self.events_lost.get(event.source, 0) + 1
        elif isinstance(event, ev.CommandAnswered) and event.port:
            self._fill_in_port(event)
        for decision in record.decisions:
            if isinstance(decision.command, ReportPath):
                continue  # in the model
            self.decided += 1
            self.refused += decision.refused is not None
            if not isinstance(decision.command, OwnCommand):
                self._remember(decision)

    def _remember(self, decision: Decision) -> None:
        self._decisions[decision.id] = decision
        self._order.append(decision.id)
        if len(self._order) > self.REMEMBERED:
            del self._decisions[self._order.popleft()]

    def _fill_in_port(self, event: ev.CommandAnswered) -> None:
        """Fills in the port that the kernel chose for an announcement."""
        decision = self._decisions.get(event.decision_id)
        if decision is not None and isinstance(decision.command, AnnounceAddress):
            command = replace(decision.command, port=event.port)
            self._decisions[decision.id] = replace(decision, command=command)


class Memory:
    """Keeps the newest records that are part of the story (`control.story`)."""

    KEPT = 5000
    MEASUREMENTS = 2000
    """In samples, of some 2 kB each.  They show what a decision led to."""

    def __init__(self) -> None:
        self._records: deque[Record] = deque(maxlen=self.KEPT)
        self._samples: deque[tuple[int, int, ev.Sampled]] = deque()
        self._measurements = 0

    @property
    def records(self) -> list[Record]:
        """In order; those of samples have no decisions of their own."""
        samples = [
            Record(seq=seq, now=now, event=event, decisions=[]) for seq, now, event in self._samples
        ]
        return sorted([*samples, *self._records], key=lambda each: each.seq)

    def publish(self, record: Record) -> None:
        event = record.event
        if type(event) in _NO_STORY:
            if isinstance(event, ev.Sampled):
                self._keep(record, event)
            decisions = [
                each for each in record.decisions if isinstance(each.command, ActingCommand)
            ]
            if not decisions:
                return
            # Without the event, which may hold the measurements of every subflow.
            record = replace(record, event=ev.Tick(), decisions=decisions)
        self._records.append(record)

    def _keep(self, record: Record, event: ev.Sampled) -> None:
        self._samples.append((record.seq, record.now, event))
        self._measurements += len(event.measurements)
        while self._measurements > self.MEASUREMENTS:
            self._measurements -= len(self._samples.popleft()[2].measurements)


_NO_STORY = frozenset([ev.Tick, ev.Sampled, ev.EndpointsRead, ev.ModesRead])


class Recorder:
    """Writes every record into a file that `core.recording` reads (``daemon --record FILE``)."""

    def __init__(self, file: Path, head: Head) -> None:
        """Raises `Failure`: the file exists already, or cannot be created or written."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            self._descriptor = os.open(file, flags, 0o600)
        except FileExistsError:
            raise Failure(
                f"--record {file}: the file exists already; name a new one", ExitCode.USAGE
            ) from None
        except OSError as error:
            raise Failure(f"--record {file}: {error.strerror}", ExitCode.USAGE) from None
        self._file = file
        try:
            self._write(head)
        except Failure:
            os.close(self._descriptor)
            file.unlink()
            raise

    def publish(self, record: Record) -> None:
        self._write(record)

    def _write(self, line: Head | Record) -> None:
        # Unbuffered, so that the recording of a killed daemon is complete.
        left = memoryview(encode(line) + b"\n")
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError as error:
            raise Failure(f"--record {self._file}: {error.strerror}", ExitCode.USAGE) from None

    def close(self) -> None:
        os.close(self._descriptor)
