# SPDX-License-Identifier: BSD-3-Clause
"""The daemon itself: from exec to ready, memory, and from an alarm to the command it causes.

An alarm carries the time at which the probe raised it in the kernel.  The event stream
of the control socket then tells the decision, with the time at which its event was
handled, and the kernel's answer to the command; the time at which that answer is *read*
here is later than the command was sent, by the kernel's work on it, the encoding of
three events and the waking of this process.
"""

import http.client
import json
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench._figures import Figure, median_at_most, spread, table
from bench._machine import resident_mib
from mptcpd_ebpf.demo import scenario
from mptcpd_ebpf.lab import Lab, LabError, RequestResponse

NAME = "The daemon"

PROGRAM = str(Path(sys.executable).parent / "mptcpd-ebpf")

READY_MS = 400
RESIDENT_MIB = 60
COMMAND_MS = 1

_INTERVAL_MS = 20
_SETTLE_S = 0.5
_DEADLINE_S = 10.0

Told = tuple[int, str, dict[str, Any]]
"""When it was read (CLOCK_MONOTONIC nanoseconds), what it is, its fields."""


def run(quick: bool) -> str:
    starts, alarms = (3, 3) if quick else (21, 25)
    with scenario.stage("adaptive") as lab:
        ready, resident = _starts(lab, starts)
        decided, answered = _reactions(lab, alarms)
    return table(
        [
            median_at_most("exec → ready, with probes", ready, READY_MS, "ms"),
            median_at_most("resident when ready", resident, RESIDENT_MIB, "MiB", 1),
            Figure("alarm raised → its handling begins", spread(decided, "ms", 2)),
            median_at_most(
                "alarm raised → the command's answer read by another process",
                answered,
                COMMAND_MS,
                "ms",
                2,
            ),
        ]
    )


def _starts(lab: Lab, count: int) -> tuple[list[float], list[float]]:
    """Milliseconds from exec to the word "ready", and MiB resident then."""
    times, memory = [], []
    with tempfile.TemporaryDirectory() as folder:
        argv = [PROGRAM, "daemon", "--path-manager=adaptive", "--control", f"{folder}/c"]
        for _ in range(count):
            begin = time.monotonic_ns()
            process = lab.client.popen(argv, stderr=subprocess.PIPE, text=True)
            try:
                assert process.stderr is not None
                if not any("ready:" in line for line in process.stderr):
                    raise LabError("the daemon did not start")
                times.append((time.monotonic_ns() - begin) / 1e6)
                memory.append(resident_mib(process.pid))
            finally:
                process.terminate()
                process.communicate()
    return times, memory


def _reactions(lab: Lab, count: int) -> tuple[list[float], list[float]]:
    """Milliseconds from alarms to the beginning of their handling, and to the answer read."""
    decided, answered = [], []
    with tempfile.TemporaryDirectory() as folder:
        control = f"{folder}/c"
        with scenario.daemon(lab, "adaptive", control), _stream(control) as told:
            epoch = time.time_ns() - time.monotonic_ns()
            for _ in range(count):
                alarm, decision, read_at = _provoke(lab, told)
                raised = alarm["measurement"]["at"]
                decided.append((decision["t"] * 1e9 - epoch - raised) / 1e6)
                answered.append((read_at - raised) / 1e6)
    return decided, answered


def _provoke(
    lab: Lab, told: "queue.SimpleQueue[Told]"
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """An alarm that makes the daemon leave a path, the decision, and when its answer came."""
    fast, slow = lab.paths
    traffic = lab.start(RequestResponse(interval_ms=_INTERVAL_MS))
    try:
        slow.wait_for_subflow()
        time.sleep(_SETTLE_S)
        while not told.empty():
            told.get()
        fast.blackhole()
        alarm: dict[str, Any] | None = None
        decision: dict[str, Any] | None = None
        while True:
            try:
                read_at, kind, fields = told.get(timeout=_DEADLINE_S)
            except queue.Empty:
                raise LabError(f"nothing was done within {_DEADLINE_S:g} s") from None
            if fields.get("event") == "AlarmRaised" and decision is None:
                alarm = fields
            elif kind == "decision" and fields["action"] == "DestroySubflow" and decision is None:
                decision = fields
            elif decision and alarm and fields.get("decision_id") == decision["id"]:
                return alarm, decision, read_at
    finally:
        fast.heal()
        traffic.stop()
        traffic.kill()


@contextmanager
def _stream(control: str) -> Iterator["queue.SimpleQueue[Told]"]:
    """Everything that the daemon tells, as it is read by a thread of its own."""
    told: queue.SimpleQueue[Told] = queue.SimpleQueue()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(control)
        sock.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        reader = threading.Thread(target=_read, args=(answer, told))
        reader.start()
        try:
            yield told
        finally:
            sock.shutdown(socket.SHUT_RDWR)
            reader.join()


def _read(answer: http.client.HTTPResponse, told: "queue.SimpleQueue[Told]") -> None:
    kind = ""
    for line in answer:
        if line.startswith(b"event: "):
            kind = line[7:].strip().decode()
        elif line.startswith(b"data: "):
            read_at = time.monotonic_ns()
            told.put((read_at, kind, json.loads(line[6:])))
