# SPDX-License-Identifier: BSD-3-Clause
"""What came out on each kernel, read from what report.py wrote, and as a table for people.

A machine that ended without pytest's last word has not passed, however many of its
tests did; and a run without a single passed test is no success either.
"""

import json
from collections import Counter
from typing import Any

from msgspec import Struct, field

_COLUMNS = ("kernel", "backend", "probe attach", "passed", "skipped", "failed")


class Outcome(Struct, kw_only=True):
    """One kernel's row."""

    wanted: str
    release: str = ""
    backend: str = "?"
    probes: str = "?"
    collected: int = 0
    passed: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    """Number of tests by reason."""
    failed: dict[str, str] = field(default_factory=dict)
    """What pytest said, by test."""
    trouble: str = ""
    """Why the run is incomplete; empty for one that is complete."""
    missing: str = ""
    """Why the kernel could not be had; empty for one that ran."""

    @property
    def good(self) -> bool:
        return bool(self.passed) and not self.failed and not self.trouble


def read(wanted: str, release: str, report: str, trouble: str) -> Outcome:
    """The outcome by the report's lines; a torn last line is left out."""
    outcome = Outcome(wanted=wanted, release=release, trouble=trouble)
    skipped: Counter[str] = Counter()
    code: int | None = None
    for line in report.splitlines():
        try:
            said: dict[str, Any] = json.loads(line)
        except ValueError:
            continue
        if "release" in said:
            outcome.release, outcome.backend = said["release"], said["backend"]
            outcome.probes = said["probes"]
        elif "collected" in said:
            outcome.collected = said["collected"]
        elif "exit" in said:
            code = said["exit"]
        elif said["outcome"] == "passed":
            outcome.passed += 1
        elif said["outcome"] == "skipped":
            skipped[said["why"]] += 1
        else:
            outcome.failed[said["test"]] = said["why"]
    outcome.skipped = dict(sorted(skipped.items()))
    if not outcome.trouble and code is None:
        outcome.trouble = "the guest ended before the tests did"
    elif not outcome.trouble and code not in (0, 1):
        outcome.trouble = f"pytest ended with exit code {code}"
    return outcome


def render(outcomes: list[Outcome]) -> str:
    """The table, below it what did not go well, at the end the sums."""
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
        if outcome.trouble:
            done = outcome.passed + len(outcome.failed) + sum(outcome.skipped.values())
            lines.append(f"{name}: {outcome.trouble} ({done} of {outcome.collected} tests done)")
        if outcome.missing:
            lines.append(f"kernel {name} could not be had: {outcome.missing}")
    passed = sum(outcome.passed for outcome in outcomes)
    skips = sum(sum(outcome.skipped.values()) for outcome in outcomes)
    failed = sum(len(outcome.failed) for outcome in outcomes)
    return "\n".join([*lines, f"kernels: {passed} passed, {failed} failed, {skips} skipped"])


def _row(outcome: Outcome) -> tuple[str, ...]:
    if outcome.missing:
        return (outcome.wanted, "not to be had", "-", "-", "-", "-")
    return (
        outcome.release,
        outcome.backend.partition(":")[0],
        outcome.probes.partition(";")[0],
        str(outcome.passed),
        str(sum(outcome.skipped.values())),
        str(len(outcome.failed)) + (" (incomplete)" if outcome.trouble else ""),
    )
