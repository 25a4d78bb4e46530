# SPDX-License-Identifier: BSD-3-Clause
"""The outcome on each kernel, read from the reports of report.py, and the table.

A report may span several boots of the machine.  A test in which a boot ended runs again
on the next; one in which two boots ended has failed.  A report without pytest's exit code has not
passed, even if all its tests did; nor has a run without a passed test.
"""

import json
from collections import Counter
from typing import Any

from msgspec import Struct, field

_COLUMNS = ("kernel", "backend", "probe attach", "passed", "skipped", "failed", "minutes")

BREAKS = 2
"""A test in which this many boots ended is not run again."""


class Outcome(Struct, kw_only=True):
    """One kernel's row."""

    wanted: str
    release: str = ""
    backend: str = "?"
    probes: str = "?"
    collected: int = 0
    finished: list[str] = field(default_factory=list)
    """The tests that ran to their end."""
    passed: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    """Number of tests by reason."""
    failed: dict[str, str] = field(default_factory=dict)
    """What pytest said, by test."""
    broken: dict[str, int] = field(default_factory=dict)
    """How often the machine ended in the midst of a test, by test."""
    trouble: str = ""
    """Why the run is incomplete; empty for one that is complete."""
    cut_short: bool = False
    """Whether pytest's exit code is missing."""
    seconds: float = 0
    """What the whole took."""
    missing: str = ""
    """Why the kernel could not be had; empty for one that ran."""

    @property
    def over(self) -> list[str]:
        """The tests that need not run again."""
        return [*self.finished, *(test for test, ends in self.broken.items() if ends >= BREAKS)]

    @property
    def good(self) -> bool:
        return bool(self.passed) and not self.failed and not self.trouble


def read(wanted: str, release: str, report: str, trouble: str) -> Outcome:
    """The outcome by the report's lines; a torn last line is left out."""
    outcome = Outcome(wanted=wanted, release=release, trouble=trouble)
    skipped: Counter[str] = Counter()
    code: int | None = None
    running = ""
    for line in report.splitlines():
        try:
            said: dict[str, Any] = json.loads(line)
        except ValueError:
            continue
        if "release" in said:  # the first line of a boot
            _broke(outcome, running)
            code, running = None, ""
            outcome.release, outcome.backend = said["release"], said["backend"]
            outcome.probes = said["probes"]
        elif "collected" in said:
            outcome.collected = len(outcome.over) + said["collected"]
        elif "started" in said:
            running = said["started"]
        elif "exit" in said:
            code = said["exit"]
        else:
            running = ""
            outcome.finished.append(said["test"])
            if said["outcome"] == "passed":
                outcome.passed += 1
            elif said["outcome"] == "skipped":
                skipped[said["why"]] += 1
            else:
                outcome.failed[said["test"]] = said["why"]
    _broke(outcome, running)
    outcome.skipped = dict(sorted(skipped.items()))
    outcome.cut_short = code is None
    if not outcome.trouble and code is None:
        outcome.trouble = "the guest ended before the tests did"
    elif not outcome.trouble and code not in (0, 1):
        outcome.trouble = f"pytest ended with exit code {code}"
    return outcome


def _broke(outcome: Outcome, test: str) -> None:
    """Files that a boot ended in the midst of a test, if it did."""
    if test:
        outcome.broken[test] = outcome.broken.get(test, 0) + 1
        if outcome.broken[test] == BREAKS:
            outcome.failed[test] = f"the machine ended in it {BREAKS} times"


def render(outcomes: list[Outcome]) -> str:
    """The table, then skipped and failed tests, then the totals."""
    rows = [_COLUMNS, *(_row(outcome) for outcome in outcomes)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    for outcome in outcomes:
        name = outcome.release or outcome.wanted
        lines += [f"{name}: {number} skipped: {why}" for why, number in outcome.skipped.items()]
        lines += [f"{name}: FAILED {test}" for test in outcome.failed]
        lines += [
            f"{name}: booted again after {test}"
            for test in outcome.broken
            if test not in outcome.failed
        ]
        if outcome.trouble:
            done = len(outcome.over)
            lines.append(f"{name}: {outcome.trouble} ({done} of {outcome.collected} tests done)")
        if outcome.missing:
            lines.append(f"kernel {name} could not be had: {outcome.missing}")
    passed = sum(outcome.passed for outcome in outcomes)
    skips = sum(sum(outcome.skipped.values()) for outcome in outcomes)
    failed = sum(len(outcome.failed) for outcome in outcomes)
    return "\n".join([*lines, f"kernels: {passed} passed, {failed} failed, {skips} skipped"])


def _row(outcome: Outcome) -> tuple[str, ...]:
    if outcome.missing:
        return (outcome.wanted, "not to be had", "-", "-", "-", "-", "-")
    return (
        outcome.release,
        outcome.backend.partition(":")[0],
        outcome.probes.partition(";")[0],
        str(outcome.passed),
        str(sum(outcome.skipped.values())),
        str(len(outcome.failed)) + (" (incomplete)" if outcome.trouble else ""),
        f"{outcome.seconds / 60:.0f}",
    )
