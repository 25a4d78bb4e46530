# SPDX-License-Identifier: BSD-3-Clause
"""The cost of the probes: nanoseconds per call and per segment, and bulk throughput.

The kernel's own accounting (BPF_ENABLE_STATS) gives run time and count of each program.
Its clock costs some 60 ns a call itself, so an empty program is attached beside ours to the same
hooks and sees the same segments: the difference is the cost of ours. A descriptor enables the
accounting and is closed with this process.
"""

import ctypes
import os
import shlex
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path as FilePath

from bench._figures import Figure, median_at_most, median_interval, spread, table
from mptcpd_ebpf.kernel.fdinfo import program_fields
from mptcpd_ebpf.lab import Bulk, Lab, Path
from mptcpd_ebpf.probes import Probes
from mptcpd_ebpf.probes.libbpf import Libbpf

NAME = "Probes: cost and throughput"

_ROOT = FilePath(__file__).resolve().parent.parent
_RECEIVE, _SEND = "tp_btf/tcp_probe", "tp_btf/mptcp_subflow_get_send"
_STATS_RUN_TIME = 0  # enum bpf_stats_type
_RATIO_TARGET = 0.98
_SLICE_S = 0.4
_SETTLE_S = 0.1


@contextmanager
def _accounting() -> Iterator[None]:
    library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    descriptor = library.bpf_enable_stats(_STATS_RUN_TIME)
    if descriptor < 0:
        raise OSError(-descriptor, "bpf_enable_stats")
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _empty() -> Iterator[dict[str, int]]:
    """Empty programs, attached; their descriptors by hook."""
    with tempfile.TemporaryDirectory() as folder:
        built = FilePath(folder) / "empty.bpf.o"
        recipe = subprocess.run(
            ["make", "-nB", "build/bpf/subflow.bpf.o"],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        compiler = next(shlex.split(line) for line in recipe.splitlines() if "-target bpf" in line)
        compiler[compiler.index("-o") + 1] = str(built)
        compiler[compiler.index("bpf/subflow.bpf.c")] = "bench/empty.bpf.c"
        subprocess.run(compiler, cwd=_ROOT, check=True)
        libbpf = Libbpf()
        handle = libbpf.pointer("bpf_object__open_file", os.fsencode(built), None)
        links = []
        try:
            libbpf.number("bpf_object__load", handle)
            found = {}
            program = None
            while program := libbpf.bpf_object__next_program(handle, program):
                links.append(libbpf.pointer("bpf_program__attach", program))
                section = libbpf.bpf_program__section_name(program).decode()
                found[section] = libbpf.bpf_program__fd(program)
            yield found
        finally:
            for link in links:
                libbpf.bpf_link__destroy(link)
            libbpf.bpf_object__close(handle)


def _spent(descriptor: int) -> tuple[int, int]:
    """Nanoseconds and calls of a program so far."""
    fields = program_fields(descriptor)
    return int(fields["run_time_ns"]), int(fields["run_cnt"])


def _per_call(before: tuple[int, int], after: tuple[int, int]) -> float:
    calls = after[1] - before[1]
    return (after[0] - before[0]) / calls if calls else 0.0


def _costs(lab: Lab, workload: Bulk, rounds: int) -> dict[str, list[tuple[float, float, float]]]:
    """For each hook and round: ns a call of ours, of the empty one, calls per segment."""
    found: dict[str, list[tuple[float, float, float]]] = {_RECEIVE: [], _SEND: []}
    with (
        _accounting(),
        lab.client.entered(),
        Probes.open(netns=lab.client.netns) as probes,
        _empty() as empty,
    ):
        ours = probes.programs()
        for _ in range(rounds):
            start = {hook: (_spent(ours[hook]), _spent(empty[hook])) for hook in found}
            lab.start(workload).result()
            end = {hook: (_spent(ours[hook]), _spent(empty[hook])) for hook in found}
            segments = end[_RECEIVE][1][1] - start[_RECEIVE][1][1]
            for hook, rows in found.items():
                rows.append(
                    (
                        _per_call(start[hook][0], end[hook][0]),
                        _per_call(start[hook][1], end[hook][1]),
                        (end[hook][1][1] - start[hook][1][1]) / max(1, segments),
                    )
                )
    return found


def run(quick: bool) -> str:
    rounds, seconds, pairs = (3, 1.0, 6) if quick else (9, 3.0, 60)
    figures = []
    with Lab(paths=[Path()]) as lab:
        for workload, target in (
            (Bulk(seconds=seconds, transport="mptcp"), 60),
            (Bulk(seconds=seconds, transport="tcp"), 30),
        ):
            transport = workload.transport
            costs = _costs(lab, workload, rounds)
            total = [0.0] * rounds
            for hook, rows in costs.items():
                if not any(calls for _, _, calls in rows):
                    continue
                ours, empty = [row[0] for row in rows], [row[1] for row in rows]
                figures.append(Figure(f"{transport}: {hook}, a call", spread(ours, "ns")))
                figures.append(Figure("…empty program there", spread(empty, "ns")))
                total = [
                    sum_ + (ours - empty) * calls
                    for sum_, (ours, empty, calls) in zip(total, rows, strict=True)
                ]
            name = "MPTCP" if transport == "mptcp" else "plain TCP"
            figures.append(
                median_at_most(f"received {name} segment, over empty", total, target, "ns")
            )
        figures.append(_throughput(lab, pairs))
    return table(figures)


def _throughput(lab: Lab, pairs: int) -> Figure:
    """One upload, during which the probes are attached and detached. Rates of one transfer vary
    far less between slices than those of two transfers; the order within each pair alternates.
    """
    slices: list[dict[bool, tuple[int, int]]] = []
    traffic = lab.start(Bulk(chunk=1 << 20))
    with lab.client.entered():
        for number in range(pairs):
            order = (False, True) if number % 2 else (True, False)
            slices.append({probed: _slice(lab, probed) for probed in order})
    result = traffic.stop()
    ratios = [
        result.mbit_between(*each[True]) / result.mbit_between(*each[False]) for each in slices
    ]
    low, high = median_interval(ratios)
    return Figure(
        f"bulk throughput over veth ({result.mbit:.0f} Mbit/s), probes on / off",
        f"{spread(ratios, '', 3)}, 95 % interval of the median {low:.3f}…{high:.3f}",
        f"≥ {_RATIO_TARGET}",
        statistics.median(ratios) >= _RATIO_TARGET,
    )


def _slice(lab: Lab, probed: bool) -> tuple[int, int]:
    """Begin and end of a stretch of time with or without probes, nanoseconds."""
    with Probes.open(netns=lab.client.netns) if probed else nullcontext():
        time.sleep(_SETTLE_S)
        begin = time.monotonic_ns()
        time.sleep(_SLICE_S)
        return begin, time.monotonic_ns()
