# SPDX-License-Identifier: BSD-3-Clause
"""A time limit for plugin handlers, so that one that never returns does not stop the loop.

SIGALRM interrupts the handler between two bytecodes of Python.  A handler that blocks
inside one C call is interrupted when that call returns, or at once if it is a system
call that signals interrupt.
"""

import signal
from collections.abc import Callable
from types import FrameType, TracebackType

from mptcpd_ebpf.core.commands import Command

SECONDS = 0.25


class HandlerTooSlow(Exception):  # noqa: N818 - the plugin's fault, told in a sentence
    """A plugin handler ran longer than `SECONDS`."""


class HandlerBudget:
    """Runs handlers under the limit.  Use it as a context, in the main thread."""

    def __init__(self) -> None:
        self._running = False

    def __enter__(self) -> "HandlerBudget":
        self._previous = signal.signal(signal.SIGALRM, self._on_alarm)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGALRM, self._previous)

    def __call__(self, handler: Callable[[], list[Command]]) -> list[Command]:
        self._running = True
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            return handler()
        finally:
            self._running = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        if self._running:
            self._running = False
            raise HandlerTooSlow(f"it ran longer than {SECONDS * 1000:.0f} ms")
