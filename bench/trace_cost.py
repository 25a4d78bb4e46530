# SPDX-License-Identifier: BSD-3-Clause
"""What the trace tools cost while a two-path transfer runs as fast as the machine can.

Each tool states its own overhead (calls and time of its programs, counted by the kernel);
that is scaled to 10 Gbit/s by the bytes that went meanwhile.  What counting itself and the
tools' processes cost is not in it, but in the throughput, which is compared within one
transfer: a span with all tools between two spans without.  Hosts and routers share one
machine here, so hooks that look at every packet are passed several times by each.
"""

import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

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
        ratios = [_ratio(lab, list(TOOLS), seconds) for _ in range(pairs)]
    low, high = median_interval(ratios)
    middle = statistics.median(ratios)
    figures.append(
        Figure(
            "throughput with all tools over without",
            f"median {middle:.3f}, 95 % interval {low:.3f}…{high:.3f}, n {len(ratios)}",
        )
    )
    return table(figures)


def _scaled(overhead: dict[str, float], mbit: float, seconds: float) -> float:
    """Per cent of a core at 10 Gbit/s: what a bit cost, times bits."""
    percent = 100 * overhead["events"] * overhead["ns_per_event"] / (seconds * 1e9)
    return percent * _GBIT * 1000 / mbit


def _traced(lab: Lab, tools: list[str], seconds: float) -> tuple[float, list[dict[str, float]]]:
    """Mbit/s of a transfer and each tool's own account of what it cost meanwhile."""
    with _running(lab, tools) as processes:
        mbit = lab.start(Bulk(seconds=seconds)).result().mbit
        return mbit, [_overhead(process) for process in processes]


def _ratio(lab: Lab, tools: list[str], seconds: float) -> float:
    """Throughput while the tools run over that before and after."""
    transfer = lab.start(Bulk())
    try:
        before = _span(seconds)
        with _running(lab, tools) as processes:
            during = _span(seconds)
            for process in processes:
                _overhead(process)
        after = _span(seconds)
    finally:
        result = transfer.stop()
    rates = [result.mbit_between(*span) for span in (before, during, after)]
    return 2 * rates[1] / (rates[0] + rates[2])


def _span(seconds: float) -> tuple[int, int]:
    began = time.monotonic_ns()
    time.sleep(seconds)
    return began, time.monotonic_ns()


@contextmanager
def _running(lab: Lab, tools: list[str]) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """The tools, all attached."""
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
        yield processes


def _overhead(process: "subprocess.Popen[bytes]") -> dict[str, float]:
    """Ends a tool; its own account."""
    process.send_signal(signal.SIGINT)
    lines = process.communicate(timeout=30)[0].splitlines()
    overhead: dict[str, float] = json.loads(lines[-1])["overhead"]
    return overhead
