# SPDX-License-Identifier: BSD-3-Clause
"""A burst of equal log lines is a few lines, and what comes alone is logged at once."""

import logging
from collections.abc import Callable

import pytest

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.commands import (
    AnyCommand,
    Cause,
    CreateSubflow,
    Decision,
    DestroySubflow,
    HeldBack,
    RemoveEndpoint,
)
from mptcpd_ebpf.core.recording import Record
from mptcpd_ebpf.daemon.log_bursts import AT_ONCE, SUMMARIES
from mptcpd_ebpf.daemon.observers import LogObserver
from tests.core.scenario import FIBRE, MS, RADIO, SECOND, SERVER, START

CAUSE = Cause(seq=1, event="AlarmRaised", rule="alarm")


class Log:
    """A log observer, its clock and its lines."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog
        self.due: list[Callable[[], None]] = []
        self.observer = LogObserver(lambda _seconds, end: self.due.append(end))
        self.now = START
        self._next = 1

    @property
    def lines(self) -> list[str]:
        return [each.message for each in self._caplog.records]

    def decide(self, *commands: AnyCommand, refused: str | None = None) -> list[int]:
        made = [
            Decision(
                id=number, at=self.now, plugin="p", cause=CAUSE, command=command, refused=refused
            )
            for number, command in enumerate(commands, start=self._next)
        ]
        self._next += len(made)
        self.publish(ev.Tick(), *made)
        return [each.id for each in made]

    def publish(self, event: ev.AnyEvent, *made: Decision, held: HeldBack | None = None) -> None:
        waiting = [held] if held else []
        self.observer.publish(
            Record(seq=1, now=self.now, event=event, decisions=list(made), held=waiting)
        )

    def second(self) -> None:
        """A second passes."""
        self.now += SECOND
        due, self.due = self.due, []
        for end in due:
            end()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Log:
    caplog.set_level(logging.INFO)
    return Log(caplog)


def destroy(token: int, local: SockAddr = RADIO[0], reason: str = "") -> DestroySubflow:
    reason = reason or f"nothing came back for {200 + token} ms"
    return DestroySubflow(token=token, local=local, remote=SERVER, reason=reason)


def test_a_crowd_is_a_few_lines_and_a_number(log: Log) -> None:
    log.decide(*(destroy(token) for token in range(1, 501)))
    assert len(log.lines) == AT_ONCE
    log.second()
    assert log.lines[AT_ONCE:] == [
        "p: destroy 497 more subflows 10.0.2.2 → 10.0.9.1 (first: 00000004): "
        "nothing came back for 204 ms"
    ]
    log.second()
    assert log.due == []
    log.decide(destroy(9))
    assert log.lines[-1].startswith("p: destroy 10.0.2.2:40002 → 10.0.9.1:443 of 00000009: ")


def test_a_burst_that_goes_on_is_one_line_a_second(log: Log) -> None:
    for _ in range(5):
        for token in range(10):
            log.decide(destroy(token))
            log.now += 10 * MS
        log.now -= 100 * MS
        log.second()
    assert len(log.lines) == AT_ONCE + 5


def test_few_lines_are_logged_as_they_are(log: Log) -> None:
    log.decide(*(destroy(token) for token in range(AT_ONCE)))
    log.second()
    assert len(log.lines) == AT_ONCE
    assert log.due == []


def test_a_single_one_that_waited_is_logged_as_it_is(log: Log) -> None:
    log.decide(*(destroy(token) for token in range(AT_ONCE)), destroy(7, FIBRE[0]))
    log.second()
    assert log.lines[-1].startswith("p: destroy 10.0.1.2:40001 → 10.0.9.1:443 of 00000007: ")


def test_many_kinds_are_bounded_too(log: Log) -> None:
    kinds = [SockAddr(f"10.1.0.{number}", 1) for number in range(40)]
    log.decide(*(destroy(token, local) for local in kinds for token in (1, 2)))
    log.second()
    assert len(log.lines) == AT_ONCE + SUMMARIES
    assert "lines of 37 other kinds, such as: p: destroy 10.1.0." in log.lines[-1]


def test_a_command_comes_before_its_answer(log: Log) -> None:
    joins = [
        CreateSubflow(token=token, local_ip="10.0.2.2", local_id=1, remote=SERVER, reason="usable")
        for token in range(1, 101)
    ]
    for join in joins:
        (number,) = log.decide(join)
        log.publish(ev.CommandAnswered(decision_id=number, errno=107, explanation="not connected"))
    log.second()
    assert log.lines[AT_ONCE:] == [
        "p: create 98 more subflows 10.0.2.2 → 10.0.9.1:443 (first: 00000003): usable",
        "not done: create 99 more subflows 10.0.2.2 → 10.0.9.1:443 (first: 00000002): "
        "not connected",
    ]


def test_refusals_that_repeat_are_one_line(log: Log) -> None:
    for _ in range(20):
        log.decide(destroy(1), refused="it is the last usable subflow of the connection")
        log.now += 10 * MS
    log.second()
    assert len(log.lines) == AT_ONCE + 1
    assert log.lines[-1].endswith("[not done: it is the last usable subflow of the connection]")


def test_commands_on_endpoints_are_always_logged(log: Log) -> None:
    log.decide(*(RemoveEndpoint(address_id=number, reason="test") for number in range(20)))
    assert len(log.lines) == 20


def test_the_end_of_the_daemon_loses_none(log: Log) -> None:
    log.decide(*(destroy(token) for token in range(50)))
    log.observer.flush()
    assert "destroy 47 more" in log.lines[-1]


def test_debugging_shows_all(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    log.decide(*(destroy(token) for token in range(50)))
    assert len(log.lines) == 50


def test_what_is_held_back_is_a_warning(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    held = HeldBack(plugin="p", path="wan0", count=2, waiting=3, per_second=4)
    log.publish(ev.Tick(), held=held)
    assert caplog.records[-1].levelno == logging.WARNING
