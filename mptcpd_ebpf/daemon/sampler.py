# SPDX-License-Identifier: BSD-3-Clause
"""Takes the samples that plugins request, and keeps them from using up the processor.

With five thousand connections a sample takes a tenth of a second, in which no alarm is handled.
One that was dear is therefore followed by a pause, and one sample answers all requests of the
pause.
"""

import asyncio
import time
from collections.abc import Callable

from mptcpd_ebpf.core.model import MS

CHEAP = 10 * MS
"""Nanoseconds: a sample that takes no longer needs no pause."""

PAUSE = 9
"""How much longer than a sample the pause after it is: samples take a tenth of the time."""


class Sampler:
    """When samples are taken."""

    def __init__(self, take: Callable[[bool], None], later: Callable[[], None]) -> None:
        """`take` takes a sample, with the owners of connections or without; `later` is called
        after one that was taken at the end of a pause."""
        self._take = take
        self._later = later
        self._next_at = 0
        self._timer: asyncio.TimerHandle | None = None

    def request(self, *, with_owners: bool, urgent: bool = False) -> None:
        """A plugin requests a sample: it is taken now or after the pause.

        With owners it is taken now too, since a connection waits for its plugin.
        """
        now = time.monotonic_ns()
        if with_owners or urgent or now >= self._next_at:
            self._now(with_owners=with_owners)
        elif self._timer is None:
            seconds = (self._next_at - now) / 1e9
            self._timer = asyncio.get_running_loop().call_later(seconds, self._due)

    def spent(self, nanoseconds: int) -> None:
        """How long reading or handling a sample took."""
        if nanoseconds > CHEAP:
            now = time.monotonic_ns()
            self._next_at = max(self._next_at, now) + PAUSE * nanoseconds

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _due(self) -> None:
        self._now(with_owners=False)
        self._later()

    def _now(self, *, with_owners: bool) -> None:
        self.stop()
        self._take(with_owners)
