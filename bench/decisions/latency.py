# SPDX-License-Identifier: BSD-3-Clause
"""What the records of messages say: latency after a fault, time to act and to return, switches."""

import math
from collections import Counter
from collections.abc import Iterable

from msgspec import Struct

from bench._figures import percentile
from bench.decisions.cells import Cell
from bench.decisions.records import Flow, Run, switches

SETTLED_MS = 500
"""This long after the fault, messages should be as fast as on the remaining path alone."""


class Faulted(Struct, frozen=True):
    """One arm in one cell with a fault; milliseconds, infinite if it never happened."""

    cell: str
    arm: str
    runs: int
    alone_p99: float
    """On the remaining path alone, without a fault."""
    settled_p99: float
    """Of the messages sent from `SETTLED_MS` after the fault to its end."""
    worst: float
    """Of those sent from the fault to its end."""
    unanswered: int
    actions: list[float]
    """From the fault to the first decision that leaves the path, or to the first that takes the
    other into use; of each run."""
    returns: list[float]
    """From the end of the fault until the path was used again; of each run that left it."""

    @property
    def ratio(self) -> float:
        """NaN without a run of the remaining path alone."""
        return self.settled_p99 / self.alone_p99


class Calm(Struct, frozen=True):
    """One arm in one cell without faults, or with a path that flaps."""

    cell: str
    arm: str
    runs: int
    seconds: float
    leaves: int
    """Decisions that took a path out of use."""
    needless: int
    """Those of a path beyond the number of times that one became worse."""


def faulted(runs: Iterable[Run], cells: dict[str, Cell]) -> list[Faulted]:
    """Every arm in every cell with a fault, in the order of the first run."""
    found = []
    by_cell = _by_cell(run for run in runs if run.part == "faults" and run.error is None)
    for name, arms in by_cell.items():
        cell = cells.get(name)
        if cell is None:
            continue
        alone = [
            ms for run in arms.get("alone", []) for each in run.alone for ms in _all(each.flows)
        ]
        for arm, of_arm in arms.items():
            if arm != "alone":
                found.append(_faulted(cell, arm, of_arm, percentile(alone, 99)))
    return found


def _faulted(cell: Cell, arm: str, runs: list[Run], alone_p99: float) -> Faulted:
    settled: list[float] = []
    whole: list[float] = []
    actions, returns = [], []
    faulty = cell.faulty
    for run in runs:
        begin, heal = run.faults_ms[0], run.faults_ms[-1]
        whole += _all(run.flows, begin, heal)
        settled += _all(run.flows, begin + SETTLED_MS, heal)
        if arm == "kernel":
            continue
        made = switches(run.acts)
        acted = next((s.at_ms for s in made if begin <= s.at_ms <= heal and s.moves(faulty)), None)
        actions.append(math.inf if acted is None else acted - begin)
        if acted is not None:
            back = (s for s in made if s.at_ms >= heal and s.path == faulty and not s.leaves)
            returns.append(next((s.at_ms - heal for s in back), math.inf))
    return Faulted(
        cell.id,
        arm,
        len(runs),
        alone_p99,
        percentile(settled, 99),
        max(whole, default=math.nan),
        sum(math.isinf(ms) for ms in whole),
        actions,
        returns,
    )


def calm(runs: Iterable[Run], cells: dict[str, Cell]) -> list[Calm]:
    """Every arm with a daemon that decides, in every calm cell."""
    by_cell = _by_cell(run for run in runs if run.part == "calm" and run.error is None)
    return [
        _calm(cells[name], arm, of_arm)
        for name, arms in by_cell.items()
        for arm, of_arm in arms.items()
        if arm != "kernel" and name in cells
    ]


def _calm(cell: Cell, arm: str, runs: list[Run]) -> Calm:
    left = [Counter(each.path for each in switches(run.acts) if each.leaves) for run in runs]
    return Calm(
        cell=cell.id,
        arm=arm,
        runs=len(runs),
        seconds=sum(run.length_s for run in runs),
        leaves=sum(paths.total() for paths in left),
        needless=sum(max(0, n - cell.worsens) for paths in left for n in paths.values()),
    )


def _by_cell(runs: Iterable[Run]) -> dict[str, dict[str, list[Run]]]:
    found: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        found.setdefault(run.cell, {}).setdefault(run.arm, []).append(run)
    return found


def _all(flows: Iterable[Flow], begin: float = -math.inf, end: float = math.inf) -> list[float]:
    """Latencies of the messages sent from `begin` to before `end`, ms; infinite if unanswered."""
    return [
        math.inf if latency is None else latency
        for flow in flows
        for sent, latency in flow.latencies
        if begin <= sent < end
    ]
