# SPDX-License-Identifier: BSD-3-Clause
"""A plugin handler that does not return is interrupted; nothing else is."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from mptcpd_ebpf.core.commands import AnyCommand, WakeAt
from mptcpd_ebpf.daemon import handler_budget
from mptcpd_ebpf.daemon.handler_budget import HandlerBudget, HandlerTooSlow

DONE: list[AnyCommand] = [WakeAt(at=1, reason="done")]


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Iterator[HandlerBudget]:
    monkeypatch.setattr(handler_budget, "SECONDS", 0.02)
    monkeypatch.setattr(handler_budget, "WAITING_SECONDS", 0.1)
    monkeypatch.setattr(handler_budget, "AGAIN_SECONDS", 0.005)
    before = signal.getsignal(signal.SIGALRM)
    with HandlerBudget() as entered:
        yield entered
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is before


def spin() -> list[AnyCommand]:
    while True:
        pass


def stubborn() -> list[AnyCommand]:
    while True:
        with contextlib.suppress(Exception):
            spin()


def caught_three_times() -> list[AnyCommand]:
    for _ in range(3):
        with contextlib.suppress(BaseException):
            spin()
    return spin()


def asleep() -> list[AnyCommand]:
    time.sleep(3600)
    return DONE


def generating() -> list[AnyCommand]:
    def endless() -> Iterator[AnyCommand]:
        while True:
            yield DONE[0]

    return [command for command in endless() if command is None]


@pytest.mark.parametrize("handler", [spin, stubborn, caught_three_times, generating])
def test_a_handler_that_does_not_return_is_interrupted(
    limited: HandlerBudget, handler: Callable[[], list[AnyCommand]]
) -> None:
    with pytest.raises(HandlerTooSlow, match="it ran longer than 20 ms"):
        limited(1, handler)


def test_a_handler_that_sleeps_is_interrupted_later(limited: HandlerBudget) -> None:
    with pytest.raises(HandlerTooSlow, match="it did not return for 100 ms"):
        limited(1, asleep)


def test_a_handler_that_waits_for_the_processor_is_not_interrupted(
    limited: HandlerBudget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a loaded machine: the clock of the handler's processor time does not advance."""
    monkeypatch.setattr(handler_budget, "WAITING_SECONDS", 3600)
    monkeypatch.setattr(time, "thread_time", lambda: 0.0)
    alarms = iter(range(10))

    def waits() -> list[AnyCommand]:
        for _ in alarms:
            signal.sigtimedwait([signal.SIGALRM], 0.001)
            signal.raise_signal(signal.SIGALRM)
        return DONE

    assert limited(1, waits) is DONE


def test_commands_and_errors_of_a_handler_are_passed_on(limited: HandlerBudget) -> None:
    def broken() -> list[AnyCommand]:
        raise ZeroDivisionError("by zero")

    assert limited(1, lambda: DONE) is DONE
    with pytest.raises(ZeroDivisionError):
        limited(1, broken)
    assert limited(1, lambda: DONE) is DONE


def test_a_late_alarm_interrupts_nothing(limited: HandlerBudget) -> None:
    assert limited(1, lambda: DONE) is DONE
    signal.raise_signal(signal.SIGALRM)


def test_except_exception_does_not_catch_it() -> None:
    assert not issubclass(HandlerTooSlow, Exception)


def test_the_limit_grows_with_the_connections(limited: HandlerBudget) -> None:
    limited.connections = lambda: 200
    with pytest.raises(HandlerTooSlow, match="longer than 120 ms"):
        limited(1, spin)
    with pytest.raises(HandlerTooSlow, match="did not return for 300 ms"):
        limited(2, asleep)
