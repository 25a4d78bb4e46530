# SPDX-License-Identifier: BSD-3-Clause
"""The wake-up times that plugins asked for: every one is kept.

A timer belongs to a plugin, and to a connection if it names one; it ends with either.
"""

from heapq import heappop, heappush

Owner = tuple[str, int | None]
"""A plugin's name, and a connection's token or None."""


class Timers:
    """Times in CLOCK_MONOTONIC nanoseconds."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, str, int]] = []
        """Time, plugin, token (-1 for none): also those that were cancelled meanwhile."""
        self._pending: dict[int, dict[str, set[int]]] = {}
        """By token and plugin: the times that are still wanted."""

    @property
    def deadline(self) -> int | None:
        """The earliest time; None if there is none."""
        while self._heap:
            at, plugin, token = self._heap[0]
            if at in self._pending.get(token, {}).get(plugin, ()):
                return at
            heappop(self._heap)
        return None

    def add(self, plugin: str, token: int | None, at: int) -> None:
        key = -1 if token is None else token
        wanted = self._pending.setdefault(key, {}).setdefault(plugin, set())
        if at not in wanted:
            wanted.add(at)
            heappush(self._heap, (at, plugin, key))

    def due(self, now: int) -> list[Owner]:
        """Takes out what is due by `now`; each plugin and token once, the earliest first."""
        owners: dict[Owner, None] = {}
        while (deadline := self.deadline) is not None and deadline <= now:
            at, plugin, token = heappop(self._heap)
            owners[plugin, None if token < 0 else token] = None
            self._discard(token, plugin, at)
        return list(owners)

    def _discard(self, token: int, plugin: str, at: int) -> None:
        plugins = self._pending[token]
        plugins[plugin].discard(at)
        if not plugins[plugin]:
            del plugins[plugin]
            if not plugins:
                del self._pending[token]

    def cancel_connection(self, token: int) -> None:
        self._pending.pop(token, None)

    def keep_plugins(self, names: list[str]) -> None:
        """Cancels the timers of all other plugins."""
        for token, plugins in list(self._pending.items()):
            kept = {name: times for name, times in plugins.items() if name in names}
            if kept:
                self._pending[token] = kept
            else:
                del self._pending[token]

    def clear(self) -> None:
        self._heap.clear()
        self._pending.clear()
