# SPDX-License-Identifier: BSD-3-Clause
"""Faults by the clock: a list of steps, written in Python or in a topology's YAML.

schedule:
  - {at: 3, path: fibre, set: {loss_percent: 30}}
  - {at: 6, path: fibre, fault: blackhole, direction: up}
  - {at: 9, path: fibre, fault: heal}

What a step does to a running lab is in running_schedule.py.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from msgspec import Struct, field

from mptcpd_ebpf.lab.errors import LabError
from mptcpd_ebpf.lab.impairment import Direction, Impairment, changed

Fault = Literal[
    "blackhole",
    "heal",
    "carrier-off",
    "carrier-on",
    "remove-address",
    "restore-address",
    "remove-interface",
    "restore-interface",
    "router-off",
    "router-on",
    "expire-nat",
    "strip-mptcp",
    "drop-mptcp",
    "inject-resets",
]
"""What can befall a path."""

FAULTS: tuple[Fault, ...] = get_args(Fault)

End = Literal["client", "server"]
"""The first or the second host of a path."""

ENDS: tuple[End, ...] = get_args(End)


class Step(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One change of one path (or bottleneck) at one time."""

    at: float
    """Seconds after the schedule's start."""
    path: str | int = 0
    """Name or number of a path, or name of a bottleneck."""
    set: dict[str, Any] = field(default_factory=dict)
    """Impairment fields to change."""
    fault: str | None = None
    """One of `FAULTS`."""
    direction: Direction = "both"
    end: End = "client"
    """For carrier-off, carrier-on, remove-address and restore-address: whose."""
    options: list[str] = field(default_factory=list)
    """For drop-mptcp: which options."""


def check_steps(steps: Sequence[Step]) -> None:
    """Raises LabError for a step that no path could take."""
    for number, step in enumerate(steps):
        check_step(step, f"schedule[{number}]")


def check_step(step: Step, where: str) -> None:
    """Raises LabError, naming `where`, if no path could take the step."""
    if step.at < 0:
        raise LabError(f"{where}: at is {step.at:g}, before the start")
    if (step.fault is None) == (not step.set):
        raise LabError(f"{where}: give either set or fault")
    if step.fault is not None and step.fault not in FAULTS:
        raise LabError(f"{where}: no fault {step.fault!r}; there are {', '.join(FAULTS)}")
    # What a value may be is known without the path, except jitter against delay.
    changed(Impairment(delay_ms=60_000), step.set, where=where)
