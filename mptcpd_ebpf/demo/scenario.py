# SPDX-License-Identifier: BSD-3-Clause
"""One run: two hosts, two paths, a daemon in the client's namespace, and timed faults.

Both path managers, the kernel's and the daemon's, get the same traffic and faults: a client
sends a request every 50 ms over one connection while the faster path has one fault after
another, each with an end; then comes a bulk transfer over a second connection.  In the
kernel's run the daemon only observes, so that the same probes measure both at the same cost.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Literal

from msgspec import Struct

from mptcpd_ebpf.control import client
from mptcpd_ebpf.control.schema import Connections, DecisionView
from mptcpd_ebpf.lab import Bulk, Host, Lab, LabError, Path, RequestResponse
from mptcpd_ebpf.lab.kernel_path_manager import allow_joins, raise_limits
from mptcpd_ebpf.lab.live import LivePath
from mptcpd_ebpf.lab.traffic import BulkResult, Message
from mptcpd_ebpf.runtime.exit_codes import Failure

ManagerName = Literal["kernel", "adaptive"]

FAST = Path(name="fibre", delay_ms=10, rate_mbit=20)
SLOW = Path(name="mobile", delay_ms=40, rate_mbit=20)

DEMO_FAULTS: dict[str, Callable[[LivePath], None]] = {
    "loss": lambda path: path.set(loss_percent=30),
    "delay": lambda path: path.set(delay_ms=FAST.delay_ms + 290),
    "blackhole": lambda path: path.blackhole(),
}
"""The faults of the faster path, in both directions."""

SAMPLE_S = 0.25


class Timing(Struct, frozen=True, kw_only=True):
    """How long each part lasts, seconds."""

    quiet: float = 4.0
    fault: float = 8.0
    healed: float = 6.0
    bulk: float = 6.0


class Phase(Struct, frozen=True, kw_only=True):
    """A part of the run; times are CLOCK_MONOTONIC nanoseconds."""

    fault: str
    """``none``, a key of `DEMO_FAULTS`, or ``bulk``."""
    begin: int
    heal: int
    """When the fault ended."""
    end: int
    """When the next phase began."""


class Sample(Struct, frozen=True, kw_only=True):
    """The connections at one moment."""

    at: int
    connections: Connections


class Recording(Struct, frozen=True, kw_only=True):
    """The results of one run."""

    manager: ManagerName
    fast_ip: str
    """The client's address on the path with the faults."""
    slow_ip: str
    phases: list[Phase]
    messages: list[Message]
    bulk: BulkResult
    samples: list[Sample]
    decisions: list[tuple[int, DecisionView]]
    """With the time of each, CLOCK_MONOTONIC nanoseconds."""


Watch = Callable[[str, Connections, list[DecisionView]], None]
"""Called a few times a second with the phase, the connections and the decisions so far."""


def run(manager: ManagerName, timing: Timing, watch: Watch) -> Recording:
    """One run, with its setup and cleanup.  Raises LabError."""
    with (
        stage(manager) as lab,
        tempfile.TemporaryDirectory() as folder,
        daemon(lab, manager, f"{folder}/control") as control,
    ):
        return _Run(lab, manager, timing, control, watch).record()


@contextmanager
def stage(manager: ManagerName, paths: Sequence[Path] = (FAST, SLOW)) -> Iterator[Lab]:
    """The two hosts and their paths, with the limits and endpoints that the manager needs."""
    with Lab(paths=paths) as lab:
        if manager == "kernel":
            allow_joins(lab)
        else:
            raise_limits(lab.client, lab.server)
        yield lab


@contextmanager
def daemon(lab: Lab, manager: ManagerName, control: str, *options: str) -> Iterator[str]:
    """A daemon in the client's namespace, ready; yields the path of its control socket."""
    arguments = [] if manager == "kernel" else [f"--path-manager={manager}"]
    with daemon_in(lab.client, control, *arguments, *options):
        yield control


@contextmanager
def daemon_in(host: Host, control: str, *arguments: str) -> Iterator[None]:
    """A daemon in a host's namespace, ready, with its control socket at `control`."""
    argv = [sys.executable, "-m", "mptcpd_ebpf", "daemon", "--control", control, *arguments]
    with tempfile.TemporaryFile("w+") as log:
        process = host.popen(argv, stderr=log)
        try:
            _wait_until_ready(process, control, log)
            yield
        finally:
            process.terminate()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], control: str, log: IO[str]) -> None:
    """Waits until the daemon answers.  Raises LabError with its log if it ends instead."""
    while process.poll() is None:
        try:
            client.get(control, "/v1/status")
        except Failure:
            time.sleep(0.01)
        else:
            return
    log.seek(0)
    raise LabError(f"the daemon did not start: {log.read().strip() or 'it printed nothing'}")


def decisions(control: str) -> list[tuple[int, DecisionView]]:
    """The decisions that a daemon carried out, with their times in CLOCK_MONOTONIC nanoseconds."""
    epoch = time.time_ns() - time.monotonic_ns()
    return [(round(each["t"] * 1e9) - epoch, each) for each in _carried_out(control)]


def _carried_out(control: str) -> list[DecisionView]:
    answer = client.get(control, "/v1/decisions")["decisions"]
    return [each for each in answer if each["refused"] is None]


class _Run:
    def __init__(
        self, lab: Lab, manager: ManagerName, timing: Timing, control: str, watch: Watch
    ) -> None:
        self._lab = lab
        self._manager = manager
        self._timing = timing
        self._control = control
        self._watch = watch
        self._samples: list[Sample] = []

    def record(self) -> Recording:
        messages, phases = self._under_faults()
        bulk, bulk_phase = self._bulk()
        return Recording(
            manager=self._manager,
            fast_ip=self._lab.paths[0].client_ip,
            slow_ip=self._lab.paths[1].client_ip,
            phases=[*phases, bulk_phase],
            messages=messages,
            bulk=bulk,
            samples=self._samples,
            decisions=decisions(self._control),
        )

    def _under_faults(self) -> tuple[list[Message], list[Phase]]:
        traffic = self._lab.start(RequestResponse())
        try:
            begin = time.monotonic_ns()
            self._wait(self._timing.quiet, "no fault yet")
            now = time.monotonic_ns()
            phases = [Phase(fault="none", begin=begin, heal=now, end=now)]
            fast = self._lab.paths[0]
            for fault, inject in DEMO_FAULTS.items():
                begin = time.monotonic_ns()
                inject(fast)
                self._wait(self._timing.fault, f"{FAST.name}: {fault}")
                heal = time.monotonic_ns()
                fast.heal()
                self._wait(self._timing.healed, f"{FAST.name}: healed")
                end = time.monotonic_ns()
                phases.append(Phase(fault=fault, begin=begin, heal=heal, end=end))
            return traffic.stop().messages, phases
        finally:
            traffic.kill()

    def _bulk(self) -> tuple[BulkResult, Phase]:
        traffic = self._lab.start(Bulk(seconds=self._timing.bulk, chunk=128 * 1024))
        try:
            self._wait(self._timing.bulk, "bulk transfer over both paths")
            result = traffic.result()
        finally:
            traffic.kill()
        end = time.monotonic_ns()
        return result, Phase(fault="bulk", begin=result.started_at, heal=end, end=end)

    def _wait(self, seconds: float, phase: str) -> None:
        """Takes samples for some seconds."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, SAMPLE_S))
            connections: Connections = client.get(self._control, "/v1/connections")
            self._samples.append(Sample(at=time.monotonic_ns(), connections=connections))
            self._watch(phase, connections, _carried_out(self._control))
