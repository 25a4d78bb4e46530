# SPDX-License-Identifier: BSD-3-Clause
"""A time limit for plugin handlers, so that one that never returns does not stop the loop.

SIGALRM interrupts the handler between two bytecodes of Python, and repeatedly if the handler
catches the exception and continues.  A handler that blocks inside one C call is interrupted when
that call returns, or at once if it is a system call that signals interrupt.  Nothing in this
process can end a handler that catches every exception in an endless loop, or a C call that never
returns.

The limit is processor time, because a handler that waits for the processor on a loaded machine is
not at fault.  A longer limit of wall-clock time ends handlers that sleep or block.
"""

import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType

from mptcpd_ebpf.core.commands import AnyCommand

SECONDS = 0.25
"""Processor time of one handler, and for each connection…"""
CONNECTION_SECONDS = 0.0005
"""…so much more, since a path that returns concerns all of them."""
WAITING_SECONDS = 1.0
"""Wall-clock time of one handler, and for each connection twice the processor time more."""
AGAIN_SECONDS = 0.01
"""Pause before a handler that continued is interrupted again."""


class HandlerTooSlow(BaseException):
    """A plugin handler used too much of the processor, or did not return in time.

    Not an Exception (as KeyboardInterrupt), so that the plugin's own ``except Exception`` does not
    catch it.
    """


class HandlerBudget:
    """Runs handlers with the limit.  A context manager for the main thread."""

    def __init__(self) -> None:
        self.connections: Callable[[], int] = lambda: 0
        """Returns how many connections there are."""

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

    def __call__(self, _call: int, handler: Callable[[], list[AnyCommand]]) -> list[AnyCommand]:
        """Runs a handler.  Raises HandlerTooSlow if it takes too long, or what it raises."""
        more = self.connections() * CONNECTION_SECONDS
        self._limit, self._waiting_limit = SECONDS + more, WAITING_SECONDS + 2 * more
        self._called, self._ran = time.monotonic(), time.thread_time()
        signal.setitimer(signal.ITIMER_REAL, SECONDS, AGAIN_SECONDS)
        try:
            return _limited(handler)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _on_alarm(self, _number: int, frame: FrameType | None) -> None:
        # A late alarm must not interrupt the daemon's own code.
        while frame is not None:
            if frame.f_code is _limited.__code__:
                self._check()
                return
            frame = frame.f_back

    def _check(self) -> None:
        if time.thread_time() - self._ran >= self._limit:
            raise HandlerTooSlow(f"it ran longer than {self._limit * 1000:.0f} ms")
        if time.monotonic() - self._called >= self._waiting_limit:
            raise HandlerTooSlow(f"it did not return for {self._waiting_limit * 1000:.0f} ms")


def _limited(handler: Callable[[], list[AnyCommand]]) -> list[AnyCommand]:
    """The frame below which an alarm may interrupt."""
    return handler()
