# SPDX-License-Identifier: BSD-3-Clause
"""The cost of one event in the core, with few and with many open subflows. Every alarm passes
`Engine.handle`, so an event must cost the same with 100 and with 20 000 subflows.  A plugin that
answers each alarm with a demotion, and its answer, are part of what is measured.  Sampled and
Resynchronised carry all subflows at once; their cost is given for each one.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.commands import Command, SetBackup
from mptcpd_ebpf.core.configuration import CoreConfig
from mptcpd_ebpf.core.engine import Engine
from mptcpd_ebpf.core.measurement import AlarmKind, Measurement
from mptcpd_ebpf.core.plugin import Context, Plugin
from mptcpd_ebpf.testing import configured

NAME = "core-events"

SERVER = SockAddr("10.0.9.1", 443)
START = 10**12
STEP = 50_000
"""Nanoseconds of the fake clock between two events: 20 000 events a second."""

Timed = tuple[ev.Event, int]
Names = list[tuple[int, SockAddr]]
"""Tokens and local addresses of the open subflows."""


class Demoter(Plugin):
    name = "demoter"

    def alarm(self, ctx: Context, connection: Any, subflow: Any, alarm: Any) -> Iterator[Command]:
        yield SetBackup(
            token=subflow.token,
            local=subflow.local,
            remote=subflow.remote,
            backup=True,
            reason="bench",
        )


def run(quick: bool) -> str:
    """A markdown table: median ns an event (lowest…highest of the runs), by open subflows."""
    sizes = (100, 2_000) if quick else (100, 20_000)
    repeats = 3 if quick else 7
    columns = [_measure(size, repeats) for size in sizes]
    lines = [
        "| event | " + " | ".join(f"{size} subflows, ns" for size in sizes) + " | ratio |",
        "|---|" + "---:|" * (len(sizes) + 1),
    ]
    for kind in columns[0]:
        small, large = (statistics.median(column[kind]) for column in columns)
        cells = " | ".join(_spread(column[kind]) for column in columns)
        lines.append(f"| {kind} | {cells} | {large / small:.2f} |")
    return "\n".join(lines)


def _spread(costs: list[float]) -> str:
    return f"{statistics.median(costs):.0f} ({min(costs):.0f}…{max(costs):.0f})"


def _measure(subflows: int, repeats: int) -> dict[str, list[float]]:
    """Nanoseconds per event (or per subflow carried), one for each run."""
    kinds: dict[str, Callable[[Names], tuple[Sequence[Timed], int]]] = {
        "alarm, no plugin": lambda names: (_alarms(names), 1),
        "alarm, demoted": lambda names: (_alarms(names), 1),
        "join and its end": lambda names: (_joins(names), 1),
        "connection from begin to end": lambda _: (_connections(), 1),
        "final records of all at once": lambda names: (_final_records(names), 1),
        "tick": lambda _: ([(ev.Tick(), START)] * 1000, 1),
        "Sampled, each subflow": lambda names: (_sample(names), len(names)),
        "Resynchronised, each subflow": lambda names: (_truth(names), len(names)),
    }
    costs: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(repeats):
        for kind, build in kinds.items():
            served = Demoter.name if kind == "alarm, demoted" else None
            engine, names = _populated(subflows, served)
            events, divisor = build(names)
            costs[kind].append(_time(engine, events) / divisor)
    return costs


def _time(engine: Engine, events: Sequence[Timed]) -> float:
    handle = engine.handle
    gc.collect()
    begin = time.perf_counter_ns()
    for event, now in events:
        for decision in handle(event, now).decisions:
            handle(ev.CommandAnswered(decision_id=decision.id), now)
    return (time.perf_counter_ns() - begin) / len(events)


def _populated(subflows: int, served: str | None) -> tuple[Engine, Names]:
    """Connections of two subflows each."""
    plugin = Demoter()
    engine = Engine(lambda _: plugin)
    config = CoreConfig(default_plugin=served, destructive_per_second=10**6)
    engine.handle(configured(plugin, config=config), START)
    names: Names = []
    for token in range(1, subflows // 2 + 1):
        first, second = SockAddr("10.0.1.2", token), SockAddr("10.0.2.2", token)
        names += [(token, first), (token, second)]
        engine.handle(ev.ConnectionEstablished(token=token, local=first, remote=SERVER), START)
        engine.handle(
            ev.SubflowEstablished(token=token, local=second, remote=SERVER, local_id=1), START
        )
    return engine, names


def _seen(token: int, local: SockAddr, at: int, **more: Any) -> Measurement:
    return Measurement(
        at=at, token=token, local=local, remote=SERVER, state=1, srtt_us=20_000, **more
    )


def _alarms(names: Names) -> list[Timed]:
    chosen = names[:: max(1, len(names) // 1000)]
    return [
        (
            ev.AlarmRaised(kind=AlarmKind.RTT, measurement=_seen(*name, START + i * STEP)),
            START + i * STEP,
        )
        for i, name in enumerate(chosen)
    ]


def _joins(names: Names) -> list[Timed]:
    timed: list[Timed] = []
    for token, _ in names[:: max(1, len(names) // 1000)]:
        join: dict[str, Any] = {
            "token": token,
            "local": SockAddr("10.0.3.2", token),
            "remote": SERVER,
        }
        timed.append((ev.SubflowEstablished(**join), START + len(timed) * STEP))
        timed.append((ev.SubflowClosed(**join), START + len(timed) * STEP))
    return timed


def _connections() -> list[Timed]:
    timed: list[Timed] = []
    for token in range(10**6, 10**6 + 500):
        ends: dict[str, Any] = {"token": token, "local": SockAddr("10.0.1.2", 7), "remote": SERVER}
        last = _seen(token, SockAddr("10.0.1.2", 7), START + 1, closed=True)
        for event in (
            ev.ConnectionCreated(**ends),
            ev.ConnectionEstablished(**ends),
            ev.SubflowEnded(measurement=last),
            ev.ConnectionClosed(token=token),
        ):
            timed.append((event, START + len(timed) * STEP))
    return timed


def _final_records(names: Names) -> list[Timed]:
    """An uplink fails: every subflow closes within the grace period of every other."""
    return [
        (ev.SubflowClosed(token=token, local=local, remote=SERVER), START + i)
        for i, (token, local) in enumerate(names)
    ] + [
        (
            ev.SubflowEnded(measurement=_seen(token, local, START + i, closed=True)),
            START + len(names) + i,
        )
        for i, (token, local) in enumerate(names)
    ]


def _sample(names: Names) -> list[Timed]:
    return [(ev.Sampled(measurements=[_seen(*name, START + 1) for name in names]), START + 1)]


def _truth(names: Names) -> list[Timed]:
    live = [
        ev.LiveConnection(token=token, local=local, remote=SERVER)
        for token, local in names
        if local.ip == "10.0.1.2"
    ]
    truth = ev.Resynchronised(
        connections=live,
        subflows=[_seen(*name, START + 1) for name in names],
        links=[],
        addresses=[],
        routes=[],
    )
    return [(truth, START + 1)]
