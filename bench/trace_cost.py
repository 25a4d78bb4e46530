# SPDX-License-Identifier: BSD-3-Clause
"""The cost of the trace tools during a two-path transfer at full speed.

Each tool states its own overhead (calls and time of its programs, counted by the kernel);
scaled to 10 Gbit/s by the transferred bytes. The cost of the counting and of the tools' processes
is not included, but it shows in the throughput, which is compared within one transfer: a span with
tools between two spans without.  Hosts and routers share one machine here, so every packet passes
per-packet hooks several times, and the transfer uses all processor time: the time of a tool
reduces its throughput.
"""

import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from bench._figures import Figure, median_interval, table
from mptcpd_ebpf.lab import Bulk, Lab, Path
from mptcpd_ebpf.lab.kernel_path_manager import allow_joins

NAME = "trace tools"
TOOLS = ("life", "joins", "resets", "retrans", "rtt", "stalls", "sched", "fallback", "pm")
"""Tools that observe a whole host, and can run together."""
SINGLE = (("doctor", "{token}"), ("func", "mptcp_subflow_get_send"))
"""Tools that observe one connection, or one function."""
_MAIN = "import sys; from mptcpd_ebpf.cli import main; main(sys.argv[1:])"
_TARGET_PERCENT = 5.0
_GBIT = 10.0

Call = Sequence[str]
"""A tool and its arguments."""


class Span(NamedTuple):
    """A part of a transfer with tools, between two without."""

    core_percent: list[float]
    """Of a core at 10 Gbit/s, a tool each, by its own account."""
    mbit: float
    ratio: float
    """Of the throughput to that before and after."""
    accounts: list[str]


def run(quick: bool) -> str:
    """A markdown table; `quick` takes fewer and shorter runs."""
    seconds, pairs = (1.0, 3) if quick else (2.0, 10)
    figures = []
    with Lab(paths=[Path(), Path()]) as lab:
        allow_joins(lab)
        total = 0.0
        for call in (*((tool,) for tool in TOOLS), *SINGLE):
            # The median of three: a transfer sometimes stalls.
            span = sorted(_span(lab, [call], seconds) for _ in range(3))[1]
            what = f"{call[0]} at {_GBIT:g} Gbit/s"
            figures.append(
                Figure(what, f"{span.core_percent[0]:.2f} % of a core ({span.accounts[0]})")
            )
            if call[0] in TOOLS:
                total += span.core_percent[0]
        figures.append(
            Figure(
                f"the {len(TOOLS)} that watch a host together, added up",
                f"{total:.2f} % of a core",
                f"≤ {_TARGET_PERCENT:g} %",
                total <= _TARGET_PERCENT,
            )
        )
        figures.append(_throughput(lab, "rtt alone", [("rtt",)], seconds, pairs))
        every = [(tool,) for tool in TOOLS]
        figures.append(_throughput(lab, f"these {len(TOOLS)}", every, seconds, pairs))
    return table(figures)


def _throughput(lab: Lab, what: str, calls: Sequence[Call], seconds: float, pairs: int) -> Figure:
    spans = [_span(lab, calls, seconds) for _ in range(pairs)]
    ratios = [span.ratio for span in spans]
    low, high = median_interval(ratios)
    gbit = statistics.median(span.mbit / span.ratio for span in spans) / 1000
    share = statistics.median(sum(span.core_percent) for span in spans) * gbit / _GBIT
    return Figure(
        f"throughput with {what} over without",
        f"median {statistics.median(ratios):.3f}, 95 % interval {low:.3f}…{high:.3f}, n {pairs}; "
        f"{gbit:.0f} Gbit/s without, at which the account says {share:.0f} % of a core",
    )


def _span(lab: Lab, calls: Sequence[Call], seconds: float) -> Span:
    transfer = lab.start(Bulk())
    try:
        before = _wait(seconds)
        with _running(lab, calls, f"{transfer.token or 0:08x}") as processes:
            during = _wait(seconds)
            overheads = [_overhead(process) for process in processes]
        after = _wait(seconds)
    finally:
        result = transfer.stop()
    rates = [result.mbit_between(*span) for span in (before, during, after)]
    to_target = _GBIT * 1000 / rates[1]
    return Span(
        [each["cpu_percent"] * to_target for each in overheads],
        rates[1],
        2 * rates[1] / (rates[0] + rates[2]),
        [f"{each['ns_per_event']} ns, {each['events']} events" for each in overheads],
    )


def _wait(seconds: float) -> tuple[int, int]:
    began = time.monotonic_ns()
    time.sleep(seconds)
    return began, time.monotonic_ns()


@contextmanager
def _running(
    lab: Lab, calls: Sequence[Call], token: str
) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """The tools, all attached."""
    with ExitStack() as stack:
        processes = []
        for call in calls:
            arguments = [argument.format(token=token) for argument in call]
            process = lab.client.popen(
                [sys.executable, "-c", _MAIN, "trace", *arguments, "--json"],
                stdout=subprocess.PIPE,
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()
            processes.append(process)
        yield processes


def _overhead(process: "subprocess.Popen[bytes]") -> dict[str, float]:
    """Stops a tool; returns its own figures."""
    process.send_signal(signal.SIGINT)
    lines = process.communicate(timeout=30)[0].splitlines()
    overhead: dict[str, float] = json.loads(lines[-1])["overhead"]
    return overhead
