# SPDX-License-Identifier: BSD-3-Clause
"""The output while the demo runs: the subflows, and the decisions as text.

On a terminal it is a table that is redrawn in place, elsewhere a line per phase and per
decision.
"""

from contextlib import AbstractContextManager
from typing import IO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mptcpd_ebpf.control.schema import Connections, DecisionView, SubflowView
from mptcpd_ebpf.demo.findings import without_routine

_SHOWN_DECISIONS = 8
_COLUMNS = ("subflow", "interface", "state", "srtt ms", "min ms", "sent again", "lost", "cwnd",
            "in flight", "stalled ms")  # fmt: skip


class View(AbstractContextManager["View"]):
    """Shows the progress of `scenario.run`, which calls it."""

    def __init__(self, title: str, stream: IO[str]) -> None:
        self._title = title
        self._console = Console(file=stream)
        self._live: Live | None = None
        self._phase = ""
        self._printed = 0

    def __enter__(self) -> "View":
        self._console.print(f"[bold]{self._title}[/bold]")
        if self._console.is_terminal:
            self._live = Live(console=self._console, transient=True, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, phase: str, answer: Connections, decisions: list[DecisionView]) -> None:
        """Shows the phase, the connections and the new decisions."""
        shown = without_routine(decisions)
        if phase != self._phase:
            self._phase = phase
            self._console.print(f"  {phase}")
        for decision in shown[self._printed :]:
            self._console.print(Text(f"    {sentence(decision)}"))
        self._printed = len(shown)
        if self._live is not None:
            recent = [Text(sentence(decision)) for decision in shown[-_SHOWN_DECISIONS:]]
            self._live.update(Group(_table(answer), *recent))


def sentence(decision: DecisionView) -> str:
    """``destroy 10.1.1.2:4000 → 10.1.2.2:80: nothing came back …``."""
    command = decision["command"]
    verbs = {
        "CreateSubflow": "create",
        "DestroySubflow": "destroy",
        "SetBackup": "demote" if command.get("backup") else "restore",
    }
    verb = verbs.get(decision["action"], decision["action"])
    return f"{verb} {decision['subflow'] or ''}: {decision['reason']}"


def _table(answer: Connections) -> Table:
    table = Table(*_COLUMNS)
    for connection in answer["connections"]:
        stalled = connection["stalled_ms"]
        for subflow in connection["subflows"]:
            table.add_row(*_row(subflow), "–" if stalled is None else f"{stalled:.0f}")
    return table


def _row(subflow: SubflowView) -> list[str]:
    def number(value: int | None, divisor: int = 1) -> str:
        return "–" if value is None else f"{value / divisor:.{1 if divisor > 1 else 0}f}"

    state = f"{subflow['state']}, backup" if subflow["backup"] else subflow["state"]
    return [
        f"{subflow['local']} → {subflow['remote']}",
        subflow["interface"] or "–",
        state,
        number(subflow["srtt_us"], 1000),
        number(subflow["min_rtt_us"], 1000),
        number(subflow["retransmits"]),
        number(subflow["lost"]),
        number(subflow["cwnd"]),
        number(subflow["in_flight"]),
    ]
