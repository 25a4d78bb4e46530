# SPDX-License-Identifier: BSD-3-Clause
"""A path dies for many connections at once: when the last one has left it, and what is logged.

Each connection has a subflow on two paths and sends a request from time to time.  The path on which
it began drops all packets.  A connection has left it when its subflow there is not established any
more.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path as File
from typing import IO, Any

from bench._figures import Figure, table
from bench._machine import resident_mib
from bench._mptcpd import cpu_seconds
from mptcpd_ebpf.control import client
from mptcpd_ebpf.lab import Lab, LabError, Path
from mptcpd_ebpf.lab.kernel_path_manager import raise_limits
from mptcpd_ebpf.lab.waiting import wait_until
from mptcpd_ebpf.runtime.exit_codes import Failure

NAME = "A crowd leaves a path"

CROWDS = {500: 1.0, 2500: 3.0, 5000: 5.0}
"""Connections, and within how many seconds all should have left."""
LINES = 10
"""Lines that may be logged within one second."""
REQUESTS = 1500
"""Requests a second over all connections, so that the two processors of a small host suffice."""
WATCHED_S = 12.0
HEALED_S = 10.0
POLL_S = 0.1
PORT = 4000
SCRIPT = str(File(__file__).with_name("_crowd.py"))


def run(quick: bool) -> str:
    figures: list[Figure] = []
    for number, within in list(CROWDS.items())[: 1 if quick else None]:
        figures += _measure(number, within)
    return (
        f"{REQUESTS} requests a second in all; paths of 10 and 20 ms each way; the first one drops "
        f"everything for {WATCHED_S:g} s and then heals.  The times count from the first packet "
        "that is lost.  A connection notices a dead path when it sends: the last one does so after "
        "the time between two of its requests.\n\n" + table(figures)
    )


def _measure(number: int, within: float) -> list[Figure]:
    interval = max(0.2, number / REQUESTS)
    paths = [Path(delay_ms=10, rate_mbit=500), Path(delay_ms=20, rate_mbit=500)]
    with (
        Lab(paths=paths) as lab,
        tempfile.TemporaryDirectory() as folder,
    ):
        raise_limits(lab.server)
        with (
            _daemon(lab, folder) as (process, control, lines),
            crowd(lab, number, interval) as asking,
        ):
            _wait_for_subflows(control, number)
            time.sleep(2 * interval)
            busy = cpu_seconds(process.pid)
            begin = time.monotonic_ns()
            lab.paths[0].blackhole()
            last = _watch(lab)
            lab.paths[0].heal()
            time.sleep(HEALED_S)
            busy = cpu_seconds(process.pid) - busy
            back = _with_two(control)
            resident = resident_mib(process.pid)
            waits = asking.longest_waits()
    rates = Counter(int((at - begin) / 1e9) for at in lines if at >= begin)
    most = max(rates.values(), default=0)
    return [
        Figure(
            f"{number} connections: all have left after",
            f"{last:.2f} s",
            f"≤ {within:g} s",
            last <= within,
        ),
        Figure(f"{number}: time between two requests of one connection", f"{interval:.2f} s"),
        Figure(
            f"{number}: longest wait for an answer",
            f"{max(waits):.2f} s; median of the connections {sorted(waits)[number // 2]:.2f} s",
        ),
        Figure(f"{number}: on both paths {HEALED_S:g} s after it healed", f"{back}"),
        Figure(
            f"{number}: log lines in the busiest second", f"{most}", f"≤ {LINES}", most <= LINES
        ),
        Figure(
            f"{number}: processor time of the daemon, resident",
            f"{busy:.1f} s in {WATCHED_S + HEALED_S:g} s; {resident:.0f} MiB",
        ),
    ]


@contextmanager
def _daemon(lab: Lab, folder: str) -> Iterator[tuple[subprocess.Popen[bytes], str, list[int]]]:
    """A daemon with `adaptive`; its control socket and the times at which it logged a line."""
    control = f"{folder}/control"
    argv = [sys.executable, "-m", "mptcpd_ebpf", "daemon", "--control", control]
    argv.append("--path-manager=adaptive")
    process = lab.client.popen(argv, stderr=subprocess.PIPE)
    assert process.stderr is not None
    lines: list[int] = []
    reader = threading.Thread(target=_stamp, args=(process.stderr, lines))
    reader.start()
    try:
        if not wait_until(lambda: _answers(control), 20.0):
            raise LabError("the daemon did not start")
        yield process, control, lines
    finally:
        process.terminate()
        process.wait()
        reader.join()


def _stamp(log: IO[bytes], lines: list[int]) -> None:
    lines.extend(time.monotonic_ns() for _ in log)


def _answers(control: str) -> bool:
    try:
        client.get(control, "/v1/status")
    except Failure:
        return False
    return True


class Crowd:
    """Connections that are open and send requests."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def longest_waits(self) -> list[float]:
        """Ends the requests; for how long each connection waited for an answer, seconds."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        waits: list[float] = json.loads(process.stdout.readline())
        return waits


@contextmanager
def crowd(lab: Lab, number: int, interval: float) -> Iterator[Crowd]:
    """`number` connections over the first path, with a request every `interval` seconds on each."""
    path = lab.paths[0]
    where = [path.server_ip, str(PORT)]
    asks = [path.client_ip, str(number), str(interval)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    script = [sys.executable, SCRIPT]
    server = lab.server.popen([*script, "server", *where], **pipes)
    _expect(server, b"listening\n")
    process = lab.client.popen([*script, "client", *where, *asks], **pipes)
    try:
        _expect(process, b"open\n")
        yield Crowd(process)
    finally:
        for each in (process, server):
            with each:  # waits for its end and closes the pipes
                each.kill()


def _expect(process: subprocess.Popen[bytes], line: bytes) -> None:
    assert process.stdout is not None
    if process.stdout.readline() != line:
        raise LabError(f"the traffic did not print {line.decode().strip()!r}")


def _wait_for_subflows(control: str, number: int) -> None:
    if not wait_until(lambda: _with_two(control) >= number, 60.0, pause_s=1.0):
        raise LabError("not every connection got its second subflow")


def _with_two(control: str) -> int:
    """How many connections have two established subflows."""
    found = client.get(control, "/v1/connections")["connections"]
    return sum(
        sum(each["state"] == "established" for each in connection["subflows"]) >= 2
        for connection in found
    )


def _watch(lab: Lab) -> float:
    """Waits `WATCHED_S`; seconds until the last connection had left the first path, at most that.

    A subflow that is destroyed is no longer established, though its FIN is not acknowledged.
    """
    begin = time.monotonic()
    listing = ["ss", "-Htn", "state", "established", "src", lab.paths[0].client_ip]
    left = WATCHED_S
    while (passed := time.monotonic() - begin) < WATCHED_S:
        there = lab.client.run(listing).stdout.strip()
        if not there:
            left = min(left, passed)
        time.sleep(POLL_S)
    return left
