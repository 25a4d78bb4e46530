# SPDX-License-Identifier: BSD-3-Clause
"""Ours beside Debian's mptcpd: the same outcome, or a difference that is meant."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.side_by_side.managers import COMMANDS, MPTCPD
from tests.side_by_side.play import play
from tests.side_by_side.scenarios import SCENARIOS, Scenario

pytestmark = pytest.mark.skipif(not os.path.exists(MPTCPD), reason="mptcpd is not installed")


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_same_or_better(scenario: Scenario, tmp_path: Path) -> None:
    theirs = play(scenario, "mptcpd", tmp_path)
    expected = scenario.table if scenario.theirs is None else scenario.theirs
    assert theirs.table == expected
    assert theirs.deaf is scenario.deaf
    assert theirs.path_manager == (scenario.path_manager or "kernel")
    # After a change mptcpd's limits follow at a time of their own.
    alike = scenario.theirs is None and not scenario.steps
    ours = play(scenario, "ours", tmp_path, theirs.limits if alike else None)
    assert ours.table == scenario.table
    assert not ours.deaf
    assert ours.path_manager == "kernel"
    assert ours.exit_code == theirs.exit_code == 0
    if alike:
        assert ours.limits == theirs.limits
    same = (ours.table, ours.path_manager, ours.deaf) == (
        theirs.table,
        theirs.path_manager,
        theirs.deaf,
    )
    assert same is not bool(scenario.better)
    # Meant to differ everywhere: what ours made goes with it, and nothing else does.
    assert set(ours.after) <= set(theirs.after) | set(scenario.table)
    by_hand = {row for row in ours.table if row.endswith("backup") or row.startswith("192.0.2.")}
    if "--addr-flags=subflow,backup" not in scenario.arguments:
        assert set(ours.after) == by_hand


@pytest.mark.parametrize(
    ("arguments", "theirs", "ours"),
    [
        (("--help",), 0, 0),
        (("--usage",), 0, 0),
        (("--version",), 0, 0),
        (("-V",), 0, 0),
        (("--nonsense",), 64, 64),
        (("--log=nowhere",), 64, 64),
    ],
)
def test_exit_codes(arguments: tuple[str, ...], theirs: int, ours: int) -> None:
    for name, expected in (("mptcpd", theirs), ("ours", ours)):
        ended = subprocess.run(
            ["unshare", "--net", "--", *COMMANDS[name], *arguments],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == expected, (name, ended)
