# SPDX-License-Identifier: BSD-3-Clause
"""Goodput with each path manager if the second path harms, and if it helps.

Uploads with cubic over pairs of paths from the literature: "anchors", where a slow lossy
path beside a fast one makes MPTCP slower than TCP on the fast one alone, and pairs where
the second path is worth having.  Stalled time distinguishes them, which only the probes measure.
"""

import statistics
import tempfile
from typing import Any

from bench._machine import load
from mptcpd_ebpf.demo import scenario
from mptcpd_ebpf.lab import Bulk, Path

NAME = "Harmful and useful second paths"

_FAST = Path(delay_ms=5, rate_mbit=100, loss_percent=1)
_ANCHOR = Path(delay_ms=90, rate_mbit=3, loss_percent=6)
CELLS: dict[str, tuple[list[Path], dict[str, Any]]] = {
    "5 ms 100M 1 % + 90 ms 3M 6 %, 128 KiB buffer": (
        [_FAST, _ANCHOR],
        {"receive_buffer": 128 * 1024},
    ),
    "5 ms 100M 1 % + 90 ms 3M 6 %, default buffer": ([_FAST, _ANCHOR], {}),
    "10 ms 20M + 80 ms 10M 0.5 %": (
        [Path(delay_ms=10, rate_mbit=20), Path(delay_ms=80, rate_mbit=10, loss_percent=0.5)],
        {},
    ),
    "5 ms 100M 0.1 % + 10 ms 100M 0.1 %": (
        [
            Path(delay_ms=5, rate_mbit=100, loss_percent=0.1),
            Path(delay_ms=10, rate_mbit=100, loss_percent=0.1),
        ],
        {},
    ),
}
"""Paths (delay each way, rate, loss each way) and options of the transfer."""


def run(quick: bool) -> str:
    """A markdown table of Mbit/s, medians of paired rounds."""
    rounds, seconds = (1, 4.0) if quick else (5, 15.0)
    lines = [
        f"Mbit/s, uploads of {seconds:.0f} s with cubic, median (least…most) of {rounds} rounds; "
        f"load average {load()}.",
        "",
        "| paths | fast path alone | in-kernel path manager | adaptive |",
        "|---|---|---|---|",
    ]
    for name, (paths, options) in CELLS.items():
        found: dict[str, list[float]] = {"alone": [], "kernel": [], "adaptive": []}
        for _ in range(rounds):
            found["alone"].append(_goodput("kernel", paths[:1], options, seconds))
            found["kernel"].append(_goodput("kernel", paths, options, seconds))
            found["adaptive"].append(_goodput("adaptive", paths, options, seconds))
        cells = [
            f"{statistics.median(rates):.1f} ({min(rates):.1f}…{max(rates):.1f})"
            for rates in found.values()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _goodput(
    manager: scenario.ManagerName, paths: list[Path], options: dict[str, Any], seconds: float
) -> float:
    with (
        tempfile.TemporaryDirectory() as folder,
        scenario.stage(manager, paths) as lab,
        scenario.daemon(lab, manager, f"{folder}/control"),
    ):
        return lab.start(Bulk(seconds=seconds, **options)).result().mbit
