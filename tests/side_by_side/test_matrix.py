# SPDX-License-Identifier: BSD-3-Clause
"""Ours beside Debian's mptcpd: the same outcome, or an intended difference.

The daemons mostly wait, so several scenarios run at a time; each test then checks the outcome of
one.
"""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from shutil import which

import pytest
from msgspec import structs

from tests.side_by_side.play import play
from tests.side_by_side.scenario import Scenario, Seen
from tests.side_by_side.scenarios import SCENARIOS
from tests.side_by_side.stage import MPTCPD, Manager

pytestmark = pytest.mark.skipif(not os.path.exists(MPTCPD), reason="mptcpd is not installed")

AT_A_TIME = 4
MANAGERS: tuple[Manager, ...] = ("mptcpd", "ours")

Plays = dict[tuple[str, Manager], Future[Seen]]


@pytest.fixture(scope="module")
def plays(request: pytest.FixtureRequest) -> Iterator[Plays]:
    """The outcomes, as futures, of all selected scenarios."""
    asked = [
        item.callspec.params["scenario"]
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    ]
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        try:
            yield {
                (scenario.name, manager): pool.submit(play, scenario, manager)
                for scenario in asked
                for manager in MANAGERS
            }
        finally:
            pool.shutdown(cancel_futures=True)


def comparable(seen: Seen, scenario: Scenario, manager: Manager) -> Seen:
    """Without the fields that the scenario does not state."""
    if scenario.expected(manager).limits is None:
        seen = structs.replace(seen, limits=None)
    if manager == "mptcpd" or not scenario.put_back:
        seen = structs.replace(seen, put_back=True)
    return seen


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_same_or_better(scenario: Scenario, plays: Plays) -> None:
    lacking = [what for what in scenario.needs if not (which(what) or os.path.exists(what))]
    if lacking:
        pytest.skip(f"not installed: {', '.join(lacking)}")
    theirs, ours = (plays[scenario.name, manager].result() for manager in MANAGERS)
    assert comparable(theirs, scenario, "mptcpd") == scenario.expected("mptcpd")
    assert comparable(ours, scenario, "ours") == scenario.expected("ours")
    assert bool(scenario.better) is bool(scenario.theirs), "every difference has its reason"
    if scenario.limits is None:
        assert ours.limits == theirs.limits
