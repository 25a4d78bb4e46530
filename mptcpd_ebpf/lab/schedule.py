# SPDX-License-Identifier: BSD-3-Clause
"""Timed faults: a list of steps, written in Python or in a topology's YAML.

schedule:
  - {at: 3, path: fibre, set: {loss_percent: 30}}
  - {at: 6, path: fibre, fault: blackhole, direction: up}
  - {at: 9, path: fibre, fault: heal}

running_schedule.py applies the steps to a running lab.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from msgspec import Struct, field

from mptcpd_ebpf.lab.errors import Problem
from mptcpd_ebpf.lab.impairment import Direction, Impairment, judged

OPTION_SUBTYPES = {
    "mp-capable": 0,
    "mp-join": 1,
    "dss": 2,
    "add-addr": 3,
    "remove-addr": 4,
    "mp-prio": 5,
    "mp-fail": 6,
    "mp-fastclose": 7,
    "mp-tcprst": 8,
}
"""RFC 8684, 9.3: MPTCP option subtypes."""

FaultName = Literal[
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
"""The faults of a path."""

FAULTS: tuple[FaultName, ...] = get_args(FaultName)

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
    """The host, for carrier-off, carrier-on, remove-address and restore-address."""
    options: list[str] = field(default_factory=list)
    """The options for drop-mptcp: keys of `OPTION_SUBTYPES`."""


_WITH_DIRECTION = {None, "blackhole", "strip-mptcp", "drop-mptcp"}
_WITH_END = {"carrier-off", "carrier-on", "remove-address", "restore-address"}
_OF_BOTTLENECKS = ("blackhole", "heal")
_LONGEST_S = 86_400


class Target(Struct, frozen=True, kw_only=True):
    """A path or bottleneck, with what decides whether a step can be taken there."""

    declared: tuple[Impairment, Impairment]
    """Up, down; what `heal` restores."""
    now: tuple[Impairment, Impairment]
    bottleneck: bool
    nat: bool


def problems(steps: Sequence[Step], targets: Mapping[str | int, Target]) -> Iterator[Problem]:
    """The problems of each step, at (its number, key, …).

    `targets` are all paths, by name and by number, and all bottlenecks.  The steps are
    simulated in their order: whether a jitter is valid depends on the delay at that time.
    """
    now = {id(target): list(target.now) for target in targets.values()}
    timed = []
    for number, step in enumerate(steps):
        if 0 <= step.at <= _LONGEST_S:
            timed.append((number, step))
        else:
            yield (number, "at"), f"{step.at:g} is not in 0…{_LONGEST_S} (seconds)"
    for number, step in sorted(timed, key=lambda pair: pair[1].at):
        target = targets.get(step.path)
        if target is None:
            names = ", ".join(name for name in targets if isinstance(name, str))
            yield (number, "path"), f"there is no path {step.path!r}; there are {names}"
        for path, reason in _problems_of(step, target):
            yield (number, *path), reason
        if target is None:
            continue
        state = now[id(target)]
        if step.fault == "heal":
            state[:] = target.declared
        for side in {"up": (0,), "down": (1,), "both": (0, 1)}[step.direction]:
            state[side], wrong = judged(state[side], step.set)
            if wrong:
                yield from (((number, "set", *path), reason) for path, reason in wrong)
                break


def _problems_of(step: Step, target: Target | None) -> Iterator[Problem]:
    """The problems of one step's fault and of the keys that belong to it."""
    fault = step.fault
    if (fault is None) == (not step.set):
        yield (), "give either set or fault"
        return
    if fault is not None and fault not in FAULTS:
        close = difflib.get_close_matches(fault, FAULTS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(FAULTS)}"
        yield ("fault",), f"there is no fault {fault!r}; {hint}"
        return
    what = fault or "set"
    if step.direction != "both" and fault not in _WITH_DIRECTION:
        yield ("direction",), f"{what} has no direction"
    if step.end != "client" and fault not in _WITH_END:
        yield ("end",), f"{what} has no end"
    if fault != "drop-mptcp":
        if step.options:
            yield ("options",), f"{what} has no options"
    elif not step.options:
        yield ("options",), f"say which to drop: {', '.join(OPTION_SUBTYPES)}"
    for number, option in enumerate(step.options):
        if option not in OPTION_SUBTYPES:
            reason = f"there is no MPTCP option {option!r}; there are {', '.join(OPTION_SUBTYPES)}"
            yield ("options", number), reason
    if target is None or fault is None:
        return
    if target.bottleneck and fault not in _OF_BOTTLENECKS:
        words = ", ".join(_OF_BOTTLENECKS)
        yield ("fault",), f"a bottleneck has no fault {fault!r}; it has {words}"
    elif fault == "expire-nat" and not target.nat:
        yield ("fault",), "the path has no NAT; declare it with nat: true"
