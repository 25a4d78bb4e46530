# SPDX-License-Identifier: BSD-3-Clause
"""Impairments are checked: each invalid value is an error with its place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcpd_ebpf.lab import Burst, Impairment, LabError
from mptcpd_ebpf.lab.impairment import FIELDS, changed


def test_a_change_keeps_the_other_fields() -> None:
    base = Impairment(delay_ms=10, rate_mbit=20)
    assert changed(base, {"loss_percent": 3}, where="x") == Impairment(
        delay_ms=10, rate_mbit=20, loss_percent=3
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"delay": 1}, "x: delay: a path has no such field; it has burst, delay_ms"),
        ({"delay_ms": "1"}, r"x: delay_ms: expected `float`, got `str`"),
        ({"delay_ms": -1}, "x: delay_ms: -1 is not in 0…60000"),
        ({"jitter_ms": 2}, "jitter_ms: 2 is above delay_ms, 1"),
        (
            {"loss_percent": 100.5, "jitter_ms": 9},
            "loss_percent: 100.5 is not in 0…100; jitter_ms: 9 is above",
        ),
        ({"rate_mbit": 0}, "rate_mbit: 0 is not in 0.01…100000"),
        ({"queue_ms": 0}, "queue_ms: 0 is not in"),
        ({"burst": {"enter_percent": 1}}, "missing required field `leave_percent`"),
        (
            {"burst": {"enter_percent": 1, "leave_percent": 101}},
            "burst.leave_percent: 101 is not in",
        ),
        (
            {"burst": {"enter_percent": 1, "leave_percent": 9}, "loss_percent": 1},
            "loss_percent or burst, not both",
        ),
    ],
)
def test_invalid_values_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(LabError, match=words):
        changed(Impairment(delay_ms=1), change, where="x")


@given(
    st.dictionaries(
        st.sampled_from([*sorted(FIELDS), "dely"]),
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
    )
)
def test_any_change_is_accepted_or_refused_with_its_place(change: dict[str, object]) -> None:
    try:
        value = changed(Impairment(delay_ms=5), change, where="here")
    except LabError as error:
        refusal = str(error)
    else:
        refusal = "here: "
        assert 0 <= value.jitter_ms <= value.delay_ms <= 60_000
        assert 0 <= value.loss_percent <= 100
    assert refusal.startswith("here: ")


def test_a_burst_may_be_a_struct_or_plain_data() -> None:
    plain = {"enter_percent": 1.0, "leave_percent": 10.0}
    assert changed(Impairment(), {"burst": plain}, where="x") == changed(
        Impairment(), {"burst": Burst(enter_percent=1, leave_percent=10)}, where="x"
    )
