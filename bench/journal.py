# SPDX-License-Identifier: BSD-3-Clause
"""The cost of the journal: two daemons with the same load, one of them with the journal.

Processor time is that of all threads of a daemon, user and system (/proc/PID/task/*/schedstat).
The loads alternate between the two: batches of short connections, which write most, and
connections that carry requests over two paths and are sampled every second, ten times as often as
by default.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench._figures import Figure, spread, table
from mptcpd_ebpf.control import client
from mptcpd_ebpf.demo import scenario
from mptcpd_ebpf.lab import Lab, LabError, RequestResponse, ShortConnections
from mptcpd_ebpf.lab import Path as LabPath

NAME = "The journal"

ADDED_AT_100_PER_SECOND = 2.0
ADDED_STEADY = 2.0
"""Per cent of one processor."""
_SETTLE_S = 2.5
"""Longer than the daemon waits for a final record, and than the writer for the next batch."""
_CONNECTIONS = 20
_INTERVAL_MS = 50


def run(quick: bool) -> str:
    batches, batch, rounds, seconds = (3, 500, 1, 5.0) if quick else (5, 2000, 3, 8.0)
    short: dict[bool, list[float]] = {False: [], True: []}
    steady: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        sides = {
            journal: stack.enter_context(_side(Path(folder), journal=journal))
            for journal in (False, True)
        }
        for _ in range(batches):
            for journal, (lab, pid, _) in sides.items():
                short[journal].append(_short(lab, pid, batch) / batch * 1e6)
        for _ in range(rounds):
            for journal, (lab, pid, _) in sides.items():
                steady[journal].append(100 * _steady(lab, pid, seconds) / seconds)
        view = client.get(sides[True][2], "/v1/status")["journal"]
    added = statistics.median(short[True]) - statistics.median(short[False])
    more = statistics.median(steady[True]) - statistics.median(steady[False])
    at_100 = added * 100 / 1e4
    return table(
        [
            Figure("a short connection, without the journal", spread(short[False], "µs")),
            Figure("a short connection, with the journal", spread(short[True], "µs")),
            Figure(
                "ratio", f"{statistics.median(short[True]) / statistics.median(short[False]):.2f}"
            ),
            Figure(
                "added at 100 connections per second",
                f"{at_100:.2f} % of one processor",
                f"≤ {ADDED_AT_100_PER_SECOND:g} %",
                at_100 <= ADDED_AT_100_PER_SECOND,
            ),
            Figure(
                f"{_CONNECTIONS} connections with 2 subflows, without the journal",
                spread(steady[False], "% of one processor", 2),
            ),
            Figure(
                "the same with the journal, samples every second",
                spread(steady[True], "% of one processor", 2),
            ),
            Figure(
                "added", f"{more:.2f} % of one processor", f"≤ {ADDED_STEADY:g} %",
                more <= ADDED_STEADY,
            ),
            Figure(
                f"size after {batches * batch} connections",
                f"{view['bytes'] / 1e6:.1f} MB, {view['records_dropped']} events dropped",
                "none dropped",
                view["records_dropped"] == 0,
            ),
        ]
    )  # fmt: skip


@contextmanager
def _side(folder: Path, *, journal: bool) -> Iterator[tuple[Lab, int, str]]:
    """A lab with a daemon: the lab, the daemon's process id, its control socket."""
    name = "with" if journal else "without"
    config = folder / f"{name}.yaml"
    config.write_text(
        f"path_manager: adaptive\njournal: {{enabled: {str(journal).lower()}, sample_s: 1, "
        f"path: {folder}/{name}.db}}\n"
    )
    control = str(folder / name)
    with (
        scenario.stage("adaptive", [LabPath(), LabPath()]) as lab,
        scenario.daemon(lab, "adaptive", control, "--config", str(config)),
    ):
        yield lab, client.get(control, "/v1/status")["pid"], control


def _short(lab: Lab, pid: int, count: int) -> float:
    """Seconds of processor time that a daemon spends on so many connections."""
    before = _cpu_seconds(pid)
    failed = lab.start(ShortConnections(count=count)).result().unanswered
    if failed:
        raise LabError(f"{failed} of {count} connections failed")
    time.sleep(_SETTLE_S)
    return _cpu_seconds(pid) - before


def _steady(lab: Lab, pid: int, seconds: float) -> float:
    """The same while requests are sent for so long on established connections."""
    running = [lab.start(RequestResponse(interval_ms=_INTERVAL_MS)) for _ in range(_CONNECTIONS)]
    try:
        for path in lab.paths:
            path.wait_for_subflow()
        time.sleep(_SETTLE_S)
        before = _cpu_seconds(pid)
        time.sleep(seconds)
        return _cpu_seconds(pid) - before
    finally:
        for each in running:
            each.kill()


def _cpu_seconds(pid: int) -> float:
    """Processor time of all threads so far."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
