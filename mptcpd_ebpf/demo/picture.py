# SPDX-License-Identifier: BSD-3-Clause
"""Draws a run: message latency, RTT and loss of each path, and decisions over time."""

from itertools import pairwise
from math import nan
from pathlib import Path
from typing import Any

import matplotlib

from mptcpd_ebpf.control.schema import SubflowView
from mptcpd_ebpf.demo.findings import without_routine
from mptcpd_ebpf.demo.scenario import FAST, SLOW, Phase, Recording, Sample

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

_FAST, _SLOW, _WITHOUT = "#1f77b4", "#ff7f0e", "#999999"
_FAULT_SHADE = "#d62728"


def draw(without: Recording, managed: Recording, path: Path) -> None:
    """Writes a PNG file, or the format of the file name's ending."""
    figure, (latency, rtt, loss) = plt.subplots(
        3, 1, figsize=(13, 10), sharex=True, layout="constrained"
    )
    start = managed.phases[0].begin
    _latency(latency, without, managed)
    times = [(sample.at - start) / 1e9 for sample in managed.samples]
    for ip, colour, name in (
        (managed.fast_ip, _FAST, FAST.name),
        (managed.slow_ip, _SLOW, SLOW.name),
    ):
        rows = [_subflow(sample, ip) for sample in managed.samples]
        rtt.plot(times, [_srtt_ms(row) for row in rows], ".-", color=colour, label=name)
        loss.step(times, _retransmitted(rows), where="post", color=colour, label=name)
    latency.set_ylabel("message latency, ms")
    latency.set_yscale("log")
    rtt.set_ylabel("smoothed RTT, ms")
    rtt.set_yscale("log")
    for axes in (latency, rtt):
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
    loss.set_ylabel("segments sent again\nper sample")
    loss.set_xlabel("seconds")
    for axes in (latency, rtt, loss):
        _shade(axes, managed.phases, start)
        _mark_decisions(axes, managed, start)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right")
    figure.suptitle(
        f"mptcpd-ebpf: one connection over two paths while {FAST.name} suffers (red); "
        "dotted lines are decisions"
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _latency(axes: Any, without: Recording, managed: Recording) -> None:
    for recording, colour, name in (
        (without, _WITHOUT, "in-kernel path manager"),
        (managed, _FAST, "adaptive"),
    ):
        start = recording.phases[0].begin
        answered = [m for m in recording.messages if m.latency_ns is not None]
        axes.plot(
            [(message.sent_at - start) / 1e9 for message in answered],
            [(message.latency_ns or 0) / 1e6 for message in answered],
            ".",
            markersize=3,
            color=colour,
            label=name,
        )


def _subflow(sample: Sample, ip: str) -> SubflowView | None:
    """The path's regular subflow at that moment; probes carry no data and are left out."""
    found = [
        subflow
        for connection in sample.connections["connections"]
        for subflow in connection["subflows"]
        if subflow["local"].rpartition(":")[0] == ip
        and subflow["state"] == "established"
        and not subflow["backup"]
    ]
    return found[0] if found else None


def _srtt_ms(row: SubflowView | None) -> float:
    return nan if row is None or row["srtt_us"] is None else row["srtt_us"] / 1000


def _retransmitted(rows: list[SubflowView | None]) -> list[float]:
    """Segments retransmitted since the previous sample; a new subflow counts from zero."""
    grown: list[float] = [nan]
    for before, after in pairwise(rows):
        if after is None:
            grown.append(nan)
            continue
        same = before is not None and before["local"] == after["local"]
        earlier = (before["retransmits"] or 0) if before is not None and same else 0
        grown.append(max(0, (after["retransmits"] or 0) - earlier))
    return grown


def _shade(axes: Any, phases: list[Phase], start: int) -> None:
    for phase in phases:
        if phase.fault in ("none", "bulk"):
            continue
        begin, heal = (phase.begin - start) / 1e9, (phase.heal - start) / 1e9
        axes.axvspan(begin, heal, color=_FAULT_SHADE, alpha=0.12)
        axes.annotate(phase.fault, (begin, 1.0), xycoords=("data", "axes fraction"), va="top")


def _mark_decisions(axes: Any, managed: Recording, start: int) -> None:
    shown = {
        each["id"] for each in without_routine([decision for _, decision in managed.decisions])
    }
    for at, decision in managed.decisions:
        if decision["id"] in shown:
            axes.axvline((at - start) / 1e9, linestyle=":", color="black", linewidth=0.8)
