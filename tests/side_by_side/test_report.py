# SPDX-License-Identifier: BSD-3-Clause
"""What the documentation shows is what the scenarios state, all of it."""

from tests.side_by_side.report import DOCUMENT, generated, parts
from tests.side_by_side.scenario import ELSEWHERE, Fault
from tests.side_by_side.scenarios import SCENARIOS


def test_the_document_shows_the_scenarios_as_they_are() -> None:
    _, body, _ = parts(DOCUMENT.read_text())
    assert body == generated(SCENARIOS), "run python -m tests.side_by_side --write"


def test_every_fault_is_played() -> None:
    """Each complaint by a scenario in which the two differ, or measured elsewhere."""
    played = {fault for scenario in SCENARIOS for fault in scenario.faults if scenario.theirs}
    assert played == set(Fault) - set(ELSEWHERE)


def test_names_are_unique() -> None:
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)
