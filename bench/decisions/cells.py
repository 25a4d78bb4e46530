# SPDX-License-Identifier: BSD-3-Clause
"""The conditions under which path managers are compared, as plain data.

The grid is that of a published sweep (see plugins/score.py): a path of 5±1 ms, 100 Mbit/s and
1 % loss beside one with a multiple of its delay, a part of its rate and some loss, and two
"anchors", where the second path is slow and lossy.  Delays, loss and rates are per direction.
"""

import re
import zlib
from collections.abc import Iterator
from itertools import product
from typing import Any, Literal

from msgspec import Struct

from mptcpd_ebpf.lab import Bulk, Path, RequestResponse, Step, Stream
from mptcpd_ebpf.lab.topology import IpVersion
from mptcpd_ebpf.lab.traffic.workloads import AnyWorkload

Part = Literal["goodput", "variants", "faults", "calm"]
PARTS: tuple[Part, ...] = ("goodput", "variants", "faults", "calm")

SMALL_BUFFER = 128 * 1024
SETTLE_S = 2.0
"""From the start of the traffic to the fault: subflows join and congestion windows open."""
FAULT_S = 6.0
HEALED_S = 7.0
"""From the end of the fault to the end of the traffic; a path should be used again within 5 s."""
FADE_S = 15.0


class Cell(Struct, frozen=True, kw_only=True):
    """One condition."""

    part: Part
    name: str
    paths: list[Path]
    traffic: list[AnyWorkload]
    """What runs at the same time; each with a length."""
    ip: IpVersion = "4"
    faults: list[Step] = []
    """Seconds from the start of the traffic."""
    faulty: int = 0
    """The path of the faults."""
    fault_at: float = 0.0
    heal_at: float = 0.0
    worsens: int = 0
    """How often a path becomes worse, each of which justifies that each path is left once: the one
    for another, and that one again when the first has recovered."""
    quick: bool = False
    """In the subset of ``--quick``."""

    @property
    def id(self) -> str:
        return f"{self.part}/{self.name}"

    @property
    def length_s(self) -> float:
        """Seconds that the traffic lasts."""
        return max(_length_s(each) for each in self.traffic)

    def seed(self, repetition: int) -> int:
        """The lab's seed, the same for all arms."""
        return zlib.crc32(f"{self.id}#{repetition}".encode()) & 0x7FFFFFFF


def _length_s(workload: AnyWorkload) -> float:
    if isinstance(workload, Bulk | Stream) and workload.seconds is not None:
        return workload.seconds
    if isinstance(workload, RequestResponse) and workload.count is not None:
        return workload.count * workload.interval_ms / 1000
    raise TypeError(f"{workload} has no length")


def all_cells(seconds: float, quiet_s: float) -> list[Cell]:
    """Every cell; transfers last `seconds`, quiet periods `quiet_s`."""
    return [*_goodput(seconds), *_variants(seconds), *_faults(), *_calm(quiet_s)]


def chosen(cells: list[Cell], *, parts: list[Part], pattern: str, quick: bool) -> list[Cell]:
    """The cells of these parts whose id contains the regular expression."""
    wanted = re.compile(pattern)
    return [
        cell
        for cell in cells
        if cell.part in parts and wanted.search(cell.id) and (cell.quick or not quick)
    ]


# --- transfers

_FAST = Path(delay_ms=5, jitter_ms=1, rate_mbit=100, loss_percent=1)
_ANCHOR = Path(delay_ms=90, jitter_ms=15, rate_mbit=3, loss_percent=6)
_QUICK_GOODPUT = {
    "up/anchor_small",
    "down/anchor_small",
    "down/anchor_default",
    "up/rtt1_bw1_loss0_default",
    "down/rtt1_bw1_loss0_default",
    "up/rtt2_bw1_loss1_small",
    "down/rtt4_bw2_loss3_small",
    "up/rtt4_bw5_loss3_default",
}


def _grid() -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Name, second path, and options of the transfer."""
    buffers = {"small": {"receive_buffer": SMALL_BUFFER}, "default": {}}
    for (rtt, rate, loss), (size, options) in product(
        product((1, 2, 4), (1, 2, 5), (0, 1, 3)), buffers.items()
    ):
        delay = 5.0 * rtt
        second = Path(
            delay_ms=delay,
            jitter_ms=max(1.0, delay / 10),
            rate_mbit=100 / rate,
            loss_percent=loss + 0.1,
        )
        yield f"rtt{rtt}_bw{rate}_loss{loss}_{size}", second, options
    for size, options in buffers.items():
        yield f"anchor_{size}", _ANCHOR, options


def _goodput(seconds: float) -> Iterator[Cell]:
    for name, second, options in _grid():
        for direction in ("up", "down"):
            yield Cell(
                part="goodput",
                name=f"{direction}/{name}",
                paths=[_FAST, second],
                traffic=[Bulk(seconds=seconds, direction=direction, **options)],
                quick=f"{direction}/{name}" in _QUICK_GOODPUT,
            )


def _variants(seconds: float) -> Iterator[Cell]:
    """More paths, IPv6, bbr, two transfers at a time, and useful paths outside the grid."""
    useful = Path(delay_ms=10, rate_mbit=30, loss_percent=0.1)
    slow = Path(delay_ms=40, rate_mbit=10, loss_percent=1)
    lagging = [
        Path(delay_ms=10, rate_mbit=20),
        Path(delay_ms=80, rate_mbit=10, loss_percent=0.5),
    ]
    sets: list[tuple[str, list[Path], dict[str, Any]]] = [
        ("similar", [useful, Path(delay_ms=15, rate_mbit=30, loss_percent=0.1)], {}),
        ("lagging", lagging, {}),
        ("three_one_harmful", [_FAST, useful, _ANCHOR], {}),
        ("four_one_harmful", [_FAST, useful, slow, _ANCHOR], {}),
        ("three_useful", [_FAST, useful, useful], {}),
        ("bbr_anchor", [_FAST, _ANCHOR], {"congestion": "bbr"}),
        ("bbr_useful", [_FAST, useful], {"congestion": "bbr"}),
        ("ipv6_anchor", [_FAST, _ANCHOR], {}),
        ("ipv6_useful", [_FAST, useful], {}),
    ]
    for name, paths, options in sets:
        for direction in ("up", "down"):
            yield Cell(
                part="variants",
                name=f"{direction}/{name}",
                paths=paths,
                traffic=[Bulk(seconds=seconds, direction=direction, **options)],
                ip="6" if name.startswith("ipv6") else "4",
                quick=f"{direction}/{name}" in ("down/three_one_harmful", "up/ipv6_useful"),
            )
    for name, second in (("anchor", _ANCHOR), ("useful", useful)):
        yield Cell(
            part="variants",
            name=f"both/{name}",
            paths=[_FAST, second],
            traffic=[
                Bulk(seconds=seconds, direction="up"),
                Bulk(seconds=seconds, direction="down"),
            ],
            quick=name == "anchor",
        )


# --- messages while a path has a fault

_GOOD = Path(delay_ms=10, rate_mbit=20)
_REMAINING = Path(delay_ms=40, rate_mbit=20)
_MESSAGES: dict[str, AnyWorkload] = {
    "request-up": RequestResponse(size=4000, response_size=200),
    "request-down": RequestResponse(size=200, response_size=4000),
    "stream-up": Stream(rate_mbit=2, direction="up"),
    "stream-down": Stream(rate_mbit=2, direction="down"),
}
_QUICK_FAULTS = {
    "request-up/loss30/initial",
    "request-down/delay290/initial",
    "request-down/blackhole/joined",
    "stream-down/loss10/initial",
    "stream-up/blackhole-down/joined",
    "stream-down/rate1/initial",
}


def _fault_steps() -> dict[str, list[dict[str, Any]]]:
    """The steps of each fault; `at` counts from the fault's begin."""
    fade = [
        {
            "at": FADE_S * part / 30,
            "set": {"loss_percent": part, "delay_ms": _GOOD.delay_ms + 5 * part},
        }
        for part in range(1, 31)
    ]
    return {
        **{f"loss{loss}": [{"at": 0, "set": {"loss_percent": loss}}] for loss in (5, 10, 30)},
        **{
            f"delay{more}": [{"at": 0, "set": {"delay_ms": _GOOD.delay_ms + more}}]
            for more in (50, 290)
        },
        "rate1": [{"at": 0, "set": {"rate_mbit": 1}}],
        "blackhole": [{"at": 0, "fault": "blackhole"}],
        "blackhole-up": [{"at": 0, "fault": "blackhole", "direction": "up"}],
        "blackhole-down": [{"at": 0, "fault": "blackhole", "direction": "down"}],
        "fade": fade,
    }


def _faults() -> Iterator[Cell]:
    """The path with the fault is the faster one, which carries the messages before."""
    for (kind, workload), (fault, steps), where in product(
        _MESSAGES.items(), _fault_steps().items(), ("initial", "joined")
    ):
        faulty = 0 if where == "initial" else 1
        lasts = FADE_S + 2 if fault == "fade" else FAULT_S
        heal_at = SETTLE_S + lasts
        moved = [Step(path=faulty, **{**step, "at": SETTLE_S + step["at"]}) for step in steps]
        yield Cell(
            part="faults",
            name=f"{kind}/{fault}/{where}",
            paths=[_GOOD, _REMAINING] if faulty == 0 else [_REMAINING, _GOOD],
            traffic=[_lasting(workload, heal_at + HEALED_S)],
            faults=[*moved, Step(at=heal_at, path=faulty, fault="heal")],
            faulty=faulty,
            fault_at=SETTLE_S,
            heal_at=heal_at,
            worsens=1,
            quick=f"{kind}/{fault}/{where}" in _QUICK_FAULTS,
        )


def _lasting(workload: AnyWorkload, seconds: float) -> AnyWorkload:
    if isinstance(workload, RequestResponse):
        return RequestResponse(
            size=workload.size,
            response_size=workload.response_size,
            interval_ms=workload.interval_ms,
            count=round(seconds * 1000 / workload.interval_ms),
        )
    if isinstance(workload, Stream):
        return Stream(rate_mbit=workload.rate_mbit, direction=workload.direction, seconds=seconds)
    raise TypeError(f"{type(workload).__name__} has no messages")


# --- paths that give no reason to switch, or one again and again


def _calm(quiet_s: float) -> Iterator[Cell]:
    equal = Path(delay_ms=20, jitter_ms=8, rate_mbit=20, loss_percent=0.3)
    quiet: dict[str, AnyWorkload] = {
        **{kind: _lasting(workload, quiet_s) for kind, workload in _MESSAGES.items()},
        "bulk-up": Bulk(seconds=quiet_s, direction="up"),
        "bulk-down": Bulk(seconds=quiet_s, direction="down"),
    }
    for kind, workload in quiet.items():
        yield Cell(
            part="calm",
            name=f"equal/{kind}",
            paths=[equal, equal],
            traffic=[workload],
            quick=kind in ("request-down", "bulk-up"),
        )
    cycles = 4
    flaps = [
        Step(at=SETTLE_S + 7.0 * number + late, path=0, fault=fault)
        for number in range(cycles)
        for late, fault in ((0.0, "blackhole"), (1.5, "heal"))
    ]
    for kind in ("request-down", "stream-up"):
        yield Cell(
            part="calm",
            name=f"flapping/{kind}",
            paths=[_GOOD, _REMAINING],
            traffic=[_lasting(_MESSAGES[kind], SETTLE_S + 7.0 * cycles)],
            faults=flaps,
            fault_at=SETTLE_S,
            heal_at=SETTLE_S + 7.0 * cycles,
            worsens=cycles,
        )
