# SPDX-License-Identifier: BSD-3-Clause
"""Plays a scenario under one of the two daemons."""

from pathlib import Path

from tests.side_by_side.managers import Outcome, Stage, stage
from tests.side_by_side.scenarios import Scenario, Step


def play(
    scenario: Scenario, name: str, folder: Path, limits: tuple[int, int] | None = None
) -> Outcome:
    """What can be seen at its end; `name` is ``mptcpd`` or ``ours``.

    `limits` are those to wait for: they follow the table a moment later.
    """
    expected = scenario.theirs if name == "mptcpd" else None
    expected = scenario.table if expected is None else expected
    with stage(name, scenario.arguments, folder) as there:
        for step in scenario.before:
            _do(there, step)
        there.start()
        if scenario.steps:
            # What is there at the start must be dealt with before something happens to it.
            there.settle()
            there.host.ip("addr flush dev z")
            for step in scenario.steps:
                _do(there, step)
        heard = there.settle()
        there.wait_for(expected, limits)
        table, found = there.rows(), there.host.limits
        path_manager = there.host.run("sysctl", "-n", "net.mptcp.path_manager").strip()
        exit_code = there.stop()
        return Outcome(
            table=table,
            limits=found,
            path_manager=path_manager,
            deaf=not heard,
            after=there.rows(),
            exit_code=exit_code,
        )


def _do(there: Stage, step: Step) -> None:
    if isinstance(step, str):
        there.host.ip(step)
    else:
        step(there)
