# SPDX-License-Identifier: BSD-3-Clause
"""Lines of ``trace stalls``."""

from msgspec import Struct

from mptcpd_ebpf.trace import words
from mptcpd_ebpf.trace.lines.base import (
    AccountLine,
    StartedLine,
    SubflowFields,
    SubflowLine,
    SummaryLine,
)


class StallLine(SubflowLine, frozen=True):
    """A subflow kept its connection from sending."""

    stalled_us: int
    """Microseconds within one second in which the connection could not send because of it."""
    srtt_us: int | None
    """Smoothed round-trip time, microseconds."""
    in_flight: int | None
    """Number of segments sent and not acknowledged."""
    timeouts: int | None
    """Consecutive retransmission timeouts."""
    lost: int | None
    """Number of segments marked lost since the subflow was established."""

    def text(self) -> str:
        return (
            f"{self.shown_token}  stalled for {words.duration(self.stalled_us * 1000)} within a "
            f"second by {self.shown_subflow}  srtt {_ms(self.srtt_us)} ms, in flight "
            f"{self.in_flight}, timeouts {self.timeouts}, lost {self.lost}"
        )


class StallRow(SubflowFields, frozen=True):
    """One subflow of the summary."""

    stalled_us: int
    """Microseconds in which the connection could not send because of it."""
    srtt_us: int | None
    """Smoothed round-trip time, microseconds."""
    retransmits: int | None
    """Number of retransmitted segments since it was established."""
    lost: int | None
    """Number of segments marked lost since it was established."""


class FurtherStalls(Struct, frozen=True, kw_only=True):
    """Ended subflows that have no row."""

    subflows: int
    """Their number."""
    stalled_us: int
    """Microseconds in which connections could not send because of them."""


class StallsSummaryLine(SummaryLine, frozen=True, tag="summary"):
    """The stalled time of the run by the subflow that caused it."""

    lasted_ns: int
    """Duration of the run, nanoseconds."""
    subflows: list[StallRow]
    """The subflows, the one that stalled its connection longest first."""
    further: FurtherStalls
    """Ended subflows that have no row."""

    def text(self) -> str:
        if not self.subflows:
            return "no subflow was seen"
        lines = ["stalled time by the subflow that caused it:"]
        for row in self.subflows:
            stalled = row.stalled_us * 1000
            lines.append(
                f"  {row.shown_token}  {row.shown_subflow}  {words.duration(stalled)} "
                f"({words.percent(stalled, self.lasted_ns)} of the time)  srtt "
                f"{_ms(row.srtt_us)} ms, retransmitted {row.retransmits}, lost {row.lost}"
            )
        if self.further.subflows:
            stalled = self.further.stalled_us * 1000
            lines.append(f"  {self.further.subflows} further subflows  {words.duration(stalled)}")
        return "\n".join(lines)


def _ms(us: int | None) -> str:
    return "–" if us is None else f"{us / 1000:.1f}"


LINES = StartedLine | StallLine | StallsSummaryLine | AccountLine
