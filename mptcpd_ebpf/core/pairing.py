# SPDX-License-Identifier: BSD-3-Clause
"""Matches the records of two sources, netlink and the probes, to one subflow.

Netlink reports which subflows exist, the probes measure them, and the two arrive in no fixed
order. Each source reports the subflows of one name (token and both addresses) in the order in
which they existed, so the first of one source is the first of the other, also when a name is used
again at once. A socket cookie, where known, tells two subflows of one name apart.

Three things wait, each for `GRACE`:

* early: measurements of a subflow that netlink has not named;
* closing: a subflow that netlink closed, for the probes' final record;
* ended: a subflow whose probes said their last word, for netlink to close it.

Every deadline lies GRACE ahead of its own `now`, so one queue holds them in order and
an event costs the same whatever number waits.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from mptcpd_ebpf.core.measurement import Measurement
from mptcpd_ebpf.core.model import Subflow
from mptcpd_ebpf.core.sighting import SubflowName, is_about, name_of, same_socket

GRACE = 1_000_000_000
"""Nanoseconds that one source waits for the other."""


@dataclass(slots=True, eq=False)
class Early:
    deadline: int
    measured: Measurement
    """The newest."""
    over: bool = False


@dataclass(slots=True, eq=False)
class Closing:
    deadline: int
    subflow: Subflow
    over: bool = False

    @property
    def closed_at(self) -> int:
        """When netlink's event was read: not before the subflow's end."""
        return self.deadline - GRACE


@dataclass(slots=True, eq=False)
class Ended:
    deadline: int
    subflow: Subflow
    over: bool = False


Entry = TypeVar("Entry", Early, Closing, Ended)


class Pairing:
    """What waits, by name and by deadline."""

    def __init__(self) -> None:
        self._early: dict[SubflowName, list[Early]] = {}
        self._closing: dict[SubflowName, list[Closing]] = {}
        self._ended: dict[SubflowName, Ended] = {}
        self._queue: deque[Early | Closing | Ended] = deque()

    @property
    def deadline(self) -> int | None:
        """When `expired` has something to give, in CLOCK_MONOTONIC nanoseconds."""
        while self._queue and self._queue[0].over:
            self._queue.popleft()
        return self._queue[0].deadline if self._queue else None

    def expired(self, now: int) -> Iterator[Closing | Ended]:
        """Takes out what has waited long enough; early measurements are dropped."""
        while (deadline := self.deadline) is not None and deadline <= now:
            entry = self._queue[0]
            if isinstance(entry, Early):
                self._drop_early(entry)
                continue
            if isinstance(entry, Closing):
                self.finish(entry)
            else:
                self.settle(entry.subflow)
            yield entry

    # --- early

    def keep(self, measured: Measurement, now: int) -> None:
        """Keeps a measurement of a subflow that netlink has not reported."""
        waiting = self._early.setdefault(name_of(measured), [])
        if waiting:
            newest = waiting[-1]
            if measured.at < newest.measured.at:
                return
            if not newest.measured.closed and same_socket(newest.measured, measured):
                newest.measured = measured
                return
        waiting.append(self._wait(Early(now + GRACE, measured)))

    def claim(self, name: SubflowName, since: int = 0) -> Measurement | None:
        """Netlink has reported a subflow: takes out its measurements. Those before `since` belong
        to an earlier subflow of that name, and are dropped.
        """
        for entry in list(self._early.get(name, ())):
            self._drop_early(entry)
            if entry.measured.at >= since:
                return entry.measured
        return None

    def _drop_early(self, entry: Early) -> None:
        entry.over = True
        _remove(self._early, name_of(entry.measured), entry)

    # --- closing

    def closed(self, subflow: Subflow, now: int) -> None:
        """Netlink closed `subflow`; the probes' final record is missing."""
        entry = self._wait(Closing(now + GRACE, subflow))
        self._closing.setdefault(name_of(subflow), []).append(entry)

    def closing(self, measured: Measurement) -> Closing | None:
        """The subflow that a measurement is about, if netlink closed it."""
        for entry in self._closing.get(name_of(measured), ()):
            born_later = measured.opened_at is not None and measured.opened_at > entry.closed_at
            if is_about(measured, entry.subflow) and not born_later:
                return entry
        return None

    def finish(self, entry: Closing) -> None:
        entry.over = True
        _remove(self._closing, name_of(entry.subflow), entry)

    # --- ended

    def ended(self, subflow: Subflow, now: int) -> None:
        """The probes' final record of a subflow came, and netlink has not closed it."""
        self._ended[name_of(subflow)] = self._wait(Ended(now + GRACE, subflow))

    def settle(self, subflow: Subflow) -> None:
        """`subflow` is closed for netlink too."""
        name = name_of(subflow)
        entry = self._ended.get(name)
        if entry is not None and entry.subflow is subflow:
            entry.over = True
            del self._ended[name]

    def _wait(self, entry: Entry) -> Entry:
        self._queue.append(entry)
        return entry


def _remove(waiting: dict[SubflowName, list[Entry]], name: SubflowName, entry: Entry) -> None:
    entries = waiting[name]
    entries.remove(entry)
    if not entries:
        del waiting[name]
