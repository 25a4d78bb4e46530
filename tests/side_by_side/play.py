# SPDX-License-Identifier: BSD-3-Clause
"""Plays a scenario under one of the two daemons."""

import tempfile
from pathlib import Path

from tests.side_by_side.scenario import Scenario, Seen, Step
from tests.side_by_side.stage import ATTEMPTS_IF_UNRESPONSIVE, Manager, Stage, stage


def play(scenario: Scenario, name: Manager) -> Seen:
    """The outcome, after waiting for the expected one."""
    expected = scenario.expected(name)
    with (
        tempfile.TemporaryDirectory() as folder,
        stage(name, scenario.where, (*scenario.usual, *scenario.arguments), Path(folder)) as there,
    ):
        for step in scenario.before:
            _do(there, step)
        if expected.unresponsive:
            there.attempts = ATTEMPTS_IF_UNRESPONSIVE
        if not scenario.daemon:
            return Seen(said=scenario.look(there))
        before = there.host.limits, there.path_manager
        there.start()
        if scenario.steps:
            # The daemon must have processed the initial state before the steps change it.
            scenario.barrier(there)
            there.clear()
            for step in scenario.steps:
                _do(there, step)
        heard = scenario.barrier(there)
        there.within(lambda: _looks(there, scenario, expected))
        found = _look(there, scenario)
        path_manager, limits = there.path_manager, there.host.limits
        unresponsive = not heard and there.runs
        exit_code = there.stop()
        return Seen(
            table=found[0],
            wire=found[1],
            said=found[2],
            limits=limits,
            path_manager=path_manager,
            unresponsive=unresponsive,
            exit_code=exit_code,
            after=there.rows(),
            put_back=(there.host.limits, there.path_manager) == before,
        )


Look = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]


def _look(there: Stage, scenario: Scenario) -> Look:
    return there.rows(), there.spoken(), scenario.look(there)


def _looks(there: Stage, scenario: Scenario, expected: Seen) -> bool:
    if expected.limits not in (None, there.host.limits):
        return False
    return _look(there, scenario) == (expected.table, expected.wire, expected.said)


def _do(there: Stage, step: Step) -> None:
    if isinstance(step, str):
        there.host.ip(step)
    else:
        step(there)
