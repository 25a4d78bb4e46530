# SPDX-License-Identifier: BSD-3-Clause
"""The events of a netlink subscription or of probes, collected; a test waits for one of them."""

import select
import time
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from mptcpd_ebpf.core.events import Event
from tests.waiting import SLOWNESS

DEADLINE_S = 10.0 * SLOWNESS

E = TypeVar("E", bound=Event)
Kind = TypeVar("Kind", bound=Event)
E_co = TypeVar("E_co", bound=Event, covariant=True)


class Source(Protocol[E_co]):
    """A descriptor that is readable when there are events, and a read that never blocks."""

    def fileno(self) -> int: ...

    def read(self) -> Sequence[E_co]: ...


class EventLog(Generic[E]):
    """All events of a source since the log was made."""

    def __init__(self, source: Source[E]) -> None:
        self.source = source
        self.events: list[E] = []

    def wait(self, kind: type[Kind], matches: Callable[[Kind], bool] = lambda _: True) -> Kind:
        """The first event of a kind that matches, past or to come; fails after DEADLINE_S."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            for event in self.events:
                if isinstance(event, kind) and matches(event):
                    return event
            come = self.take(deadline - time.monotonic())
            assert come, f"no {kind.__name__} among {self.events}"

    def take(self, within_s: float = 0.0) -> bool:
        """Reads one batch into `events`; False if there is none within `within_s` seconds."""
        if within_s < 0 or not select.select([self.source], [], [], within_s)[0]:
            return False
        self.events += self.source.read()
        return True

    def drain(self) -> None:
        """Reads all pending events and empties the log."""
        while self.take():
            pass
        self.events.clear()
