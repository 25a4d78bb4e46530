# SPDX-License-Identifier: BSD-3-Clause
"""Lines of ``trace retrans``."""

from mptcpd_ebpf.trace import words
from mptcpd_ebpf.trace.lines.base import (
    AccountLine,
    StartedLine,
    SubflowFields,
    SubflowLine,
    SummaryLine,
)


class RetransmittedLine(SubflowLine, frozen=True):
    """TCP sent a segment again on its own subflow."""

    seq: int
    """TCP sequence number."""
    length: int
    """Bytes."""
    cause: str
    timeouts: int
    """Retransmission timeouts in a row."""
    srtt_us: int | None
    stale: bool
    """MPTCP holds the subflow for stale."""

    def text(self) -> str:
        return (
            f"{self.shown_token}  retransmitted  {self.shown_subflow}  seq {self.seq} "
            f"{self.length} B  {self.cause}" + ("  (stale)" if self.stale else "")
        )


class ReinjectedLine(SubflowLine, frozen=True):
    """MPTCP sent a mapping again on this subflow."""

    data_seq: int
    """Data sequence number."""
    length: int
    """Bytes."""
    blamed: str | None
    """The subflow that holds the data unacknowledged."""
    blamed_timeouts: int
    cause: str

    def text(self) -> str:
        return (
            f"{self.shown_token}  reinjected     {self.shown_subflow}  data {self.data_seq:x} "
            f"{self.length} B  {self.cause}"
        )


class RetransRow(SubflowFields, frozen=True):
    """One subflow of the summary."""

    causes: dict[str, int]
    """Retransmissions and reinjections, by cause."""


class RetransSummaryLine(SummaryLine, frozen=True, tag="summary"):
    """What was sent again during the run."""

    retransmissions: int
    reinjections: int
    reinjected_bytes: int
    counters: dict[str, int]
    subflows: list[RetransRow]
    others: dict[str, int]
    """Of subflows beyond those that have a row."""

    def text(self) -> str:
        moved = self.counters.get("MPTCPRetrans", 0)
        lines = [
            f"{self.retransmissions} TCP retransmissions, {self.reinjections} reinjected mappings "
            f"({words.size(self.reinjected_bytes)}; counter MPTCPRetrans moved by {moved})"
        ]
        lines += [
            f"  {row.shown_token}  {row.shown_subflow}  {_causes(row.causes)}"
            for row in self.subflows
        ]
        if self.others:
            lines.append(f"  further subflows: {_causes(self.others)}")
        return "\n".join(lines)


def _causes(causes: dict[str, int]) -> str:
    return ", ".join(f"{count} {cause}" for cause, count in causes.items())


LINES = StartedLine | RetransmittedLine | ReinjectedLine | RetransSummaryLine | AccountLine
