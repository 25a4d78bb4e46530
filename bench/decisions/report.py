# SPDX-License-Identifier: BSD-3-Clause
"""The report: targets with met or missed, and a table for each part, wins and losses alike."""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean, median

from bench._figures import Figure, table
from bench._machine import machine
from bench.decisions.arms import ARMS
from bench.decisions.cells import PARTS, Cell
from bench.decisions.goodput import Compared, Outcome, compared
from bench.decisions.latency import SETTLED_MS, Calm, Faulted, calm, faulted
from bench.decisions.records import Run

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "decisions.md"
BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
NEW_DOCUMENT = f"""<!-- SPDX-License-Identifier: BSD-3-Clause -->
# Decisions

## Measured

{BEGIN}
{END}
"""

LEAST_RATIO = 0.95
LEAST_RECOVERY = 0.9
MOST_GAIN_LOST = 0.05
DEMOTION_MS = 500
FALSE_POSITIVES = 0.02
P99_RATIO = 1.15
ACTION_MS = 250
RETURN_MS = 5000
ENOUGH = 5
"""Repetitions below which the report warns."""


def report(runs: Sequence[Run], cells: Iterable[Cell], pictures: Sequence[str] = ()) -> str:
    """Markdown; `pictures` are the names of files beside the document."""
    by_id = {each.id: each for each in cells}
    transfers = compared(runs)
    faults = faulted(runs, by_id)
    quiet = calm(runs, by_id)
    arms = [arm for arm in ARMS if any(run.arm == arm for run in runs)]
    parts = [
        caveat(runs, by_id.values()),
        _targets(arms, transfers, faults, quiet),
        *(f"![{name}]({name})" for name in pictures),
        _goodput_tables(arms, transfers),
        _fault_table(faults),
        _calm_table(quiet),
        _errors(runs),
    ]
    return "\n\n".join(part for part in parts if part)


def with_report(document: str, text: str) -> str:
    """The document with the text between its markers, which are added to one without."""
    document = document or NEW_DOCUMENT
    if BEGIN not in document:
        document = f"{document.rstrip()}\n\n## Measured\n\n{BEGIN}\n{END}\n"
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{text.strip()}\n{END}{after}"


def caveat(runs: Sequence[Run], cells: Iterable[Cell]) -> str:
    """What was run, and what the figures must not be taken for."""
    if not runs:
        return (
            "Nothing has been measured yet: `make bench-decisions` (root, hours; "
            '`ARGS="--quick"` takes 10 minutes) measures, `ARGS="--report --write"` writes this '
            "section."
        )
    loads = sorted(run.load for run in runs)
    of_all = sum(1 for _ in cells)
    measured = {run.cell for run in runs}
    repetitions = max(run.repetition for run in runs) + 1
    commits = ", ".join(dict.fromkeys(run.commit for run in runs))
    lines = [
        f"`make bench-decisions`, commit {commits}, {min(run.at for run in runs)} to "
        f"{max(run.at for run in runs)}; {machine()}. {len(measured)} of {of_all} cells, up to "
        f"{repetitions} repetitions; all arms of a cell run one after the other with the same seed."
        "  Intervals are 95 %, Student's t over the repetitions.",
    ]
    cpus = os.cpu_count() or 1
    noisy = median(loads) > cpus / 2
    few = repetitions < ENOUGH
    part = len(measured) < of_all
    reasons = [
        *([f"fewer than {ENOUGH} repetitions"] if few else []),
        *(["only some of the cells"] if part else []),
        *([f"other load on {cpus} processors"] if noisy else []),
    ]
    load = f"Load average before a run: median {median(loads):.1f}, at most {loads[-1]:.1f}."
    if reasons:
        load = f"**Preliminary: {', '.join(reasons)}.**  {load}"
    return "\n\n".join([*lines, load])


# --- targets


def _targets(
    arms: list[str], transfers: list[Compared], faults: list[Faulted], quiet: list[Calm]
) -> str:
    parts = []
    for arm in arms:
        figures = [
            *(_goodput_figures(arm, transfers) if ARMS[arm].goodput else []),
            *_fault_figures([each for each in faults if each.arm == arm and arm != "kernel"]),
            *_calm_figures([each for each in quiet if each.arm == arm]),
        ]
        if figures:
            parts.append(f"### Targets: {arm}\n\n{table(figures)}")
    return "\n\n".join(parts)


def _goodput_figures(arm: str, transfers: list[Compared]) -> list[Figure]:
    rows = [(cell, each) for cell in transfers for each in cell.outcomes if each.arm == arm]
    if not rows:
        return []
    below = [(c, o) for c, o in rows if o.ratio.mean < LEAST_RATIO]
    worst, least = min(((o.ratio.mean, c.cell) for c, o in rows))[::-1]
    recovered = [o.recovery for _, o in rows if o.recovery is not None]
    gains = [o.gain_lost for _, o in rows if o.gain_lost is not None]
    firsts = [ms for _, o in rows for ms in o.right_ms]
    missed = sum(o.runs - len(o.right_ms) for c, o in rows if c.kind == "harmful")
    right, wrong = sum(o.right for _, o in rows), sum(o.wrong for _, o in rows)
    figures = [
        Figure(
            f"cells below {LEAST_RATIO} of the best path alone",
            f"{len(below)} of {len(rows)}, the least {least:.2f} ({worst})",
            "0",
            not below,
        )
    ]
    if recovered:
        figures.append(
            Figure(
                "mean recovery of what the in-kernel path manager loses",
                f"{100 * mean(recovered):.0f} % in {len(recovered)} harmful cells, "
                f"median {100 * median(recovered):.0f} %",
                f"≥ {100 * LEAST_RECOVERY:.0f} %",
                mean(recovered) >= LEAST_RECOVERY,
            )
        )
    if gains:
        lost = sum(gain > MOST_GAIN_LOST for gain in gains)
        figures.append(
            Figure(
                f"cells that lose more than {100 * MOST_GAIN_LOST:.0f} % of the gain",
                f"{lost} of {len(gains)} useful cells, {sum(g > 0.3 for g in gains)} more than "
                f"30 %; median {100 * median(gains):.0f} %",
                "0",
                lost == 0,
            )
        )
    if firsts or missed:
        times = firsts + [math.inf] * missed
        figures.append(
            Figure(
                "start of the traffic → first right demotion, harmful cells",
                f"median {_ms(median(times))} of {len(times)} runs, {missed} without one",
                f"≤ {DEMOTION_MS} ms",
                median(times) <= DEMOTION_MS,
            )
        )
    if right + wrong:
        share = wrong / (right + wrong)
        figures.append(
            Figure(
                "false positives: demotions that lasted, of the best path or of one that helps",
                f"{100 * share:.0f} %, {wrong} of {right + wrong}",
                f"≤ {100 * FALSE_POSITIVES:.0f} %",
                share <= FALSE_POSITIVES,
            )
        )
    return figures


def _fault_figures(faults: list[Faulted]) -> list[Figure]:
    if not faults:
        return []
    ratios = [each.ratio for each in faults if not math.isnan(each.ratio)]
    over = sum(ratio > P99_RATIO for ratio in ratios)
    actions = [ms for each in faults for ms in each.actions]
    returns = [ms for each in faults for ms in each.returns]
    figures = []
    if ratios:
        figures.append(
            Figure(
                f"cells with p99 above {P99_RATIO} times that of the remaining path alone",
                f"{over} of {len(ratios)}; median {median(ratios):.2f}, most {max(ratios):.2f}",
                "0",
                over == 0,
            )
        )
    figures.append(
        Figure(
            "fault → action",
            f"median {_ms(median(actions))} of {len(actions)} runs, "
            f"{sum(math.isinf(ms) for ms in actions)} without one",
            f"≤ {ACTION_MS} ms",
            median(actions) <= ACTION_MS,
        )
    )
    if returns:
        figures.append(
            Figure(
                "end of the fault → used again",
                f"median {_ms(median(returns))}, most {_ms(max(returns))}, n {len(returns)}",
                f"all ≤ {RETURN_MS} ms",
                max(returns) <= RETURN_MS,
            )
        )
    return figures


def _calm_figures(quiet: list[Calm]) -> list[Figure]:
    if not quiet:
        return []
    needless = sum(each.needless for each in quiet)
    minutes = sum(each.seconds for each in quiet) / 60
    return [
        Figure(
            "needless switches: in quiet, or of a path more often than one became worse",
            f"{needless} in {minutes:.0f} minutes",
            "0",
            needless == 0,
        )
    ]


# --- tables


def _goodput_tables(arms: list[str], transfers: list[Compared]) -> str:
    managed = [arm for arm in arms if any(o.arm == arm for c in transfers for o in c.outcomes)]
    parts = []
    for part in PARTS[:2]:
        rows = [each for each in transfers if each.cell.startswith(f"{part}/")]
        if rows:
            head = ["cell", "best path alone, Mbit/s", "in-kernel / best", "kind"]
            lines = [
                [
                    each.cell.partition("/")[2],
                    f"{each.best:.1f} (path {each.best_path})",
                    str(each.kernel),
                    each.kind,
                    *(_outcome(each, arm) for arm in managed),
                ]
                for each in sorted(rows, key=lambda each: each.kernel.mean)
            ]
            title = f"### {part.capitalize()}: goodput over that of the best path alone"
            note = (
                "In harmful cells with the part of the loss that is recovered, in useful ones with "
                "the part of the gain that is lost."
            )
            parts.append(f"{title}\n\n{note}\n\n{_table([*head, *managed], lines)}")
    return "\n\n".join(parts)


def _outcome(cell: Compared, arm: str) -> str:
    found = next((each for each in cell.outcomes if each.arm == arm), None)
    if found is None:
        return "–"
    bold = "**" if found.ratio.mean < LEAST_RATIO else ""
    return f"{bold}{found.ratio}{bold}{_share(found)}"


def _share(outcome: Outcome) -> str:
    if outcome.recovery is not None:
        return f"; recovers {100 * outcome.recovery:.0f} %"
    if outcome.gain_lost is not None:
        return f"; loses {100 * outcome.gain_lost:.0f} %"
    return ""


def _fault_table(faults: list[Faulted]) -> str:
    if not faults:
        return ""
    head = ["cell", "arm", "alone", "under the fault", "ratio", "worst", "never", "action", "back"]
    lines = [
        [
            each.cell.partition("/")[2],
            each.arm,
            _ms(each.alone_p99),
            _ms(each.settled_p99),
            _number(each.ratio),
            _ms(each.worst),
            str(each.unanswered),
            _ms(median(each.actions)) if each.actions else "–",
            _ms(max(each.returns)) if each.returns else "–",
        ]
        for each in faults
    ]
    return (
        "### Faults: p99 of message latency\n\n"
        f"*alone*: the remaining path without the fault; *under the fault*: messages sent from "
        f"{SETTLED_MS} ms after the fault to its end; *worst*: of all messages from the fault on; "
        "*never*: messages without an answer; *action*: median time from the fault to the first "
        "decision that moves the data; *back*: longest time from the end of the fault until the "
        f"path was used again.\n\n{_table(head, lines)}"
    )


def _calm_table(quiet: list[Calm]) -> str:
    if not quiet:
        return ""
    head = ["cell", "arm", "minutes", "paths left", "needless"]
    lines = [
        [
            each.cell.partition("/")[2],
            each.arm,
            f"{each.seconds / 60:.1f}",
            str(each.leaves),
            str(each.needless),
        ]
        for each in quiet
    ]
    return f"### Calm: needless switches\n\n{_table(head, lines)}"


def _errors(runs: Sequence[Run]) -> str:
    failed = [run for run in runs if run.error is not None]
    lines = [
        f"- {run.cell}, {run.arm}, #{run.repetition}: {(run.error or '').strip().splitlines()[-1]}"
        for run in failed
    ]
    return "### Runs without an outcome\n\n" + "\n".join(lines) if lines else ""


def _table(head: list[str], lines: list[list[str]]) -> str:
    def row(cells: list[str]) -> str:
        return f"| {' | '.join(cells)} |"

    return "\n".join([row(head), row(["---"] * len(head)), *map(row, lines)])


def _ms(value: float) -> str:
    return _or_words(value, lambda ms: f"{ms:.0f} ms")


def _number(value: float) -> str:
    return _or_words(value, lambda number: f"{number:.2f}")


def _or_words(value: float, text: Callable[[float], str]) -> str:
    if math.isnan(value):
        return "–"
    return "never" if math.isinf(value) else text(value)
