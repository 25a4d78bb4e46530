# SPDX-License-Identifier: BSD-3-Clause
"""A guest's report becomes a row; only a complete run without failures has passed."""

import json
from typing import Any

from tests.kernels.table import Outcome, read, render

START = {"release": "6.1.0-50-cloud-amd64", "backend": "netem", "probes": "CO-RE, tp_btf, 6 of 6"}
PASSED = {"test": "a::passes", "outcome": "passed", "why": ""}
SKIPPED = {"test": "a::skips", "outcome": "skipped", "why": "no cgroup v2"}
FAILED = {"test": "a::fails", "outcome": "failed", "why": "assert 1 == 2"}


def outcome(*said: dict[str, Any], trouble: str = "") -> Outcome:
    report = "".join(json.dumps(each) + "\n" for each in said)
    return read("6.1", "6.1.0-50-cloud-amd64", report, trouble)


def test_a_good_run() -> None:
    row = outcome(START, {"collected": 3}, PASSED, SKIPPED, SKIPPED, {"exit": 0})
    assert row.good
    assert render([row]).splitlines() == [
        "kernel                backend  probe attach           passed  skipped  failed  minutes",
        "6.1.0-50-cloud-amd64  netem    CO-RE, tp_btf, 6 of 6  1       2        0       0",
        "6.1.0-50-cloud-amd64: 2 skipped: no cgroup v2",
        "kernels: 1 passed, 0 failed, 2 skipped",
    ]


def test_a_failed_test_is_named() -> None:
    row = outcome(START, PASSED, FAILED, {"exit": 1})
    assert not row.good
    assert row.failed == {"a::fails": "assert 1 == 2"}
    assert "6.1.0-50-cloud-amd64: FAILED a::fails" in render([row])


def test_a_guest_that_crashes_has_not_passed() -> None:
    row = outcome(START, {"collected": 2}, PASSED)
    assert not row.good
    assert "the guest ended before the tests did (1 of 2 tests done)" in render([row])


def test_a_guest_that_hangs_has_not_passed() -> None:
    row = outcome(START, {"collected": 2}, PASSED, trouble="not finished after 9 s, stopped")
    assert not row.good
    assert "not finished after 9 s" in render([row])


def test_a_test_that_ends_the_machine_once_runs_again() -> None:
    row = outcome(
        START, {"collected": 2}, PASSED, {"started": "a::panics"},
        START, {"collected": 1}, {"started": "a::panics"},
        {"test": "a::panics", "outcome": "passed", "why": ""}, {"exit": 0},
    )  # fmt: skip
    assert row.good
    assert row.passed == row.collected == 2
    assert "6.1.0-50-cloud-amd64: booted again after a::panics" in render([row])


def test_a_test_that_ends_the_machine_twice_has_failed() -> None:
    boot = START, {"collected": 2}, PASSED, {"started": "a::panics"}
    once = outcome(*boot)
    assert once.cut_short
    assert once.over == ["a::passes"]
    twice = outcome(*boot, START, {"collected": 1}, {"started": "a::panics"})
    assert twice.over == ["a::passes", "a::panics"]
    assert twice.failed == {"a::panics": "the machine ended in it 2 times"}
    row = outcome(*boot, *boot[:2], {"started": "a::panics"}, START, {"collected": 0}, {"exit": 5})
    assert not row.cut_short
    assert not row.good


def test_a_torn_line_is_left_out() -> None:
    report = json.dumps(PASSED) + "\n" + json.dumps(FAILED)[:20]
    assert read("6.1", "", report, "").passed == 1


def test_pytest_that_ran_nothing_or_broke_has_not_passed() -> None:
    assert not outcome(START, {"collected": 0}, {"exit": 5}).good
    assert not outcome(START, SKIPPED, {"exit": 0}).good
    assert not outcome(START, PASSED, {"exit": 3}).good, "an error inside pytest"


def test_a_kernel_that_cannot_be_had_is_said_plainly() -> None:
    row = Outcome(wanted="6.18", missing="no network")
    assert not row.good
    assert "kernel 6.18 could not be had: no network" in render([row])
