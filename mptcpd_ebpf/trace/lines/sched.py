# SPDX-License-Identifier: BSD-3-Clause
"""Lines of ``trace sched``."""

from mptcpd_ebpf.trace import words
from mptcpd_ebpf.trace.lines.base import (
    AccountLine,
    Line,
    StartedLine,
    SubflowFields,
    SummaryLine,
)

AGAINST = {
    "slower": "another's queue empties earlier",
    "backup": "it is a backup and another is usable",
    "stale": "stale: it timed out and nothing has come back",
    "not_ready": "not established, or its join not confirmed",
}
"""Why the scheduler did not choose a subflow, by the member that counts it."""


class SchedRow(SubflowFields, frozen=True):
    """What the scheduler made of one subflow."""

    chosen: int
    """Decisions for it; the next four count those against it."""
    slower: int
    backup: int
    stale: int
    not_ready: int
    bytes_sent: int | None
    """Without what was sent again."""

    @property
    def shown_sent(self) -> str:
        return "? B" if self.bytes_sent is None else words.size(self.bytes_sent)

    def against(self) -> dict[str, int]:
        """Decisions against it, by reason."""
        return {why: getattr(self, name) for name, why in AGAINST.items() if getattr(self, name)}


class ChosenLine(Line, frozen=True):
    """The scheduler's decisions for a connection within the last second."""

    token: str
    subflows: list[SchedRow]

    def text(self) -> str:
        total = sum(row.chosen for row in self.subflows)
        shares = ", ".join(
            f"{_ip(row)} {words.percent(row.chosen, total)} ({row.shown_sent}){_most_against(row)}"
            for row in self.subflows
        )
        return f"{self.token}  {shares}"


class SchedSummaryLine(SummaryLine, frozen=True, tag="summary"):
    """The scheduler's decisions for a connection during the run."""

    token: str
    lasted_ns: int
    """The run."""
    rounds: int
    """Decisions."""
    full: int
    """Decisions where the best subflow's buffer was full."""
    unusable: int
    """Decisions where no subflow was usable."""
    without_ns: int
    """Time in which no subflow could be sent on."""
    unusable_ns: int
    longest_ns: int
    """The longest such time."""
    subflows: list[SchedRow]

    def text(self) -> str:
        total = sum(row.chosen for row in self.subflows)
        lines = [
            f"{self.token}  {self.rounds} decisions; nowhere to send for "
            f"{words.duration(self.without_ns)} "
            f"({words.percent(self.without_ns, self.lasted_ns)}; the longest "
            f"{words.duration(self.longest_ns)}): {self.full} times the best "
            f"subflow's buffer was full, {self.unusable} times none was usable"
        ]
        for row in self.subflows:
            lines.append(
                f"    {row.shown_subflow}  chosen {words.percent(row.chosen, total)}, "
                f"sent {row.shown_sent}"
            )
            lines += [f"        not {count} times: {why}" for why, count in row.against().items()]
        return "\n".join(lines)


class FurtherSubflowsLine(SummaryLine, frozen=True, tag="further"):
    """Ended subflows that are in no other line."""

    further: int

    def text(self) -> str:
        return f"further subflows that ended: {self.further}"


def _ip(row: SchedRow) -> str:
    return (row.local or "?").rpartition(":")[0].strip("[]")


def _most_against(row: SchedRow) -> str:
    """What was counted most against a subflow that was not chosen at all."""
    against = row.against()
    if row.chosen or not against:
        return ""
    return f" [{max(against, key=lambda why: against[why])}]"


LINES = StartedLine | ChosenLine | SchedSummaryLine | FurtherSubflowsLine | AccountLine
