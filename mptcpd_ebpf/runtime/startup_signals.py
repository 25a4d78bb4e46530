# SPDX-License-Identifier: BSD-3-Clause
"""SIGTERM, SIGINT and SIGHUP before a daemon's or trace's loop handles them, and after it stops.

At the start these are handlers and not a mask, because children such as bcc's compiler would
inherit a mask.  The handlers raise nothing: Python drops an exception that is raised inside a
callback from C or an import.
"""

import os
import signal
from types import FrameType

_hangup_came = False


def take(*, hangup: bool) -> None:
    """From now on SIGTERM and SIGINT end the process with exit code 0.

    `hangup`: remember SIGHUP, which ends the process otherwise.

    Call it before anything is changed that must be restored at the end.
    """
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    if hangup:
        signal.signal(signal.SIGHUP, _remember)


def hangup_came() -> bool:
    """Whether a SIGHUP arrived since `take`."""
    return _hangup_came


def shut() -> None:
    """Blocks the signals while the process ends, so that they cannot change its exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))


def _end(_number: int, _frame: FrameType | None) -> None:
    os._exit(0)


def _remember(_number: int, _frame: FrameType | None) -> None:
    global _hangup_came
    _hangup_came = True
