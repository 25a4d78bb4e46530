# SPDX-License-Identifier: BSD-3-Clause
"""Waiting for conditions with a deadline, and telling the running from the dead."""

import os
import time
from collections.abc import Callable

SLOWNESS = float(os.environ.get("MPTCP_TESTS_SLOWNESS", "1"))
"""How much longer all may take than on a machine that runs its instructions itself."""

INTERVAL_MS = 10 * max(1, SLOWNESS / 2)
"""Between the requests of traffic that has only to be there, and not to keep a machine busy."""


def until(condition: Callable[[], bool], what: str, within_s: float = 10.0) -> None:
    """Asks again until it is so; fails the test, saying `what`, after `within_s` times SLOWNESS."""
    within_s *= SLOWNESS
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.01 * SLOWNESS)


def runs(pid: int) -> bool:
    """Whether there is such a process and it is no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
