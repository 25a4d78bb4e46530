# SPDX-License-Identifier: BSD-3-Clause
"""One run: a lab, the daemons of an arm, the traffic and faults of a cell; what came of it."""

import json
import math
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path as File
from typing import Any

from msgspec.structs import replace

from bench.decisions.arms import ARMS, Arm, Configuration
from bench.decisions.cells import Cell
from bench.decisions.records import Act, Alone, Flow, Run
from mptcpd_ebpf.demo import scenario
from mptcpd_ebpf.lab import Host, Lab, LabError, Path
from mptcpd_ebpf.lab.kernel_path_manager import allow_joins, raise_limits
from mptcpd_ebpf.lab.traffic import BulkResult, Running
from mptcpd_ebpf.runtime.exit_codes import Failure

_ACTIONS = ("CreateSubflow", "DestroySubflow", "SetBackup")
_POLL_S = 2.0
"""The daemon keeps its newest 1000 decisions; a busy one makes fewer in this time."""
_PATIENCE_S = 45.0
"""How long the traffic may take beyond its length."""


def measure(cell: Cell, arm: str, repetition: int, commit: str) -> Run:
    """Runs an arm in a cell; what fails is in the record's `error`."""
    run = Run(
        commit=commit,
        part=cell.part,
        cell=cell.id,
        arm=arm,
        repetition=repetition,
        length_s=cell.length_s,
        seed=cell.seed(repetition),
        at=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        load=os.getloadavg()[0],
    )
    try:
        if arm == "alone":
            return replace(run, alone=list(_alone(cell, run)))
        return _once(cell, ARMS[arm], run, 0)
    except (LabError, Failure, OSError) as error:
        return replace(run, error=f"{type(error).__name__}: {error}")


def _alone(cell: Cell, run: Run) -> Iterator[Alone]:
    """The traffic on each path that may be the best one; under faults, on the remaining one."""
    if cell.part == "faults":
        remaining = 1 - cell.faulty
        yield Alone(path=remaining, flows=_once(cell, ARMS["alone"], run, remaining).flows)
        return
    best = 0.0
    for path in sorted(range(len(cell.paths)), key=lambda path: -_rate(cell.paths[path])):
        if _rate(cell.paths[path]) > best:
            flows = _once(cell, ARMS["alone"], run, path).flows
            yield Alone(path=path, flows=flows)
            best = max(best, sum(flow.mbit or 0.0 for flow in flows) / len(flows))


def _rate(path: Path) -> float:
    return path.rate_mbit or math.inf


def _once(cell: Cell, arm: Arm, run: Run, path: int) -> Run:
    """The record of one run of the traffic, whose connections start on a path."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(cell.paths, ip=cell.ip, seed=run.seed))
        raise_limits(lab.client, lab.server)
        if arm.joins == "kernel":
            allow_joins(lab)
        folder = File(stack.enter_context(tempfile.TemporaryDirectory()))
        controls = [stack.enter_context(_daemon(lab.client, folder / "client", arm.client))]
        if arm.server is not None:
            controls.append(stack.enter_context(_daemon(lab.server, folder / "server", arm.server)))
        running: list[Running[Any]] = []
        for workload in cell.traffic:
            running.append(lab.start(replace(workload, path=path)))
            stack.callback(running[-1].kill)
        began = time.monotonic_ns()
        schedule = lab.schedule(cell.faults if arm.joins != "none" else [])
        watch = _Watch(lab, controls, began)
        until = time.monotonic() + cell.length_s
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _POLL_S))
            watch.look()
        flows = [_flow(each.result(_PATIENCE_S, allow_error=True), began) for each in running]
        watch.look()
        taken = [round((at - began) / 1e6, 1) for at, _ in schedule.wait()]
        return replace(run, flows=flows, acts=watch.acts(), faults_ms=taken)


@contextmanager
def _daemon(host: Host, stem: File, configuration: Configuration) -> Iterator[str]:
    file = stem.with_suffix(".yaml")
    file.write_text(json.dumps(configuration))  # JSON is YAML
    control = str(stem.with_suffix(".sock"))
    with scenario.daemon_in(host, control, "--config", str(file)):
        yield control


def _flow(result: Any, began: int) -> Flow:
    if isinstance(result, BulkResult):
        if result.error:
            raise LabError(f"traffic: {result.error}")
        return Flow(mbit=round(result.mbit, 3))
    return Flow(
        latencies=[
            (
                round((each.sent_at - began) / 1e6, 1),
                None if each.latency_ns is None else round(each.latency_ns / 1e6, 2),
            )
            for each in result.messages
        ]
    )


class _Watch:
    """Collects the decisions of the daemons while they are made."""

    def __init__(self, lab: Lab, controls: list[str], began: int) -> None:
        self._controls = controls
        self._began = began
        self._found: dict[tuple[int, int], Act] = {}
        """By daemon and number of the decision."""
        self._numbers: dict[str, int] = {}
        """Of the paths, by address, at either end."""
        for number, path in enumerate(lab.paths):
            for ip in (path.client_ip, path.client_ip6):
                if ip is not None:
                    self._numbers[ip] = number

    def look(self) -> None:
        for number, control in enumerate(self._controls):
            for at, view in scenario.decisions(control):
                if view["action"] in _ACTIONS and not view["command"]["routine"]:
                    self._found[number, view["id"]] = self._act(at, dict(view), server=number > 0)

    def _act(self, at: int, view: dict[str, Any], *, server: bool) -> Act:
        command = view["command"]
        # The client's address names the path: on the server it is the remote one.
        end = command["remote" if server else "local"] if "local" in command else None
        ip = command["local_ip"] if end is None else str(end).rpartition(":")[0].strip("[]")
        return Act(
            at_ms=round((at - self._began) / 1e6, 1),
            action=view["action"],
            path=self._numbers.get(ip, -1),
            backup=bool(command.get("backup", False)),
            server=server,
            reason=view["reason"],
        )

    def acts(self) -> list[Act]:
        return sorted(self._found.values(), key=lambda act: act.at_ms)
