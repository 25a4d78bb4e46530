# SPDX-License-Identifier: BSD-3-Clause
"""Numbers and kernel codes as text."""

import errno
import os

from mptcpd_ebpf.trace.signals import RESET_REASONS

_SIZES = ("B", "kB", "MB", "GB", "TB")


def duration(ns: int) -> str:
    """``256 ns``, ``840 µs``, ``12.3 ms``, ``4.56 s``."""
    if 0 < ns < 1000:
        return f"{ns} ns"
    if ns < 1_000_000:
        return f"{ns / 1000:.0f} µs"
    if ns < 1_000_000_000:
        return f"{ns / 1e6:.1f} ms"
    return f"{ns / 1e9:.2f} s"


def size(count: int) -> str:
    """Bytes in decimal units."""
    value = float(count)
    for unit in _SIZES:
        if value < 999.5 or unit == _SIZES[-1]:
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.1f} {unit}"


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "–"


def error(code: int) -> str:
    """``ETIMEDOUT (Connection timed out)``."""
    if code not in errno.errorcode:
        return f"errno {code}"
    return f"{errno.errorcode[code]} ({os.strerror(code)})"


def reset(reason: int, transient: bool) -> str:
    """The reason and the T flag of an MP_TCPRST as text."""
    words = RESET_REASONS.get(reason, "unknown")
    return f"reason {reason}, {words}" + (", transient" if transient else "")
