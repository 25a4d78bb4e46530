# SPDX-License-Identifier: BSD-3-Clause
"""Of alarms that wait, leaves one for each silent subflow.

While thousands of subflows are silent, their alarms come faster than they are handled, most of them
for subflows that have one waiting already.
"""

from collections.abc import Sequence

from mptcpd_ebpf.core.events import AlarmRaised, Event
from mptcpd_ebpf.core.measurement import AlarmKind

SILENT = (AlarmKind.NO_PROGRESS, AlarmKind.TIMEOUTS, AlarmKind.SILENCE)
"""Kinds that say the same: nothing comes back.  One of them is enough."""


def without_repeated(events: Sequence[Event]) -> list[Event]:
    """Puts the newest alarm about a subflow's silence in the place of the first, and drops the
    others."""
    if len(events) < 2:
        return list(events)
    places: dict[tuple[object, ...], int] = {}
    kept: list[Event] = []
    for event in events:
        if isinstance(event, AlarmRaised) and event.kind in SILENT:
            measured = event.measurement
            name = (measured.token, measured.local, measured.remote, measured.cookie)
            place = places.setdefault(name, len(kept))
            if place < len(kept):
                kept[place] = event
                continue
        kept.append(event)
    return kept
