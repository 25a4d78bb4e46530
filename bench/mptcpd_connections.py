# SPDX-License-Identifier: BSD-3-Clause
"""The cost of short connections for the daemon: Debian's mptcpd and ours, with the same options.

Each daemon gets the events of every connection of its host. Connections are made in batches,
alternating between the two; processor time and memory are read between batches. Memory of the
first batch is not counted as growth, because caches fill.
"""

import statistics
import tempfile
import time

from bench._figures import Figure, table
from bench._machine import resident_mib
from bench._mptcpd import NAMES, Side, both, cpu_seconds
from mptcpd_ebpf.lab import LabError, Path, ShortConnections

NAME = "Short connections beside mptcpd"

BATCHES = 5
_SETTLE_S = 1.5
"""Longer than the daemon waits for any final record."""


def run(quick: bool) -> str:
    batch = 500 if quick else 4_000
    seconds: list[list[float]] = [[], []]
    memory: list[list[float]] = [[], []]
    with (
        tempfile.TemporaryDirectory() as folder,
        both("addr_adv", folder, [Path()]) as sides,
    ):
        for _ in range(BATCHES):
            for number, side in enumerate(sides):
                seconds[number].append(_batch(side, batch))
                memory[number].append(resident_mib(side.process.pid))
    theirs, ours = (sum(times) / (BATCHES * batch) * 1e6 for times in seconds)
    total = BATCHES * batch
    grown = [(held[-1] - held[0]) * 2**20 / (total - batch) for held in memory]
    held = [
        f"{name} {statistics.median(each):.1f} MiB"
        for name, each in zip(NAMES, memory, strict=True)
    ]
    return table(
        [
            Figure(
                f"{total} connections, processor time of each",
                f"mptcpd {theirs:.1f} µs; ours {ours:.1f} µs; ratio {ours / theirs:.2f}",
            ),
            Figure(
                "memory left by a closed connection",
                f"mptcpd {grown[0]:.1f} bytes; ours {grown[1]:.1f} bytes",
                "ours less than a pointer",
                grown[1] < 8,
            ),
            Figure("resident", "; ".join(held)),
        ]
    )


def _batch(side: Side, count: int) -> float:
    """Seconds of processor time that a daemon spends on so many connections."""
    before = cpu_seconds(side.process.pid)
    failed = side.lab.start(ShortConnections(count=count)).result().unanswered
    if failed:
        raise LabError(f"{side.name}: {failed} of {count} connections failed")
    time.sleep(_SETTLE_S)
    return cpu_seconds(side.process.pid) - before
