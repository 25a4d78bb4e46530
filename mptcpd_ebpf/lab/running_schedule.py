# SPDX-License-Identifier: BSD-3-Clause
"""A running schedule: applies its steps to a lab's paths and bottlenecks in time."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, assert_never, cast

from mptcpd_ebpf.lab.errors import LabError
from mptcpd_ebpf.lab.live import LiveLink, LivePath
from mptcpd_ebpf.lab.schedule import FaultName, Step


def action(link: LiveLink, step: Step) -> Callable[[], object]:
    """The function that applies a valid step (see `schedule.problems`) to its link."""
    fault = cast("FaultName | None", step.fault)
    if fault is None:
        return lambda: link.set(direction=step.direction, **step.set)
    if fault == "heal":
        return link.heal
    if fault == "blackhole":
        return lambda: link.blackhole(step.direction)
    assert isinstance(link, LivePath)
    match fault:
        case "carrier-off":
            return lambda: link.carrier(False, end=step.end)
        case "carrier-on":
            return lambda: link.carrier(True, end=step.end)
        case "remove-address":
            return lambda: link.remove_address(end=step.end)
        case "restore-address":
            return lambda: link.restore_address(end=step.end)
        case "remove-interface":
            return link.remove_interface
        case "restore-interface":
            return link.restore_interface
        case "router-off":
            return link.power_off_router
        case "router-on":
            return link.power_on_router
        case "expire-nat":
            return link.expire_nat
        case "strip-mptcp":
            return lambda: link.strip_mptcp(step.direction)
        case "drop-mptcp":
            return lambda: link.drop_mptcp(*step.options, direction=step.direction)
        case "inject-resets":
            return link.inject_resets
    assert_never(fault)


class RunningSchedule:
    """A running schedule, in a thread of its own.

    `actions` are its steps in their order, each with the function that applies it.  A step that
    fails ends the schedule; `wait` raises its error, or else the end of the lab does.
    """

    def __init__(self, actions: Sequence[tuple[Step, Callable[[], object]]]) -> None:
        self.steps = [step for step, _ in actions]
        self.done: list[tuple[int, Step]] = []
        """(CLOCK_MONOTONIC nanoseconds after the change, step)."""
        self._error: LabError | None = None
        self._raised = False
        self._stop = threading.Event()
        self._actions = actions
        self._thread = threading.Thread(target=self._run, name="lab schedule", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float | None = None) -> list[tuple[int, Step]]:
        """Waits for the end of the last step; raises LabError if one failed."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise LabError(f"the schedule has not ended after {timeout_s:g} s")
        if self._error is not None:
            self._raised = True
            raise self._error
        return self.done

    def state(self) -> dict[str, Any]:
        """Its progress: the number of steps, of steps done, and the error, if any."""
        error = None if self._error is None else str(self._error)
        return {"steps": len(self.steps), "done": len(self.done), "error": error}

    def stop(self) -> None:
        """Takes no further steps."""
        self._stop.set()
        self._thread.join()

    def close(self) -> None:
        """Stops; raises LabError if a step failed and `wait` has not raised its error."""
        self.stop()
        if self._error is not None and not self._raised:
            raise self._error

    def _run(self) -> None:
        start = time.monotonic()
        for step, act in self._actions:
            if self._stop.wait(max(0.0, start + step.at - time.monotonic())):
                return
            try:
                act()
            except Exception as error:
                what = step.fault or "set"
                left = len(self.steps) - len(self.done) - 1
                self._error = LabError(
                    f"the schedule stopped at {step.at:g} s, {left} step(s) before its end: "
                    f"{step.path}: {what}: {error}"
                )
                self._error.__cause__ = error
                return
            self.done.append((time.monotonic_ns(), step))
