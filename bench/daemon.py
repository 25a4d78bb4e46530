# SPDX-License-Identifier: BSD-3-Clause
"""The daemon: time from exec to ready, memory, and time from an alarm to its effect.

An alarm carries the time at which the probe raised it in the kernel; the event stream of the
control socket contains it. The resulting command takes effect while the kernel processes the
request, and the kernel notifies every subscriber of the closed subflow at that moment. The time at
which a separate process reads this event is therefore an upper bound: command sent, carried out,
and this process woken.
"""

import http.client
import json
import queue
import select
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench._figures import Figure, median_at_most, spread, table
from bench._machine import resident_mib
from mptcpd_ebpf.control import client
from mptcpd_ebpf.core.events import SubflowClosed
from mptcpd_ebpf.demo import scenario
from mptcpd_ebpf.kernel.pm_events import PmEvents
from mptcpd_ebpf.lab import Lab, LabError, RequestResponse

NAME = "The daemon"

READY_MS = 400
RESIDENT_MIB = 60
COMMAND_MS = 1

_INTERVAL_MS = 20
_SETTLE_S = 0.5
_DEADLINE_S = 10.0

Told = tuple[str, dict[str, Any]]
"""A message of the event stream: event or decision, its fields."""


def run(quick: bool) -> str:
    starts, alarms = (3, 3) if quick else (21, 31)
    with scenario.stage("adaptive") as lab:
        ready, resident = _starts(lab, starts)
        decided, effective = _reactions(lab, alarms)
    return table(
        [
            median_at_most("exec → ready, with probes", ready, READY_MS, "ms"),
            median_at_most("resident when ready", resident, RESIDENT_MIB, "MiB", 1),
            Figure("alarm raised → its handling begins", spread(decided, "ms", 2)),
            median_at_most(
                "alarm raised → command carried out, as another process reads",
                effective,
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
        for number in range(count):
            begin = time.monotonic_ns()
            with scenario.daemon(lab, "adaptive", f"{folder}/{number}") as control:
                times.append((time.monotonic_ns() - begin) / 1e6)
                memory.append(resident_mib(client.get(control, "/v1/status")["pid"]))
    return times, memory


def _reactions(lab: Lab, count: int) -> tuple[list[float], list[float]]:
    """Milliseconds from alarms to the beginning of their handling, and to the effect."""
    decided, effective = [], []
    with tempfile.TemporaryDirectory() as folder:
        control = f"{folder}/c"
        with (
            scenario.daemon(lab, "adaptive", control),
            _stream(control) as told,
            _pm_events(lab) as events,
        ):
            epoch = time.time_ns() - time.monotonic_ns()
            for _ in range(count):
                closed_at = _provoke(lab, events)
                alarm, decision = _cause(told)
                raised = alarm["measurement"]["at"]
                decided.append((decision["t"] * 1e9 - epoch - raised) / 1e6)
                effective.append((closed_at - raised) / 1e6)
    return decided, effective


def _provoke(lab: Lab, events: PmEvents) -> int:
    """Makes the daemon abandon a path; returns when the kernel's event was read, nanoseconds."""
    fast, slow = lab.paths
    traffic = lab.start(RequestResponse(interval_ms=_INTERVAL_MS))
    try:
        slow.wait_for_subflow()
        time.sleep(_SETTLE_S)
        while events.read():
            pass
        fast.blackhole()
        while select.select([events], [], [], _DEADLINE_S)[0]:
            read_at = time.monotonic_ns()
            if any(isinstance(event, SubflowClosed) for event in events.read()):
                fast.heal()
                traffic.stop()
                return read_at
        raise LabError(f"no subflow was closed within {_DEADLINE_S:g} s")
    finally:
        fast.heal()
        traffic.kill()


def _cause(told: "queue.SimpleQueue[Told]") -> tuple[dict[str, Any], dict[str, Any]]:
    """The next decision to abandon a path, and the alarm before it."""
    alarm: dict[str, Any] = {}
    while True:
        kind, fields = told.get(timeout=_DEADLINE_S)
        if fields.get("event") == "AlarmRaised":
            alarm = fields
        if kind == "decision" and fields["action"] == "DestroySubflow":
            command = fields["command"]
            if not command["routine"]:
                return alarm, fields


@contextmanager
def _pm_events(lab: Lab) -> Iterator[PmEvents]:
    """The kernel's events about connections in the client's namespace."""
    with lab.client.entered():
        events = PmEvents.open()
    with events:
        yield events


@contextmanager
def _stream(control: str) -> Iterator["queue.SimpleQueue[Told]"]:
    """The daemon's event stream, read by a separate thread."""
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
            told.put((kind, json.loads(line[6:])))
