# SPDX-License-Identifier: BSD-3-Clause
"""Keeps bursts of equal log lines short: a few lines at once, one line a second for the others.

Lines that differ only in their connection and numbers are of one kind.  At most `AT_ONCE` lines of
all kinds are logged as they come within a second, and at most `SUMMARIES` at its end: five thousand
connections that leave a path write six lines.  With log level debug every line is logged.
"""

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from mptcpd_ebpf.core.model import SECOND

log = logging.getLogger("mptcpd-ebpf")

AT_ONCE = 3
SUMMARIES = 3

Later = Callable[[float, Callable[[], None]], object]
"""Calls a function after some seconds, as `asyncio.loop.call_later` does."""


@dataclass(slots=True)
class _Kind:
    """The lines of a kind that wait for the end of the second."""

    level: int
    first: str
    many: Callable[[int], str]
    count: int = 0


class Bursts:
    """The log lines of the present second."""

    def __init__(self, later: Later | None = None) -> None:
        """`later` ends a second; without it, the next line does."""
        self._later = later
        self._ends_at = 0
        self._logged = 0
        self._timed = False
        """A call of `_end` is due."""
        self._kinds: dict[Hashable, _Kind] = {}
        """Those of which a line waits, or waited in the second before."""

    def add(
        self, now: int, kind: Hashable, level: int, line: str, many: Callable[[int], str]
    ) -> None:
        """Logs a line now, or counts it.

        `now`: CLOCK_MONOTONIC nanoseconds; `many` returns the line for a number of its kind.
        """
        if not log.isEnabledFor(level):
            return
        if log.isEnabledFor(logging.DEBUG):
            log.log(level, "%s", line)
            return
        if now >= self._ends_at:
            self.flush()
            self._begin(now)
        if kind not in self._kinds and self._logged < AT_ONCE:
            self._logged += 1
            log.log(level, "%s", line)
            return
        known = self._kinds.setdefault(kind, _Kind(level, line, many))
        if not known.count:
            known.first, known.many = line, many
        known.count += 1

    def _begin(self, now: int) -> None:
        self._ends_at = now + SECOND
        self._logged = 0
        if self._later is not None and not self._timed:
            self._timed = True
            self._later(1.0, self._end)

    def _end(self) -> None:
        self._timed = False
        if any(kind.count for kind in self._kinds.values()):
            ended = self._ends_at
            self.flush()
            self._begin(ended)
        else:
            self._kinds.clear()

    def flush(self) -> None:
        """Logs what waits: a line for each of the largest kinds, and one for all others."""
        waiting = {key: kind for key, kind in self._kinds.items() if kind.count}
        largest = sorted(waiting.values(), key=lambda kind: -kind.count)
        room = SUMMARIES if len(largest) <= SUMMARIES else SUMMARIES - 1
        others = largest[room:]
        # Commands before the answers that warn of them.
        for kind in sorted(waiting.values(), key=lambda kind: kind.level):
            if not any(kind is other for other in others):
                log.log(kind.level, "%s", kind.first if kind.count == 1 else kind.many(kind.count))
        if others:
            log.log(
                max(kind.level for kind in others),
                "%d lines of %d other kinds, such as: %s (log_level: debug shows all)",
                sum(kind.count for kind in others),
                len(others),
                others[0].first,
            )
        for kind in waiting.values():
            kind.count = 0
        self._kinds = waiting
