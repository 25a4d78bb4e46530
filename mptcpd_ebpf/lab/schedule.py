# SPDX-License-Identifier: BSD-3-Clause
"""Faults by the clock: a list of steps, written in Python or in a topology's YAML.

schedule:
  - {at: 3, path: fibre, set: {loss_percent: 30}}
  - {at: 6, path: fibre, fault: blackhole, direction: up}
  - {at: 9, path: fibre, fault: heal}
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from mptcpd_ebpf.lab.errors import LabError
from mptcpd_ebpf.lab.impairment import Direction, Impairment, changed

if TYPE_CHECKING:
    from mptcpd_ebpf.lab.lab import Lab
    from mptcpd_ebpf.lab.live import LivePath


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
    options: list[str] = field(default_factory=list)
    """For drop-mptcp: which options."""


FAULTS: dict[str, Callable[[LivePath, Step], object]] = {
    "blackhole": lambda path, step: path.blackhole(step.direction),
    "heal": lambda path, _: path.heal(),
    "carrier-off": lambda path, _: path.carrier(False),
    "carrier-on": lambda path, _: path.carrier(True),
    "remove-address": lambda path, _: path.remove_address(),
    "restore-address": lambda path, _: path.restore_address(),
    "remove-interface": lambda path, _: path.remove_interface(),
    "restore-interface": lambda path, _: path.restore_interface(),
    "router-off": lambda path, _: path.power_off_router(),
    "router-on": lambda path, _: path.power_on_router(),
    "expire-nat": lambda path, _: path.expire_nat(),
    "strip-mptcp": lambda path, step: path.strip_mptcp(step.direction),
    "drop-mptcp": lambda path, step: path.drop_mptcp(*step.options, direction=step.direction),
    "inject-resets": lambda path, _: path.inject_resets(),
}
"""What a step's `fault` can be; the hosts' side is the first host's."""


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


def action(lab: Lab, step: Step) -> Callable[[], object]:
    """What a step does; raises LabError if its path cannot have it done."""
    if isinstance(step.path, str) and step.path in lab.bottlenecks:
        link = lab.bottlenecks[step.path]
        if step.set:
            return lambda: link.set(direction=step.direction, **step.set)
        if step.fault == "heal":
            return link.heal
        if step.fault == "blackhole":
            return lambda: link.blackhole(step.direction)
        raise LabError(f"a bottleneck has no fault {step.fault!r}; it has blackhole, heal")
    path = lab.path(step.path)
    if step.fault is not None:
        fault = FAULTS[step.fault]
        return lambda: fault(path, step)
    return lambda: path.set(direction=step.direction, **step.set)


class RunningSchedule:
    """A schedule under way, in a thread of its own."""

    def __init__(self, lab: Lab, steps: Sequence[Step]) -> None:
        check_steps(steps)
        self.steps = sorted(steps, key=lambda step: step.at)
        self.done: list[tuple[int, Step]] = []
        """(CLOCK_MONOTONIC nanoseconds after the change, step)."""
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._actions = [action(lab, step) for step in self.steps]
        self._thread = threading.Thread(target=self._run, name="lab schedule", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float | None = None) -> list[tuple[int, Step]]:
        """Until the last step is done; raises what a step raised."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise LabError(f"the schedule has not ended after {timeout_s:g} s")
        if self._error is not None:
            raise self._error
        return self.done

    def state(self) -> dict[str, Any]:
        """How far it is: steps in all, steps done, and what went wrong, if anything."""
        error = None if self._error is None else str(self._error)
        return {"steps": len(self.steps), "done": len(self.done), "error": error}

    def stop(self) -> None:
        """No further steps."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        start = time.monotonic()
        try:
            for step, act in zip(self.steps, self._actions, strict=True):
                if self._stop.wait(max(0.0, start + step.at - time.monotonic())):
                    return
                act()
                self.done.append((time.monotonic_ns(), step))
        except BaseException as error:
            self._error = error
