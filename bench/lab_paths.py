# SPDX-License-Identifier: BSD-3-Clause
"""The accuracy and throughput of the lab's paths, and the cost of changing and creating them.

Delay: round trips of echo requests over a path of 25 ms each way, alone and while the
path beside it carries 100 Mbit/s.  Loss: the share of echo requests lost at 20 %.
Throughput: one TCP connection over one path of 1 ms.  Each backend that works here
has its rows.
"""

import re
import statistics
import time

from msgspec.structs import replace

from bench._figures import Figure, median_at_most, spread, table
from mptcpd_ebpf.lab import Bulk, Lab, Path, UnavailableError
from mptcpd_ebpf.lab.topology import BackendName

NAME = "lab paths"


def run(quick: bool) -> str:
    """A markdown table; `quick` takes fewer samples."""
    figures = []
    backends: list[BackendName] = ["nfqueue", "netem"]
    for backend in backends:
        try:
            with Lab(backend=backend):
                pass
        except UnavailableError as error:
            figures.append(Figure(backend, f"not here: {error}"))
            continue
        figures += [replace(each, what=f"{backend}: {each.what}") for each in _rows(backend, quick)]
    return table(figures)


def _rows(backend: BackendName, quick: bool) -> list[Figure]:
    pings = 100 if quick else 500
    rows = []
    paths = [Path(delay_ms=25), Path(delay_ms=5, rate_mbit=100)]
    with Lab(paths, backend=backend) as lab:
        _round_trips(lab, 3)
        rows.append(_error("25 ms each way, idle", _round_trips(lab, pings), 50))
        beside = lab.start(Bulk(path=1, transport="tcp"))
        times = _round_trips(lab, pings)
        rate = beside.stop().mbit
        label = f"25 ms each way, {rate:.0f} Mbit/s beside"
        rows.append(_error(label, times, 50))
    with Lab([Path()], backend=backend) as lab:
        lab.paths[0].set(loss_percent=20, direction="up")
        count = 1000 if quick else 5000
        lost = 100 * (1 - len(_round_trips(lab, count, interval_s=0.002)) / count)
        met = abs(lost - 20) <= 1
        rows.append(Figure("loss 20 %", f"{lost:.1f} % of {count}", "within 1 point", met))
    with Lab([Path(delay_ms=1)], backend=backend) as lab:
        seconds = 2 if quick else 5
        rates = [lab.start(Bulk(seconds=seconds, transport="tcp")).result().mbit for _ in range(3)]
        met = statistics.median(rates) >= 1000
        measured = spread(rates, "Mbit/s")
        rows.append(Figure("throughput of one path", measured, "≥ 1000 Mbit/s", met))
        rows.append(median_at_most("change delay and loss", _change_times(lab), 5, "ms", 1))
        rows.append(median_at_most("change the rate", _rate_times(lab), 5, "ms", 1))
    lives = [_life(backend) for _ in range(5 if quick else 15)]
    rows.append(median_at_most("two-path lab, up and down", lives, 1000, "ms"))
    return rows


def _round_trips(lab: Lab, count: int, interval_s: float = 0.01) -> list[float]:
    """Milliseconds of each answered echo request over the first path."""
    argv = ["ping", "-n", "-c", str(count), "-i", str(interval_s), "-W", "1"]
    out = lab.client.run([*argv, lab.paths[0].server_ip], check=False).stdout
    return [float(value) for value in re.findall(r"time=([\d.]+)", out)]


def _error(what: str, times: list[float], wanted_ms: float) -> Figure:
    """Of the mean, over both ways: the limit of 1 ms is for one."""
    error = statistics.mean(times) - wanted_ms
    above = sorted(times)[int(len(times) * 0.99)] - wanted_ms
    measured = f"mean {error:+.2f} ms over both ways, p99 {above:+.2f} ms, n {len(times)}"
    return Figure(what, measured, "error of the mean ≤ 1 ms", abs(error) <= 1)


def _change_times(lab: Lab) -> list[float]:
    times = []
    for number in range(20):
        start = time.perf_counter()
        lab.paths[0].set(delay_ms=number % 5 + 1, loss_percent=number % 3)
        times.append((time.perf_counter() - start) * 1e3)
    return times


def _rate_times(lab: Lab) -> list[float]:
    lab.paths[0].set(rate_mbit=50)
    times = []
    for number in range(20):
        start = time.perf_counter()
        lab.paths[0].set(rate_mbit=number + 10)
        times.append((time.perf_counter() - start) * 1e3)
    return times


def _life(backend: BackendName) -> float:
    start = time.perf_counter()
    with Lab([Path(delay_ms=10, rate_mbit=20), Path(delay_ms=40, rate_mbit=20)], backend=backend):
        pass
    return (time.perf_counter() - start) * 1e3
