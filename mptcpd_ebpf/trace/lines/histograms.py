# SPDX-License-Identifier: BSD-3-Clause
"""Histograms by powers of two as text: slot i holds values from 2^i to 2^(i+1)."""

from collections.abc import Callable

_BAR = 40


def quantile(histogram: list[int], share: float) -> int:
    """The upper end of the slot below which `share` (0 to 1) of the values are; 0 without any."""
    wanted = share * sum(histogram)
    seen = 0
    for slot, count in enumerate(histogram):
        seen += count
        if count and seen >= wanted:
            return int(2 ** (slot + 1))
    return 0


def bars(histogram: list[int], shown: Callable[[int, int], str]) -> list[str]:
    """A bar for each slot, from the first filled one to the last.

    `shown` formats the bounds of a slot with a fixed width.
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
