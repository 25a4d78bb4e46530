# SPDX-License-Identifier: BSD-3-Clause
"""Means with 95 % intervals (Student's t), and ratios of paired repetitions."""

import math
from collections.abc import Sequence
from statistics import mean, stdev

from msgspec import Struct

_T95 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179]
_T95 += [2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064]
_T95 += [2.060, 2.056, 2.052, 2.048, 2.045, 2.042]
"""The 97.5 % quantile of Student's t with 1, 2, … degrees of freedom."""
_Z95 = 1.960


SURE = 3
"""Values from which an interval is worth showing: that of two is 13 times their distance."""


class Estimate(Struct, frozen=True):
    """A mean and its 95 % interval; the interval is infinite for one value."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if self.n == 0:
            return "–"
        if self.n < SURE:
            return f"{self.mean:.2f}"
        return f"{self.mean:.2f} ({max(0.0, self.low):.2f}…{self.high:.2f})"


def estimate(values: Sequence[float]) -> Estimate:
    """The mean with Student's t interval; NaN of nothing."""
    if not values:
        return Estimate(math.nan, math.nan, math.nan, 0)
    middle = mean(values)
    if len(values) == 1:
        return Estimate(middle, -math.inf, math.inf, 1)
    freedom = len(values) - 1
    quantile = _T95[freedom - 1] if freedom <= len(_T95) else _Z95
    half = quantile * stdev(values) / math.sqrt(len(values))
    return Estimate(middle, middle - half, middle + half, len(values))


def paired(values: dict[int, float], bases: dict[int, float]) -> Estimate:
    """The mean ratio over the repetitions that both have: these share a seed."""
    both = [n for n in sorted(values) if n in bases and bases[n] > 0]
    return estimate([values[n] / bases[n] for n in both])
