# SPDX-License-Identifier: BSD-3-Clause
"""What the core itself has seen that calls for taking a subflow off its path.

The probes' alarms and the changes of the network are kept by subflow, so that a destructive command
is judged by what happened and not by what its author says.  A subflow that answers afterwards ends
the evidence of its silence.
"""

from dataclasses import dataclass
from enum import Enum

from mptcpd_ebpf.core.events import AlarmRaised
from mptcpd_ebpf.core.measurement import AlarmKind
from mptcpd_ebpf.core.model import SECOND, Subflow, SubflowKey, World

LATE = 2 * SECOND
"""Nanoseconds after which evidence of silence is checked with a new measurement before use.  Alarms
of five thousand connections at once take nearly as long to be handled."""

HARMS_FOR = 10 * SECOND
"""Nanoseconds for which an alarm about loss, delay or blocked data is evidence."""

_SILENT = (AlarmKind.NO_PROGRESS, AlarmKind.TIMEOUTS, AlarmKind.SILENCE)


class Grounds(Enum):
    """What calls for taking a subflow off its path; the value orders them by strength."""

    HARMS = 1
    """It answers, with loss or delay, or others wait for it."""
    SILENT = 2
    """Nothing has come back on it."""
    CUT_OFF = 3
    """Its address or carrier is gone, its address deprecated, or its interface not allowed."""


@dataclass(slots=True)
class _Seen:
    """When it happened; 0: it did not."""

    silent_at: int = 0
    harmed_at: int = 0


class Evidence:
    """By subflow, for as long as it lives."""

    def __init__(self) -> None:
        self._seen: dict[int, dict[SubflowKey, _Seen]] = {}
        """By token."""
        self._sampled_at = 0

    def alarm(self, subflow: Subflow, alarm: AlarmRaised) -> None:
        seen = self._of(subflow)
        if alarm.kind in _SILENT:
            seen.silent_at = max(seen.silent_at, alarm.measurement.at)
        else:
            seen.harmed_at = max(seen.harmed_at, alarm.measurement.at)

    def cut_off(self, world: World, now: int) -> None:
        """An address or a carrier is gone: what was on it is silent until something comes back."""
        for connection in world.connections.values():
            for subflow in connection.subflows.values():
                if subflow.usable and not world.can_carry(subflow):
                    self._of(subflow).silent_at = now

    def sampled(self, now: int) -> None:
        """Every subflow was measured."""
        self._sampled_at = now

    def subflow_closed(self, subflow: Subflow) -> None:
        of_one = self._seen.get(subflow.token)
        if of_one is not None and of_one.pop(subflow.key, None) is not None and not of_one:
            del self._seen[subflow.token]

    def grounds(self, world: World, subflow: Subflow, now: int) -> Grounds | None:
        """The strongest evidence that holds now; None if there is none."""
        if _cut_off(world, subflow):
            return Grounds.CUT_OFF
        seen = self._seen.get(subflow.token, {}).get(subflow.key)
        if seen is None:
            return None
        if seen.silent_at and not subflow.answered_since(seen.silent_at):
            return Grounds.SILENT
        if seen.harmed_at and now - seen.harmed_at < HARMS_FOR:
            return Grounds.HARMS
        return None

    def is_late(self, subflow: Subflow, now: int) -> bool:
        """Whether the subflow may have answered since it was last looked at."""
        seen = self._seen.get(subflow.token, {}).get(subflow.key)
        measured_at = subflow.measured.at if subflow.measured is not None else 0
        silent_at = seen.silent_at if seen is not None else 0
        return max(silent_at, measured_at, self._sampled_at) < now - LATE

    def _of(self, subflow: Subflow) -> _Seen:
        return self._seen.setdefault(subflow.token, {}).setdefault(subflow.key, _Seen())


def _cut_off(world: World, subflow: Subflow) -> bool:
    if not world.can_carry(subflow):
        return True
    name = world.interface_name(subflow.if_index)
    if name is not None and not world.interface_allowed(name):
        return True
    if_index = world.interface_of(subflow.local.ip)
    address = world.addresses.get((if_index, subflow.local.ip)) if if_index is not None else None
    return address is not None and address.deprecated
