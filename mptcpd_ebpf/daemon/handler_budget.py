# SPDX-License-Identifier: BSD-3-Clause
"""A time limit for plugin handlers, so that one that never returns does not stop the loop.

SIGALRM interrupts the handler between two bytecodes of Python, and again and again if
it catches that and goes on.  A handler that blocks inside one C call is interrupted
when that call returns, or at once if it is a system call that signals interrupt.  What
nothing in this process can end is one that catches everything for ever, or a C call
that never returns.

What counts is the processor's time: a handler that waits its turn on a loaded machine is
not at fault.  One that only sleeps or blocks has a little longer.
"""

import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType

from mptcpd_ebpf.core.commands import AnyCommand

SECONDS = 0.25
"""Processor time of one handler."""
WAITING_SECONDS = 1.0
"""From a handler's call to its return, whatever it does."""
AGAIN_SECONDS = 0.01
"""Pause before a handler that went on is interrupted once more."""


class HandlerTooSlow(BaseException):
    """A plugin handler ran longer than `SECONDS`, or was away for `WAITING_SECONDS`.

    Like KeyboardInterrupt no Exception, because it is meant to get past the plugin's own
    ``except Exception``.
    """


class HandlerBudget:
    """Runs handlers under the limit.  Use it as a context, in the main thread."""

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
        """Raises HandlerTooSlow for a handler that takes too long, or whatever it raises."""
        self._called, self._ran = time.monotonic(), time.thread_time()
        signal.setitimer(signal.ITIMER_REAL, SECONDS, AGAIN_SECONDS)
        try:
            return _limited(handler)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _on_alarm(self, _number: int, frame: FrameType | None) -> None:
        # One that comes late finds the daemon's own code running, which is not to be interrupted.
        while frame is not None:
            if frame.f_code is _limited.__code__:
                self._judge()
                return
            frame = frame.f_back

    def _judge(self) -> None:
        if time.thread_time() - self._ran >= SECONDS:
            raise HandlerTooSlow(f"it ran longer than {SECONDS * 1000:.0f} ms")
        if time.monotonic() - self._called >= WAITING_SECONDS:
            raise HandlerTooSlow(f"it did not return for {WAITING_SECONDS * 1000:.0f} ms")


def _limited(handler: Callable[[], list[AnyCommand]]) -> list[AnyCommand]:
    """The frame below which an alarm may strike."""
    return handler()
