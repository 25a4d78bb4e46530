# SPDX-License-Identifier: BSD-3-Clause
"""The report's pictures, as SVG: every cell, wins and losses alike."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from bench.decisions.cells import Cell
from bench.decisions.estimates import SURE
from bench.decisions.goodput import Compared, compared
from bench.decisions.latency import Faulted, faulted
from bench.decisions.records import Run
from bench.decisions.report import LEAST_RATIO, P99_RATIO

matplotlib.use("agg")
from matplotlib import pyplot as plt

_KERNEL = "#999999"
_ROW_INCHES = 0.16


def draw(runs: Sequence[Run], cells: Sequence[Cell], folder: Path) -> list[str]:
    """Writes the pictures for which there are runs, and returns their names."""
    # The same figures give the same file.
    matplotlib.rcParams["svg.hashsalt"] = "decisions"
    names = []
    transfers = compared(runs)
    for direction in ("up", "down"):
        rows = [each for each in transfers if f"/{direction}/" in each.cell]
        if rows:
            names.append(f"decisions-goodput-{direction}.svg")
            _goodput(rows, direction, folder / names[-1])
    faults = faulted(runs, {cell.id: cell for cell in cells})
    if faults:
        names.append("decisions-faults.svg")
        _faults(faults, folder / names[-1])
    return names


def _goodput(rows: list[Compared], direction: str, file: Path) -> None:
    """A line for each cell, sorted by what the in-kernel path manager reaches."""
    rows = sorted(rows, key=lambda each: each.kernel.mean)
    figure, axes = _axes(len(rows))
    places = range(len(rows))
    axes.plot([row.kernel.mean for row in rows], places, "s", color=_KERNEL, label="in-kernel")
    for arm in dict.fromkeys(each.arm for row in rows for each in row.outcomes):
        found = [
            (each.ratio, place)
            for place, row in enumerate(rows)
            for each in row.outcomes
            if each.arm == arm
        ]
        means = [ratio.mean for ratio, _ in found]
        bars = [r.high - r.mean if r.n >= SURE else 0.0 for r, _ in found]
        axes.errorbar(means, [place for _, place in found], xerr=bars, fmt="o", ms=4, label=arm)
    axes.axvline(1.0, color="black", lw=0.8)
    axes.axvline(LEAST_RATIO, color="black", lw=0.8, ls=":")
    axes.set_yticks(places, [row.cell.rpartition("/")[2] for row in rows], fontsize=7)
    axes.set_xlabel(f"goodput over that of the best path alone, {direction}")
    _save(figure, axes, file)


def _faults(faults: list[Faulted], file: Path) -> None:
    """A line for each cell: p99 under the fault over that of the remaining path alone."""
    cells = list(dict.fromkeys(each.cell for each in faults))
    figure, axes = _axes(len(cells))
    finite = [each.ratio for each in faults if math.isfinite(each.ratio)]
    edge = 2 * max([*finite, 10.0])
    for arm in dict.fromkeys(each.arm for each in faults):
        of_arm = [each for each in faults if each.arm == arm and not math.isnan(each.ratio)]
        # What was never answered is drawn at the edge.
        ratios = [min(each.ratio, edge) for each in of_arm]
        colour = {"color": _KERNEL} if arm == "kernel" else {}
        places = [cells.index(each.cell) for each in of_arm]
        axes.plot(ratios, places, "s" if colour else "o", ms=4, label=arm, **colour)
    axes.set_xscale("log")
    axes.axvline(1.0, color="black", lw=0.8)
    axes.axvline(P99_RATIO, color="black", lw=0.8, ls=":")
    axes.set_yticks(range(len(cells)), [each.partition("/")[2] for each in cells], fontsize=7)
    axes.set_xlabel("p99 under the fault over that of the remaining path alone (edge: unanswered)")
    _save(figure, axes, file)


def _axes(rows: int) -> tuple[Any, Any]:
    figure, axes = plt.subplots(figsize=(9, 1.2 + _ROW_INCHES * rows), layout="constrained")
    return figure, axes


def _save(figure: Any, axes: Any, file: Path) -> None:
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize=8)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)
