# SPDX-License-Identifier: BSD-3-Clause
"""What the records of transfers say: who harms, who gains, and how soon a path was demoted.

In each cell the in-kernel path manager, with every path, is compared with the best path alone:

harmful   it is slower: below 0.95 of the best path alone
useful    it is faster: above 1.05
neutral   neither, or (from three repetitions on) the 95 % interval holds 1

"Recovery" of an arm is the part that it gets back of what the in-kernel path manager loses in a
harmful cell, "gain lost" the part that it gives away of what that gains in a useful one.
"""

from collections.abc import Iterable
from statistics import mean
from typing import Literal

from msgspec import Struct

from bench.decisions.estimates import SURE, Estimate, paired
from bench.decisions.records import Run, switches

Kind = Literal["harmful", "useful", "neutral"]
HARMFUL, USEFUL = 0.95, 1.05
LASTING_MS = 3000
"""A demotion that is undone sooner was a trial, and is not counted as wrong; nor is one that was
made so shortly before the end."""

Rates = dict[int, float]
"""Mbit/s by repetition, the sum of the transfers."""


class Outcome(Struct, frozen=True):
    """One arm in one cell."""

    arm: str
    ratio: Estimate
    """Goodput over that of the best path alone."""
    recovery: float | None = None
    gain_lost: float | None = None
    right_ms: list[float] = []
    """Of each run that made one: the start of the traffic to the first right demotion."""
    right: int = 0
    wrong: int = 0
    """Demotions."""
    runs: int = 0


class Compared(Struct, frozen=True):
    """One cell."""

    cell: str
    kind: Kind
    best_path: int
    best: float
    """Mean goodput of the best path alone, Mbit/s."""
    kernel: Estimate
    """The in-kernel path manager's goodput over it."""
    kernel_mbit: float
    outcomes: list[Outcome]


def compared(runs: Iterable[Run]) -> list[Compared]:
    """Every cell that has a run of both baselines, in the order of its first run."""
    cells: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        if run.error is None and run.part in ("goodput", "variants"):
            cells.setdefault(run.cell, {}).setdefault(run.arm, []).append(run)
    return [
        _compare(cell, arms) for cell, arms in cells.items() if "alone" in arms and "kernel" in arms
    ]


def _compare(cell: str, arms: dict[str, list[Run]]) -> Compared:
    by_path: dict[int, Rates] = {}
    for run in arms["alone"]:
        for each in run.alone:
            by_path.setdefault(each.path, {})[run.repetition] = _total(each.flows)
    best_path = max(by_path, key=lambda path: mean(by_path[path].values()))
    best = by_path[best_path]
    kernel = {run.repetition: _total(run.flows) for run in arms["kernel"]}
    ratio = paired(kernel, best)
    kind = kind_of(ratio)
    base, stock = mean(best.values()), mean(kernel.values())
    outcomes = []
    for arm, runs in arms.items():
        if arm in ("alone", "kernel"):
            continue
        rates = {run.repetition: _total(run.flows) for run in runs}
        reached = mean(rates.values())
        judged = [_judge(run, kind, best_path) for run in runs]
        outcomes.append(
            Outcome(
                arm,
                paired(rates, best),
                recovery=(reached - stock) / (base - stock) if kind == "harmful" else None,
                gain_lost=(stock - reached) / (stock - base) if kind == "useful" else None,
                right_ms=[first for first, _, _ in judged if first is not None],
                right=sum(right for _, right, _ in judged),
                wrong=sum(wrong for _, _, wrong in judged),
                runs=len(runs),
            )
        )
    return Compared(cell, kind, best_path, base, ratio, stock, outcomes)


def kind_of(ratio: Estimate) -> Kind:
    """The kind of a cell, from the in-kernel path manager's ratio."""
    certain = ratio.n >= SURE
    if ratio.mean < HARMFUL and not (certain and ratio.high >= 1):
        return "harmful"
    if ratio.mean > USEFUL and not (certain and ratio.low <= 1):
        return "useful"
    return "neutral"


def _total(flows: Iterable[object]) -> float:
    return sum(getattr(flow, "mbit", None) or 0.0 for flow in flows)


def _judge(run: Run, kind: Kind, best_path: int) -> tuple[float | None, int, int]:
    """The time of the first right demotion, and the number of right and of wrong ones.

    Right is to leave another path than the best one where the paths together are harmful.  Wrong
    is to leave the best path, or one that helps, for longer than a trial.
    """
    made = switches(run.acts)
    first, right, wrong = None, 0, 0
    for number, each in enumerate(made):
        if not each.leaves:
            continue
        later = (after.at_ms for after in made[number + 1 :] if after.path == each.path)
        back = next(later, run.length_s * 1000)
        if kind == "harmful" and each.path != best_path:
            first = each.at_ms if first is None else first
            right += 1
        elif kind == "useful" or each.path == best_path:
            wrong += back - each.at_ms >= LASTING_MS
    return first, right, wrong
