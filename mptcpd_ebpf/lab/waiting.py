# SPDX-License-Identifier: BSD-3-Clause
"""Waiting for a condition, with a deadline."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], within_s: float, *, pause_s: float = 0.01) -> T:
    """Calls `condition` until it returns something true, and returns that.

    After `within_s` seconds it returns what the last call returned; the caller decides whether
    that is an error.  There are `pause_s` seconds between two calls; 0: the calls follow at once.
    """
    deadline = time.monotonic() + within_s
    while not (answer := condition()) and time.monotonic() < deadline:
        if pause_s:
            time.sleep(pause_s)
    return answer
