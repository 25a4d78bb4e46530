# SPDX-License-Identifier: BSD-3-Clause
"""Computes figures from two recordings: latencies by phase, reaction times, a conclusion.

A phase lasts from its fault to the end of the fault.  In the bulk phase a "latency" is the time
from one chunk of 128 KiB to the next, so lower is faster there too.
"""

from itertools import pairwise
from typing import TypedDict

from mptcpd_ebpf.control.schema import SCHEMA, DecisionView
from mptcpd_ebpf.demo.scenario import Phase, Recording
from mptcpd_ebpf.lab.traffic import percentiles

_LEAVES = ("DestroySubflow", "SetBackup")


class Latency(TypedDict):
    n: int
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None


class ReportedDecision(TypedDict):
    """A decision as the report shows it."""

    t: float
    """Seconds after the phase's start."""
    action: str
    subflow: str | None
    reason: str


Compared = TypedDict(
    "Compared",
    {
        "fault": str,
        "without": Latency,
        "with": Latency,
        "fault_to_action_ms": float | None,
        "heal_to_return_ms": float | None,
        "decisions": list[ReportedDecision],
    },
)


class Report(TypedDict):
    schema: int
    phases: list[Compared]


def compare(without: Recording, managed: Recording) -> Report:
    """The figures of both runs, phase by phase."""
    return {
        "schema": SCHEMA,
        "phases": [
            _compared(without, before, managed, after)
            for before, after in zip(without.phases, managed.phases, strict=True)
        ],
    }


def conclusion(report: Report) -> str:
    """The result in one sentence."""
    parts = []
    for phase in report["phases"]:
        before, after = phase["without"]["max_ms"], phase["with"]["max_ms"]
        if phase["fault"] in ("none", "bulk") or not before or not after:
            continue
        parts.append(f"{after:.0f} ms instead of {before:.0f} ms under {phase['fault']}")
    return f"The slowest message took {', '.join(parts)}."


def without_routine(decisions: list[DecisionView]) -> list[DecisionView]:
    """Decisions without the routine ones: the many probes of a path that is down."""
    return [each for each in decisions if not each["command"]["routine"]]


def reaction(
    decisions: list[tuple[int, DecisionView]], phase: Phase, ip: str
) -> tuple[float | None, float | None]:
    """Milliseconds from the fault until the path of our address `ip` was left, and from the end
    of the fault until it was used again; None for what did not happen."""
    shown = [
        (at, each)
        for at, each in decisions
        if phase.begin <= at < phase.end and not each["command"]["routine"]
    ]
    left = next((at for at, each in shown if _leaves(each, ip)), None)
    back = next((at for at, each in shown if at >= phase.heal and _returns(each, ip)), None)
    return _ms(left, phase.begin), _ms(back, phase.heal)


def _compared(without: Recording, before: Phase, managed: Recording, after: Phase) -> Compared:
    made = [(at, each) for at, each in managed.decisions if after.begin <= at < after.end]
    shown = [(at, each) for at, each in made if not each["command"]["routine"]]
    left, back = reaction(managed.decisions, after, managed.fast_ip)
    return {
        "fault": after.fault,
        "without": _latency(without, before),
        "with": _latency(managed, after),
        "fault_to_action_ms": left,
        "heal_to_return_ms": back,
        "decisions": [
            {
                "t": round((at - after.begin) / 1e9, 3),
                "action": each["action"],
                "subflow": each["subflow"],
                "reason": each["reason"],
            }
            for at, each in shown
        ],
    }


def _latency(recording: Recording, phase: Phase) -> Latency:
    if phase.fault == "bulk":
        times = [later - earlier for (earlier, _), (later, _) in pairwise(recording.bulk.arrivals)]
    else:
        times = [
            message.latency_ns
            for message in recording.messages
            if phase.begin <= message.sent_at < phase.heal and message.latency_ns is not None
        ]
    found = percentiles(times)
    return {
        "n": found.n,
        "p50_ms": found.p50_ms,
        "p99_ms": found.p99_ms,
        "max_ms": found.max_ms,
    }


def _leaves(decision: DecisionView, ip: str) -> bool:
    local = decision["command"].get("local", "")
    return decision["action"] in _LEAVES and str(local).rpartition(":")[0] == ip


def _returns(decision: DecisionView, ip: str) -> bool:
    command = decision["command"]
    if decision["action"] == "CreateSubflow":
        return command["local_ip"] == ip and not command["backup"]
    return (
        decision["action"] == "SetBackup"
        and not command["backup"]
        and str(command["local"]).rpartition(":")[0] == ip
    )


def _ms(at: int | None, since: int) -> float | None:
    return None if at is None else round((at - since) / 1e6, 1)
