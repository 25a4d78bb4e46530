# SPDX-License-Identifier: BSD-3-Clause
"""What probing a dead path costs a bulk transfer on the living one, and how soon the path is back.

An upload with cubic over two paths, of which one becomes a blackhole in both directions.  Its
goodput while `adaptive` probes the dead path is compared with an upload over the living path
alone, one after the other in each round.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from msgspec import Struct

from bench._figures import Figure, median_at_most, spread, table
from mptcpd_ebpf.demo import findings, scenario
from mptcpd_ebpf.demo.scenario import FAST, SLOW, Phase
from mptcpd_ebpf.lab import Bulk, Lab, RequestResponse
from mptcpd_ebpf.lab.traffic import BulkResult, RequestResponseResult
from mptcpd_ebpf.lab.waiting import wait_until

NAME = "Probes of a dead path"

SHARE = 0.99
BULK_RETURN_MS, MESSAGES_RETURN_MS = 10_000, 5_000

_JOINED_S = 2.0
_SETTLE_S = 2.0
"""From the fault until the transfer is on the living path alone."""
_RETURN_S = 15.0


class Round(Struct, frozen=True, kw_only=True):
    """One fault of each kind of traffic."""

    alone: float
    """Mbit/s over the living path."""
    probing: float
    """The same while the other one is probed."""
    bulk_return_ms: float | None
    messages_return_ms: float | None


def run(quick: bool) -> str:
    rounds, fault_s = (1, 6.0) if quick else (3, 12.0)
    found = [_round(fault_s) for _ in range(rounds)]
    ratios = [each.probing / each.alone for each in found]
    lines = [
        Figure("living path alone", spread([each.alone for each in found], "Mbit/s", 1)),
        Figure(
            "while the dead one is probed", spread([each.probing for each in found], "Mbit/s", 1)
        ),
        Figure(
            "ratio of the two",
            spread(ratios, "", 3),
            f"≥ {SHARE}",
            sorted(ratios)[len(ratios) // 2] >= SHARE,
        ),
        _returns("healed to in use, upload", [r.bulk_return_ms for r in found], BULK_RETURN_MS),
        _returns(
            "healed to in use, messages", [r.messages_return_ms for r in found], MESSAGES_RETURN_MS
        ),
    ]
    return (
        f"Uploads with cubic over paths of {FAST.delay_ms:g} and {SLOW.delay_ms:g} ms each way, "
        f"{FAST.rate_mbit:g} Mbit/s; the faster one is a blackhole for {fault_s:g} s, {rounds} "
        f"rounds.  The first {_SETTLE_S:g} s are left out.\n\n{table(lines)}"
    )


def _returns(what: str, found: list[float | None], limit: int) -> Figure:
    return median_at_most(what, [each or float("inf") for each in found], limit, "ms")


def _round(fault_s: float) -> Round:
    with scenario.stage("kernel", [SLOW]) as lab:
        result = lab.start(Bulk(seconds=fault_s + _JOINED_S)).result()
        begin = result.started_at + round(_JOINED_S * 1e9)
        alone = _goodput(result, begin, begin + round(fault_s * 1e9))
    with _probed() as (lab, control):
        bulk = lab.start(Bulk())
        phase, back = _fault(lab, control, fault_s)
        probing = _goodput(bulk.stop(), phase.begin, phase.heal)
    with _probed() as (lab, control):
        messages = lab.start(RequestResponse())
        _, messages_back = _fault(lab, control, fault_s)
        assert isinstance(messages.stop(), RequestResponseResult)
    return Round(
        alone=alone, probing=probing, bulk_return_ms=back, messages_return_ms=messages_back
    )


@contextmanager
def _probed() -> Iterator[tuple[Lab, str]]:
    with (
        tempfile.TemporaryDirectory() as folder,
        scenario.stage("adaptive") as lab,
        scenario.daemon(lab, "adaptive", f"{folder}/control") as control,
    ):
        yield lab, control


def _fault(lab: Lab, control: str, fault_s: float) -> tuple[Phase, float | None]:
    """A blackhole on the faster path; milliseconds from its end until the path is used again."""
    fast, slow = lab.paths
    slow.wait_for_subflow()
    time.sleep(_JOINED_S)
    begin = time.monotonic_ns()
    fast.blackhole()
    time.sleep(fault_s)
    heal = time.monotonic_ns()
    fast.heal()
    phase = Phase(fault="blackhole", begin=begin, heal=heal, end=heal + round(_RETURN_S * 1e9))

    def back() -> float | None:
        return findings.reaction(scenario.decisions(control), phase, fast.client_ip)[1]

    wait_until(back, _RETURN_S, pause_s=0.05)
    return phase, back()


def _goodput(result: object, begin: int, end: int) -> float:
    assert isinstance(result, BulkResult)
    return result.mbit_between(begin + round(_SETTLE_S * 1e9), end)
