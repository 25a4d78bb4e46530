# SPDX-License-Identifier: BSD-3-Clause
"""Delivers signals to a loop that waits for descriptors.

Python handlers record which signals arrived; the bytes that the interpreter writes to its wakeup
descriptor only wake the loop. So no signal is lost when the descriptor is full.

Asyncio's handlers depend on those bytes alone. They can also deadlock: right after
`add_signal_handler`, a full descriptor makes the interpreter take a lock inside the signal handler
that it may already hold (trip_signal in Modules/signalmodule.c of CPython 3.11).
"""

import signal
import socket
from contextlib import suppress
from types import FrameType
from typing import Self


class PendingSignals:
    """Handles signals while it is entered, in the main thread; readable when some are pending."""

    def __init__(self, *numbers: signal.Signals) -> None:
        self._numbers = numbers
        self._came: set[signal.Signals] = set()

    def __enter__(self) -> Self:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._keep) for number in self._numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._read.close()
        self._write.close()

    def fileno(self) -> int:
        return self._read.fileno()

    def take(self) -> set[signal.Signals]:
        """The signals that arrived since the last call; may be empty."""
        with suppress(BlockingIOError):
            self._read.recv(4096)
        came, self._came = self._came, set()
        return came

    def _keep(self, number: int, _frame: FrameType | None) -> None:
        self._came.add(signal.Signals(number))
