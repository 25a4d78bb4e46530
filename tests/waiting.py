# SPDX-License-Identifier: BSD-3-Clause
"""Waiting for conditions with a deadline that grows on slow machines."""

import asyncio
import os
import time
from collections.abc import Callable
from typing import TypeVar

from mptcpd_ebpf.lab.waiting import wait_until

SLOWNESS = float(os.environ.get("MPTCP_TESTS_SLOWNESS", "1"))
"""How many times longer things may take than on a machine that is not emulated."""

INTERVAL_MS = 10 * max(1, SLOWNESS / 2)
"""Between requests that only have to exist; at this interval they do not keep a machine busy."""

T = TypeVar("T")


def until(
    condition: Callable[[], T | None], what: str | Callable[[], str], within_s: float = 10.0
) -> T:
    """Waits until `condition` returns something true, and returns that.

    Fails the test with `what`, or with what it returns then, after `within_s` times SLOWNESS
    seconds.
    """
    within_s *= SLOWNESS
    answer = wait_until(condition, within_s, pause_s=0.01 * SLOWNESS)
    if not answer:
        text = what if isinstance(what, str) else what()
        raise AssertionError(f"not within {within_s:g} s: {text}")
    return answer


async def until_async(condition: Callable[[], object], what: str, within_s: float = 10.0) -> None:
    """`until` for a test inside an event loop, which keeps running."""
    deadline = time.monotonic() + within_s * SLOWNESS
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s * SLOWNESS:g} s: {what}"
        await asyncio.sleep(0.001)


def runs(pid: int) -> bool:
    """Whether there is such a process and it is not a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
