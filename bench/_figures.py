# SPDX-License-Identifier: BSD-3-Clause
"""Measured figures and their targets: rows of a markdown table."""

import math
import statistics
from collections.abc import Iterable, Sequence

from msgspec import Struct

HEAD = ["| figure | measured | target | |", "|---|---|---|---|"]


class Figure(Struct, frozen=True):
    """One row."""

    what: str
    measured: str
    target: str = ""
    met: bool | None = None
    """None without a target."""

    def __str__(self) -> str:
        verdict = "" if self.met is None else "met" if self.met else "**missed**"
        return f"| {self.what} | {self.measured} | {self.target} | {verdict} |"


def table(figures: Iterable[Figure]) -> str:
    return "\n".join([*HEAD, *map(str, figures)])


def spread(values: Sequence[float], unit: str, digits: int = 0) -> str:
    """``median 12 ms (8…31, n 10)``, or a text if there are no samples."""
    if not values:
        return "never happened"
    low, middle, high = min(values), statistics.median(values), max(values)
    numbers = [f"{value:.{digits}f}" for value in (middle, low, high)]
    unit = f" {unit}" if unit else ""
    return f"median {numbers[0]}{unit} ({numbers[1]}…{numbers[2]}, n {len(values)})"


def median_at_most(
    what: str, values: Sequence[float], limit: float, unit: str, digits: int = 0
) -> Figure:
    """A figure whose median has a limit; infinite values miss it."""
    met = bool(values) and statistics.median(values) <= limit
    return Figure(what, spread(values, unit, digits), f"≤ {limit:g} {unit}", met)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a median by order statistics, without assumptions about the
    distribution. Wider with few values, at most the whole spread.
    """
    ordered = sorted(values)
    count = len(ordered)
    outside = 0.0
    rank = 0
    while rank < (count - 1) // 2:
        outside += 2 * math.comb(count, rank) / 2**count
        if outside > 0.05:
            break
        rank += 1
    rank = max(0, rank - 1)
    return ordered[rank], ordered[count - 1 - rank]


def percentile(values: Iterable[float], percent: int) -> float:
    """By the nearest-rank rule; NaN of nothing, which meets no target."""
    ordered = sorted(values)
    return ordered[max(0, -(-percent * len(ordered) // 100) - 1)] if ordered else math.nan
