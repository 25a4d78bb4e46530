# SPDX-License-Identifier: BSD-3-Clause
"""SIGTERM, SIGINT and SIGHUP for a daemon or a trace that starts, until its loop takes them;
and for a daemon that ends, when its loop takes them no more.

At the start handlers, and not a mask: children, such as bcc's compiler, would start with the
mask.  And none of them raises anything: Python drops what is raised inside a callback from C or
an import.
"""

import os
import signal
from types import FrameType

_hangup_came = False


def take(*, hangup: bool) -> None:
    """From now on SIGTERM and SIGINT end the process with exit code 0.

    `hangup`: and SIGHUP is remembered, which would end it otherwise.

    Call it before anything has to be put back at the end.
    """
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    if hangup:
        signal.signal(signal.SIGHUP, _remember)


def hangup_came() -> bool:
    """Whether a SIGHUP came meanwhile."""
    return _hangup_came


def shut() -> None:
    """The process ends now: one more signal does not make another exit code of it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))


def _end(_number: int, _frame: FrameType | None) -> None:
    os._exit(0)


def _remember(_number: int, _frame: FrameType | None) -> None:
    global _hangup_came
    _hangup_came = True
