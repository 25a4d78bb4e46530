# SPDX-License-Identifier: BSD-3-Clause
"""What the trace tools cost while a two-path transfer runs as fast as the machine can.

Each tool states its own overhead (calls and time of its programs, counted by the kernel);
that is scaled to 10 Gbit/s by the bytes that went.  What a packet socket costs beside its
filter is not in it, but in the throughput.  The transfer's throughput is compared
in pairs, without and with all tools, alternating.
"""

import json
import signal
import statistics
import subprocess
import sys
from contextlib import ExitStack

from bench._figures import Figure, median_interval, table
from mptcpd_ebpf.lab import Bulk, Lab, Path

NAME = "trace tools"
TOOLS = ("life", "joins", "resets", "retrans", "rtt", "stalls", "sched", "fallback", "pm")
_MAIN = "import sys; from mptcpd_ebpf.cli import main; main(sys.argv[1:])"
_TARGET_PERCENT = 5.0
_GBIT = 10.0


def run(quick: bool) -> str:
    """A markdown table; `quick` takes fewer and shorter runs."""
    seconds, pairs = (1.0, 3) if quick else (3.0, 10)
    figures = []
    with Lab(paths=[Path(), Path()]) as lab:
        for host in (lab.client, lab.server):
            host.run(["ip", "mptcp", "limits", "set", "subflows", "8"])
        far = lab.paths[1]
        lab.client.run(["ip", "mptcp", "endpoint", "add", far.client_ip, "subflow"])
        total = 0.0
        for tool in TOOLS:
            mbit, [overhead] = _traced(lab, [tool], seconds)
            share = _scaled(overhead, mbit, seconds)
            total += share
            each = f"{overhead['ns_per_event']} ns, {overhead['events']} events"
            figures.append(
                Figure(f"{tool} at {_GBIT:g} Gbit/s", f"{share:.2f} % of a core ({each})")
            )
        figures.append(
            Figure(
                "all tools together, added up",
                f"{total:.2f} % of a core",
                f"≤ {_TARGET_PERCENT:g} %",
                total <= _TARGET_PERCENT,
            )
        )
        ratios = []
        for _ in range(pairs):
            without = lab.start(Bulk(seconds=seconds)).result().mbit
            ratios.append(_traced(lab, list(TOOLS), seconds)[0] / without)
    low, high = median_interval(ratios)
    middle = statistics.median(ratios)
    figures.append(
        Figure(
            "throughput with all tools over without",
            f"median {middle:.3f} ({low:.3f}…{high:.3f}, n {len(ratios)})",
        )
    )
    return table(figures)


def _scaled(overhead: dict[str, float], mbit: float, seconds: float) -> float:
    """Per cent of a core at 10 Gbit/s: what a bit cost, times bits."""
    percent = 100 * overhead["events"] * overhead["ns_per_event"] / (seconds * 1e9)
    return percent * _GBIT * 1000 / mbit


def _traced(lab: Lab, tools: list[str], seconds: float) -> tuple[float, list[dict[str, float]]]:
    """Mbit/s of a transfer and each tool's own account of what it cost meanwhile."""
    with ExitStack() as stack:
        processes = []
        for tool in tools:
            process = lab.client.popen(
                [sys.executable, "-c", _MAIN, "trace", tool, "--json"], stdout=subprocess.PIPE
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()
            processes.append(process)
        mbit = lab.start(Bulk(seconds=seconds)).result().mbit
        overheads = []
        for process in processes:
            process.send_signal(signal.SIGINT)
            lines = process.communicate(timeout=30)[0].splitlines()
            overheads.append(json.loads(lines[-1])["overhead"])
    return mbit, overheads
