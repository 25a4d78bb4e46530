# SPDX-License-Identifier: BSD-3-Clause
"""Percentiles and rates of traffic results."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcpd_ebpf.lab.traffic import BulkResult, Message, RequestResponseResult, percentiles

MS = 1_000_000


def test_percentiles_are_values_that_occurred() -> None:
    found = percentiles(n * MS for n in range(1, 101))
    assert (found.n, found.min_ms, found.max_ms, found.mean_ms) == (100, 1, 100, 50.5)
    assert (found.p50_ms, found.p90_ms, found.p99_ms) == (50, 90, 99)


def test_percentiles_of_no_times_are_none() -> None:
    assert percentiles([]).n == 0
    assert percentiles([]).p99_ms is None


@given(st.lists(st.integers(0, 10**12), min_size=1))
def test_percentiles_are_in_order(times: list[int]) -> None:
    found = percentiles(times)
    row = [found.min_ms, found.p50_ms, found.p90_ms, found.p99_ms, found.max_ms]
    assert row == sorted(row, key=lambda value: value or 0)
    assert all(value in {time / 1e6 for time in times} for value in row)


def test_messages_are_selected_by_the_time_they_were_sent() -> None:
    result = RequestResponseResult(
        token=1, error=None, messages=[Message(10, 5 * MS), Message(20, None), Message(30, 7 * MS)]
    )
    assert result.unanswered == 1
    assert result.latency.n == 2
    assert result.between(10, 30).max_ms == 5
    assert result.between(11, 31).max_ms == 7


def test_bulk_rates() -> None:
    second = 1_000_000_000
    result = BulkResult(
        token=None,
        error=None,
        started_at=0,
        arrivals=[(second // 2, 1_000_000), (second, 2_500_000)],
    )
    assert result.mbit == pytest.approx(20)
    assert result.mbit_between(0, second // 2) == pytest.approx(16)
    assert result.mbit_between(second // 2, second) == pytest.approx(24)
    assert result.longest_gap_ms == 500
    empty = BulkResult(token=None, error="refused", started_at=0, arrivals=[])
    assert (empty.mbit, empty.bytes, empty.longest_gap_ms) == (0, 0, 0)
