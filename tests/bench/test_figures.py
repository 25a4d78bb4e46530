# SPDX-License-Identifier: BSD-3-Clause
"""What the benchmarks say of their samples is right, and their document keeps its sections."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.__main__ import HEAD, with_section
from bench._figures import median_at_most, median_interval, percentile, spread

SAMPLES = st.lists(st.floats(0, 1e6), min_size=1, max_size=60)


@pytest.mark.parametrize(("count", "low"), [(3, 1), (6, 1), (9, 2), (11, 2), (21, 6), (50, 18)])
def test_the_interval_of_a_median_is_that_of_the_binomial_tables(count: int, low: int) -> None:
    assert median_interval(list(range(1, count + 1))) == (low, count + 1 - low)


@given(SAMPLES)
def test_the_interval_holds_the_median(values: list[float]) -> None:
    low, high = median_interval(values)
    assert low <= sorted(values)[len(values) // 2] <= high


@given(SAMPLES, st.integers(1, 100))
def test_a_percentile_is_a_value_with_that_share_at_or_below(
    values: list[float], percent: int
) -> None:
    found = percentile(values, percent)
    assert found in values
    assert 100 * sum(value <= found for value in values) >= percent * len(values)
    assert 100 * sum(value < found for value in values) < percent * len(values)


def test_what_never_happened_meets_no_target() -> None:
    assert median_at_most("action", [], 300, "ms").met is False
    assert spread([], "ms") == "never happened"
    assert not percentile([], 99) <= 100
    assert math.isnan(percentile([], 99))


def test_a_figure_is_judged_by_its_median() -> None:
    assert "| met |" in str(median_at_most("start", [100, 200, 900], 200, "ms"))
    assert "| **missed** |" in str(median_at_most("start", [100, 201, 201], 200, "ms"))


def test_a_section_is_replaced_and_the_others_stay_in_order() -> None:
    document = with_section("", "reaction", "## Reaction\n\nfirst words")
    document = with_section(document, "daemon", "## Daemon\n\n| a | b |")
    document = with_section(document, "reaction", "## Reaction\n\nsecond words")
    assert document.startswith(HEAD)
    assert document.count("## Reaction") == 1
    assert "first words" not in document
    assert document.index("| a | b |") < document.index("second words")
