# SPDX-License-Identifier: BSD-3-Clause
"""The reaction time to a fault, and the message latency meanwhile.

Hosts, paths, traffic and faults are the demo's: 2 kB and 2 kB back every 50 ms over one
connection, the fault is on the faster of two paths. Every injection has a separate connection and
daemon, so that no state carries over. Just before each, the same messages go over the remaining
path alone (the daemon is paused, so nothing is joined): the latency after an ideal reaction. The
in-kernel path manager gets the same number of injections of the same length, with a daemon that
only observes.
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from msgspec import Struct

from bench._figures import Figure, median_at_most, percentile, spread, table
from bench._machine import resident_mib
from mptcpd_ebpf.control import client
from mptcpd_ebpf.demo import findings, scenario
from mptcpd_ebpf.demo.scenario import DEMO_FAULTS, FAST, SLOW, ManagerName, Phase
from mptcpd_ebpf.lab import Lab, RequestResponse
from mptcpd_ebpf.lab.traffic import Message
from mptcpd_ebpf.lab.waiting import wait_until

NAME = "Fault and action"

ACTION_MS = 300
RETURN_MS = 5000
OVER_ALONE = 1.3
OVER_KERNEL = 0.5
SETTLED_NS = 500_000_000
"""This long after the fault, messages should be as fast as on the remaining path alone."""

_SETTLE_S = 1.5
_RETURN_S = 8.0
_AFTER_S = 0.5
_POLL_S = 0.05


class Injection(Struct, frozen=True, kw_only=True):
    """One fault and its end. Latencies are milliseconds, infinite if never answered."""

    alone: list[float]
    """On the remaining path alone, just before the fault."""
    whole: list[float]
    """Of messages sent between the fault and its end."""
    settled: list[float]
    """Of messages sent from `SETTLED_NS` after the fault to its end."""
    action_ms: float | None
    return_ms: float | None
    resident_mib: float
    """VmRSS of the daemon after it."""


class Plan(Struct, frozen=True):
    """How much."""

    injections: int
    fault_s: float
    alone: int
    """Messages over the remaining path alone, before each injection."""


def run(quick: bool) -> str:
    plan = Plan(2, 3.0, 30) if quick else Plan(10, 5.0, 50)
    lines = []
    resident: list[float] = []
    for fault, inject in DEMO_FAULTS.items():
        adaptive = _series("adaptive", inject, plan)
        kernel = _series("kernel", inject, plan)
        resident += [each.resident_mib for each in adaptive]
        lines += _figures(fault, adaptive, kernel)
    lines.append(median_at_most("daemon resident after each injection", resident, 60, "MiB", 1))
    return (
        f"Paths {FAST.delay_ms:g} and {SLOW.delay_ms:g} ms each way, {FAST.rate_mbit:g} Mbit/s; "
        f"{plan.injections} injections of {plan.fault_s:g} s of each kind on the faster path for "
        "each path manager.  *Alone* is the slower path alone, measured before each injection; "
        "*settled* are the messages sent from 500 ms after the fault until it heals, the "
        "probes of the lost path among them.\n\n" + table(lines)
    )


def _series(manager: ManagerName, inject: Callable[..., None], plan: Plan) -> list[Injection]:
    with scenario.stage(manager) as lab, tempfile.TemporaryDirectory() as folder:
        found = []
        for number in range(plan.injections):
            with scenario.daemon(lab, manager, f"{folder}/{number}") as control:
                found.append(_inject(lab, manager, inject, plan, control))
        return found


def _inject(
    lab: Lab, manager: ManagerName, inject: Callable[..., None], plan: Plan, control: str
) -> Injection:
    with _paused(control):
        # The in-kernel path manager always joins: its path alone is not measured.
        alone = RequestResponse(path=1, count=plan.alone)
        before = lab.start(alone).result().messages if manager == "adaptive" else []
    fast, slow = lab.paths
    traffic = lab.start(RequestResponse())
    try:
        slow.wait_for_subflow()
        time.sleep(_SETTLE_S)
        begin = time.monotonic_ns()
        inject(fast)
        time.sleep(plan.fault_s)
        heal = time.monotonic_ns()
        fast.heal()
        phase = Phase(fault="", begin=begin, heal=heal, end=heal + round(_RETURN_S * 1e9))
        if manager == "adaptive":
            wait_until(
                lambda: findings.reaction(scenario.decisions(control), phase, fast.client_ip)[1],
                (phase.end - time.monotonic_ns()) / 1e9,
                pause_s=_POLL_S,
            )
        time.sleep(_AFTER_S)
        messages = traffic.stop().messages
    finally:
        fast.heal()
        traffic.kill()
    action, back = findings.reaction(scenario.decisions(control), phase, fast.client_ip)
    return Injection(
        alone=_latencies(before, 0, heal),
        whole=_latencies(messages, begin, heal),
        settled=_latencies(messages, begin + SETTLED_NS, heal),
        action_ms=action if action is not None and action <= (heal - begin) / 1e6 else None,
        return_ms=back,
        resident_mib=resident_mib(client.get(control, "/v1/status")["pid"]),
    )


@contextmanager
def _paused(control: str) -> Iterator[None]:
    client.post(control, "/v1/pause")
    try:
        yield
    finally:
        client.post(control, "/v1/resume")


def _latencies(messages: list[Message], begin: int, end: int) -> list[float]:
    return [
        math.inf if each.latency_ns is None else each.latency_ns / 1e6
        for each in messages
        if begin <= each.sent_at < end
    ]


def _figures(fault: str, adaptive: list[Injection], kernel: list[Injection]) -> list[Figure]:
    actions = [each.action_ms for each in adaptive if each.action_ms is not None]
    returns = [each.return_ms for each in adaptive if each.return_ms is not None]
    alone = [value for each in adaptive for value in each.alone]
    settled = [value for each in adaptive for value in each.settled]
    kernel_settled = [value for each in kernel for value in each.settled]
    p99_alone, p99 = percentile(alone, 99), percentile(settled, 99)
    dear = sum(value > OVER_ALONE * p99_alone for value in settled)
    noisy = sum(value > OVER_ALONE * p99_alone for value in alone)
    worst = [max(each.whole) for each in adaptive]
    # An unanswered message has no latency: the next worst counts.
    kernel_worst = [max(filter(math.isfinite, each.whole)) for each in kernel]
    never = sum(math.isinf(value) for each in kernel for value in each.whole)
    ratio = max(worst) / max(kernel_worst)
    compared = fault in ("loss", "delay")
    missing = len(adaptive) - len(actions)
    return [
        median_at_most(f"{fault}: fault → action", actions, ACTION_MS, "ms"),
        *([Figure(f"{fault}: no action", f"{missing} times", "0", False)] if missing else []),
        Figure(
            f"{fault}: heal → return",
            spread(returns, "ms"),
            f"all ≤ {RETURN_MS} ms",
            len(returns) == len(adaptive) and max(returns) <= RETURN_MS,
        ),
        Figure(
            f"{fault}: p99 settled over p99 alone",
            f"{p99 / p99_alone:.2f} ({p99:.0f} over {p99_alone:.0f} ms, n {len(settled)} and "
            f"{len(alone)}); in-kernel {_times(percentile(kernel_settled, 99) / p99_alone)}",
            f"≤ {OVER_ALONE}",
            p99 <= OVER_ALONE * p99_alone,
        ),
        Figure(
            f"{fault}: messages above {OVER_ALONE} times p99 alone, settled",
            f"{dear} of {len(settled)}, the worst {max(settled):.0f} ms; alone {noisy} of "
            f"{len(alone)}",
            "0",
            dear == 0,
        ),
        Figure(
            f"{fault}: worst message of all over the in-kernel path manager's",
            f"{ratio:.2f} ({max(worst):.0f} over {max(kernel_worst):.0f} ms); worst of each "
            f"injection: {spread(worst, 'ms')} against {spread(kernel_worst, 'ms')}"
            + (f", which left {never} without an answer" if never else ""),
            f"≤ {OVER_KERNEL}" if compared else "",
            ratio <= OVER_KERNEL if compared else None,
        ),
    ]


def _times(ratio: float) -> str:
    return f"{ratio:.2f}" if math.isfinite(ratio) else "without limit (some were never answered)"
