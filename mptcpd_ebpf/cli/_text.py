# SPDX-License-Identifier: BSD-3-Clause
"""Numbers and tables as plain text.  What is not known is a dash, never 0."""

from collections.abc import Sequence

UNKNOWN = "–"

_SIZES = ("B", "kB", "MB", "GB", "TB", "PB")


def number(value: int | None) -> str:
    return UNKNOWN if value is None else str(value)


def milliseconds(us: int | None) -> str:
    """Microseconds as milliseconds, with the digits that matter."""
    if us is None:
        return UNKNOWN
    ms = us / 1000
    return f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" if ms < 1000 else f"{ms:.0f}"


def size(count: int | None) -> str:
    """Bytes in decimal units."""
    if count is None:
        return UNKNOWN
    value = float(count)
    for unit in _SIZES:
        if value < 999.5 or unit == _SIZES[-1]:
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.1f} {unit}"


def duration(seconds: float) -> str:
    """A duration in the unit that people would use."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Lines with the columns of `rows` aligned: the first `left` of them left, the rest right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
