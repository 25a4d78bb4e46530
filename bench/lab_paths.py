# SPDX-License-Identifier: BSD-3-Clause
"""How true the lab's paths are, how fast, and what changing and making them costs.

Delay: round trips of echo requests over a path of 25 ms each way, alone and while the
path beside it carries 100 Mbit/s.  Loss: the share of echo requests lost at 20 %.
Throughput: one TCP connection over one path of 1 ms.  Each backend that works here
has its rows.
"""

import re
import statistics
import time

from mptcpd_ebpf.lab import Bulk, Lab, Path, UnavailableError
from mptcpd_ebpf.lab.topology import BackendName

NAME = "lab paths"


def run(quick: bool) -> str:
    """A markdown table; `quick` takes fewer samples."""
    rows = ["| backend | what | target | measured |", "|---|---|---|---|"]
    backends: list[BackendName] = ["nfqueue", "netem"]
    for backend in backends:
        try:
            with Lab(backend=backend):
                pass
        except UnavailableError as error:
            rows.append(f"| {backend} | | | {error} |")
            continue
        for what, target, measured in _rows(backend, quick):
            rows.append(f"| {backend} | {what} | {target} | {measured} |")
    return "\n".join(rows)


def _rows(backend: BackendName, quick: bool) -> list[tuple[str, str, str]]:
    pings = 100 if quick else 500
    rows = []
    paths = [Path(delay_ms=25), Path(delay_ms=5, rate_mbit=100)]
    with Lab(paths, backend=backend) as lab:
        _round_trips(lab, 3)
        rows.append(("25 ms each way, idle", "error ≤ 1 ms", _error(_round_trips(lab, pings), 50)))
        beside = lab.start(Bulk(path=1, transport="tcp"))
        times = _round_trips(lab, pings)
        rate = beside.stop().mbit
        label = f"25 ms each way, {rate:.0f} Mbit/s beside"
        rows.append((label, "error ≤ 1 ms", _error(times, 50)))
    with Lab([Path()], backend=backend) as lab:
        lab.paths[0].set(loss_percent=20, direction="up")
        count = 1000 if quick else 5000
        lost = 100 * (1 - len(_round_trips(lab, count, interval_s=0.002)) / count)
        rows.append(("loss 20 %", "within 1 point", f"{lost:.1f} % of {count}"))
    with Lab([Path(delay_ms=1)], backend=backend) as lab:
        seconds = 2 if quick else 5
        rates = [lab.start(Bulk(seconds=seconds, transport="tcp")).result().mbit for _ in range(3)]
        rows.append(("throughput of one path", "≥ 1000 Mbit/s", _spread(rates, "Mbit/s")))
        rows.append(("change delay and loss, ms", "≤ 5", _spread(_change_times(lab), "ms")))
        rows.append(("change the rate, ms", "≤ 5", _spread(_rate_times(lab), "ms")))
    lives = [_life(backend) for _ in range(5 if quick else 15)]
    rows.append(("two-path lab, up and down", "≤ 1000 ms", _spread(lives, "ms")))
    return rows


def _round_trips(lab: Lab, count: int, interval_s: float = 0.01) -> list[float]:
    """Milliseconds of each answered echo request over the first path."""
    argv = ["ping", "-n", "-c", str(count), "-i", str(interval_s), "-W", "1"]
    out = lab.client.run([*argv, lab.paths[0].server_ip], check=False).stdout
    return [float(value) for value in re.findall(r"time=([\d.]+)", out)]


def _error(times: list[float], wanted_ms: float) -> str:
    mean = statistics.mean(times)
    above = sorted(times)[int(len(times) * 0.99)] - wanted_ms
    return f"mean {mean - wanted_ms:+.2f} ms over both ways, p99 {above:+.2f} ms, n {len(times)}"


def _spread(values: list[float], unit: str) -> str:
    values = sorted(values)
    return (
        f"median {statistics.median(values):.1f} {unit} "
        f"({values[0]:.1f}…{values[-1]:.1f}, n {len(values)})"
    )


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


if __name__ == "__main__":
    print(run(quick=False))
