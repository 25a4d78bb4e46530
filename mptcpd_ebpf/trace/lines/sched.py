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
    "slower": "the queue of another subflow empties earlier",
    "backup": "it is a backup and a regular subflow is usable",
    "stale": "it is stale: it timed out and no acknowledgement has arrived since",
    "not_ready": "it is not established, or its join is not confirmed",
}
"""Why the scheduler did not choose a subflow, by the member that counts it."""


class SchedRow(SubflowFields, frozen=True):
    """The scheduler's decisions about one subflow."""

    chosen: int
    """Number of decisions for it."""
    slower: int
    """Number of decisions against it because the queue of another subflow empties earlier."""
    backup: int
    """Number of decisions against it because it is a backup and a regular subflow is usable."""
    stale: int
    """Number of decisions against it because it is stale."""
    not_ready: int
    """Number of decisions against it because it is not established or its join not confirmed."""
    bytes_sent: int | None
    """Bytes of payload sent, without retransmissions."""

    @property
    def shown_sent(self) -> str:
        return "? B" if self.bytes_sent is None else words.size(self.bytes_sent)

    def against(self) -> dict[str, int]:
        """Decisions against it, by reason."""
        return {why: getattr(self, name) for name, why in AGAINST.items() if getattr(self, name)}


class ChosenLine(Line, frozen=True):
    """The scheduler's decisions for a connection within the last second."""

    token: str
    """The connection's local token, eight hexadecimal digits."""
    subflows: list[SchedRow]
    """Its subflows with decisions in that second."""

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
    """The connection's local token, eight hexadecimal digits."""
    lasted_ns: int
    """Duration of the run, nanoseconds."""
    rounds: int
    """Number of decisions."""
    full: int
    """Number of decisions with the best subflow's send buffer full."""
    unusable: int
    """Number of decisions with no usable subflow."""
    without_ns: int
    """Nanoseconds during which no subflow could be chosen, for either reason."""
    unusable_ns: int
    """Nanoseconds during which no subflow was usable."""
    longest_ns: int
    """The longest time without a choice, nanoseconds."""
    subflows: list[SchedRow]
    """Its subflows with decisions."""

    def text(self) -> str:
        total = sum(row.chosen for row in self.subflows)
        lines = [
            f"{self.token}  {self.rounds} decisions; no subflow could be chosen for "
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
            lines += [
                f"        not chosen {count} times: {why}" for why, count in row.against().items()
            ]
        return "\n".join(lines)


class FurtherSubflowsLine(SummaryLine, frozen=True, tag="further"):
    """Ended subflows that are in no other line."""

    further: int
    """Their number."""

    def text(self) -> str:
        return f"further subflows that ended: {self.further}"


def _ip(row: SchedRow) -> str:
    return (row.local or "?").rpartition(":")[0].strip("[]")


def _most_against(row: SchedRow) -> str:
    """The most frequent reason against a subflow that was never chosen."""
    against = row.against()
    if row.chosen or not against:
        return ""
    return f" [{max(against, key=lambda why: against[why])}]"


LINES = StartedLine | ChosenLine | SchedSummaryLine | FurtherSubflowsLine | AccountLine
