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
    """TCP retransmitted a segment on its subflow."""

    seq: int
    """TCP sequence number of its first byte."""
    length: int
    """Bytes of payload."""
    cause: str
    """Why TCP retransmitted it."""
    timeouts: int
    """Consecutive retransmission timeouts."""
    srtt_us: int | None
    """Smoothed round-trip time, microseconds."""
    stale: bool
    """Whether MPTCP marked the subflow as stale."""

    def text(self) -> str:
        return (
            f"{self.shown_token}  retransmitted  {self.shown_subflow}  seq {self.seq} "
            f"{self.length} B  {self.cause}" + ("  (stale)" if self.stale else "")
        )


class ReinjectedLine(SubflowLine, frozen=True):
    """MPTCP sent a mapping again on this subflow (reinjection)."""

    data_seq: int
    """Data sequence number of its first byte."""
    length: int
    """Bytes of payload."""
    blamed: str | None
    """The subflow that has not delivered the data."""
    blamed_timeouts: int
    """Consecutive retransmission timeouts of that subflow."""
    cause: str
    """Why the data was reinjected."""

    def text(self) -> str:
        return (
            f"{self.shown_token}  reinjected     {self.shown_subflow}  data {self.data_seq:x} "
            f"{self.length} B  {self.cause}"
        )


class RetransRow(SubflowFields, frozen=True):
    """One subflow of the summary."""

    causes: dict[str, int]
    """Number of retransmissions and reinjections by cause."""


class RetransSummaryLine(SummaryLine, frozen=True, tag="summary"):
    """The retransmissions and reinjections of the run."""

    retransmissions: int
    """Number of segments that TCP retransmitted."""
    reinjections: int
    """Number of mappings that MPTCP reinjected."""
    reinjected_bytes: int
    """Bytes of payload in them."""
    counters: dict[str, int]
    """Increments of the namespace's MPTcpExt counters of retransmissions."""
    subflows: list[RetransRow]
    """The first 1000 subflows that retransmitted or reinjected."""
    others: dict[str, int]
    """Number of retransmissions and reinjections by cause, of all subflows without a row."""

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
