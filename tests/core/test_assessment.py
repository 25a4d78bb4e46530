# SPDX-License-Identifier: BSD-3-Clause
"""What a path is worth, from counters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcpd_ebpf.core.assessment import COMPARED, KEPT, Readings, compare
from mptcpd_ebpf.core.measurement import Measurement
from mptcpd_ebpf.core.model import MS, SECOND, Connection, Subflow
from tests.core.scenario import FIBRE, RADIO, START, TOKEN

MBYTE = 1_000_000


class Transfer:
    """A connection over two paths whose counters grow at given rates."""

    def __init__(self) -> None:
        self.now = START
        self.connection = Connection(TOKEN, *FIBRE)
        self.fibre, self.radio = (Subflow(TOKEN, *key) for key in (FIBRE, RADIO))
        for subflow in (self.fibre, self.radio):
            self.connection.subflows[subflow.key] = subflow
        self.readings = Readings()
        self.carried = {FIBRE: 0, RADIO: 0}
        self.stalled_us = self.holes_us = 0
        self.go(0)

    def go(
        self, elapsed: int, fibre: float = 0, radio: float = 0, stalled: float = 0, holes: float = 0
    ) -> None:
        """Rates in bytes per second; `stalled` and `holes`: parts of the time, of the radio."""
        self.now += elapsed
        self.carried[FIBRE] += int(fibre * elapsed / SECOND)
        self.carried[RADIO] += int(radio * elapsed / SECOND)
        self.stalled_us += int(stalled * elapsed / 1000)
        self.holes_us += int(holes * elapsed / 1000)
        self.connection.bytes_acked = sum(self.carried.values())
        for subflow in (self.fibre, self.radio):
            on_radio = subflow is self.radio
            subflow.measured = Measurement(
                at=self.now,
                token=TOKEN,
                local=subflow.local,
                remote=subflow.remote,
                bytes_acked=self.carried[subflow.key],
                stalled_us=self.stalled_us if on_radio else 0,
                holes_us=self.holes_us if on_radio else 0,
            )

    def note(self) -> None:
        self.readings.note(self.connection, self.now)


@pytest.mark.parametrize("direction", ["stalled", "holes"])
def test_share_and_blocked_time_are_those_of_the_window(direction: str) -> None:
    transfer = Transfer()
    transfer.go(10 * SECOND, fibre=9 * MBYTE)
    transfer.note()
    transfer.go(SECOND, fibre=3 * MBYTE, radio=MBYTE, **{direction: 0.5})
    worth = transfer.readings.worth(transfer.connection, transfer.radio, transfer.now)
    assert worth is not None
    assert worth.goodput == pytest.approx(4 * MBYTE)
    assert worth.share == pytest.approx(0.25)
    assert worth.blocked == pytest.approx(0.5)
    assert not worth.helps
    assert not worth.harms


@pytest.mark.parametrize(
    ("radio", "blocked", "helps", "harms"),
    [
        (0.02, 0.6, False, True),  # the anchors: almost nothing carried, most of the time blocked
        (0.25, 0.1, True, False),
        (0.35, 0.4, True, False),
        (0.5, 0.9, True, False),
        (0.3, 0.6, False, False),
    ],
)
def test_a_path_is_judged_by_what_it_carries_against_what_it_costs(
    radio: float, blocked: float, *, helps: bool, harms: bool
) -> None:
    transfer = Transfer()
    transfer.note()
    transfer.go(SECOND, (1 - radio) * MBYTE, radio * MBYTE, stalled=blocked)
    worth = transfer.readings.worth(transfer.connection, transfer.radio, transfer.now)
    assert worth is not None
    assert (worth.helps, worth.harms) == (helps, harms)


def test_without_an_old_reading_or_counters_nothing_is_known() -> None:
    transfer = Transfer()
    assert transfer.readings.worth(transfer.connection, transfer.radio, transfer.now) is None
    transfer.note()
    transfer.go(100 * MS, radio=MBYTE)
    assert transfer.readings.worth(transfer.connection, transfer.radio, transfer.now) is None
    transfer.connection.bytes_acked = None
    transfer.go(0)
    transfer.connection.bytes_acked = None
    assert transfer.readings.worth(transfer.connection, transfer.radio, transfer.now) is None


@given(
    st.lists(
        st.tuples(
            st.integers(1, 3 * SECOND), st.floats(0, 1e9), st.floats(0, 1e9), st.floats(0, 1)
        ),
        min_size=1,
        max_size=40,
    )
)
def test_whatever_happens_the_numbers_stay_in_their_bounds(
    steps: list[tuple[int, float, float, float]],
) -> None:
    transfer = Transfer()
    for elapsed, fibre, radio, stalled in steps:
        transfer.note()
        transfer.go(elapsed, fibre, radio, stalled)
        worth = transfer.readings.worth(transfer.connection, transfer.radio, transfer.now)
        if worth is not None:
            assert 0 <= worth.share <= 1
            assert 0 <= worth.blocked <= 1
            assert worth.goodput >= 0
        assert len(transfer.readings.kept) <= KEPT


def test_a_comparison_waits_until_the_demoted_path_has_drained() -> None:
    transfer = Transfer()
    comparison = compare(4.0 * MBYTE, transfer.now, 100 * MS)
    transfer.go(comparison.begins - transfer.now, radio=MBYTE, holes=0.9)
    transfer.note()
    transfer.go(COMPARED, fibre=MBYTE, radio=MBYTE, holes=0.9)
    transfer.note()
    args = (transfer.readings, transfer.connection, transfer.radio)
    assert comparison.verdict(*args, transfer.now) is None
    assert comparison.ends == transfer.now + COMPARED
    transfer.go(COMPARED, fibre=5 * MBYTE)
    transfer.note()
    assert comparison.verdict(*args, transfer.now) == pytest.approx(5 * MBYTE)
