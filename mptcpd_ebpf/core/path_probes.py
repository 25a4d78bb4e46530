# SPDX-License-Identifier: BSD-3-Clause
"""The path probes that wait for an answer, and until when.

There are few of them at a time, one for each path that is away, so they are searched in a row.
"""

from mptcpd_ebpf.core.commands import Decision


class PathProbes:
    """Decisions by their number, with deadlines in CLOCK_MONOTONIC nanoseconds."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[Decision, int]] = {}

    @property
    def deadline(self) -> int | None:
        """The earliest one; None if no probe waits."""
        return min((at for _, at in self._waiting.values()), default=None)

    def add(self, decision: Decision, deadline: int) -> None:
        self._waiting[decision.id] = (decision, deadline)

    def take(self, decision_id: int) -> Decision | None:
        """Ends the wait for one; None if it has ended already."""
        found = self._waiting.pop(decision_id, None)
        return found[0] if found is not None else None

    def due(self, now: int) -> list[Decision]:
        """Takes out those that were not answered by `now`."""
        if not self._waiting:
            return []  # as after most events
        late = [decision for decision, at in self._waiting.values() if at <= now]
        for decision in late:
            del self._waiting[decision.id]
        return late
