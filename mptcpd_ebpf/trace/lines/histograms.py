# SPDX-License-Identifier: BSD-3-Clause
"""Histograms by powers of two as text: slot i holds values from 2^i to 2^(i+1)."""

from collections.abc import Callable

_BAR = 40


def quantile(histogram: list[int], share: float) -> int:
    """Below which `share` of the values lie: the upper end of their slot; 0 without values."""
    wanted = share * sum(histogram)
    seen = 0
    for slot, count in enumerate(histogram):
        seen += count
        if count and seen >= wanted:
            return int(2 ** (slot + 1))
    return 0


def bars(histogram: list[int], shown: Callable[[int, int], str]) -> list[str]:
    """A bar for each slot, from the first filled one to the last.

    `shown` writes the bounds of a slot, padded to one width.
    """
    filled = [slot for slot, count in enumerate(histogram) if count]
    if not filled:
        return []
    most = max(histogram)
    return [
        f"{shown(2**slot, 2 ** (slot + 1))} {histogram[slot]:7}  "
        + "█" * round(_BAR * histogram[slot] / most)
        for slot in range(filled[0], filled[-1] + 1)
    ]
