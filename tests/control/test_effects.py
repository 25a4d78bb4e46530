# SPDX-License-Identifier: BSD-3-Clause
"""Which readings are compared around a decision."""

import pytest

from mptcpd_ebpf.control.effects import Effect, Effects
from tests.core.scenario import MS, RADIO, START, TOKEN, measured


def effect(readings: list[int], at: int = 4000, decided: tuple[int, ...] = ()) -> Effect | None:
    """The effect of a decision at `at`; all times in milliseconds, one byte each millisecond."""
    effects = Effects()
    for each in readings:
        effects.note(measured(RADIO, at=START + each * MS, connection_bytes_acked=each))
    for each in (at, *decided):
        effects.decided(TOKEN, START + each * MS)
    return effects.of(TOKEN, START + at * MS)


@pytest.mark.parametrize(
    ("readings", "decided", "before", "after"),
    [
        ([0, 1500, 3900, 4500, 6000, 9500], (), 2.4, 2.1),
        ([0, 4000, 9500], (), 4.0, 5.5),
        ([0, 4000, 6000, 8000], (7000,), 4.0, 2.0),
        ([0, 2000, 5000, 6500], (), 2.0, 1.5),
        ([1000, 3900, 4000, 4100, 4300], (), 3.0, 0.3),
    ],
    ids=[
        "within-the-spans",
        "farther-away",
        "until-the-next-decision",
        "no-reading-at-the-time",
        "not-too-close",
    ],
)
def test_the_spans_are_those_that_the_readings_allow(
    readings: list[int], decided: tuple[int, ...], before: float, after: float
) -> None:
    found = effect(readings, decided=decided)
    assert found is not None
    assert found["before"]["seconds"] == before
    assert found["after"]["seconds"] == after
    assert found["after"]["goodput_bit_s"] == 8000


@pytest.mark.parametrize(
    ("readings", "decided"),
    [
        ([], ()),
        ([4500, 6000], ()),
        ([3900, 4000, 6000], ()),
        ([0, 4000, 4100], ()),
        ([0, 4000, 6000], (5000,)),
    ],
    ids=["no-reading", "none-before", "one-before", "too-soon-after", "another-decision"],
)
def test_without_readings_on_both_sides_there_is_no_effect(
    readings: list[int], decided: tuple[int, ...]
) -> None:
    assert effect(readings, decided=decided) is None
