# SPDX-License-Identifier: BSD-3-Clause
"""Lines of ``trace joins``."""

from mptcpd_ebpf.trace import words
from mptcpd_ebpf.trace.lines.base import (
    AccountLine,
    StartedLine,
    SubflowLine,
    SummaryLine,
    counted,
    indented,
)


class JoinLine(SubflowLine, frozen=True):
    """An MP_JOIN handshake came to an end.

    From the kernel's events alone, without packets, the members from `incoming` on are unknown.
    """

    outcome: str
    """``established``, ``refused``, ``failed``, ``abandoned``, ``unanswered``, ``never sent``."""
    why: str
    evidence: list[str]
    incoming: bool | None = None
    """The peer sent the SYN."""
    address_id: int | None = None
    """Of the SYN's MP_JOIN."""
    backup: bool | None = None
    syns: int | None = None
    """SYNs that were sent."""
    took_ns: int | None = None
    """From the first SYN to the outcome."""

    def text(self) -> str:
        known = self.local is not None
        if self.incoming is None:
            place = f"{self.shown_token:<8}  {self.shown_subflow}" if known else "?"
            return f"{place}  {self.outcome:<11}  {self.why}{indented(self.evidence)}"
        if not known:
            return f"?         out  {self.outcome}  {self.why}{indented(self.evidence)}"
        way = "in " if self.incoming else "out"
        address_id = "?" if self.address_id is None else self.address_id
        return (
            f"{self.shown_token:<8}  {way}  {self.outcome:<11}  {self.shown_subflow}  "
            f"id {address_id}  {words.duration(self.took_ns or 0)}  {self.why}"
            f"{indented(self.evidence)}"
        )


class JoinsSummaryLine(SummaryLine, frozen=True, tag="summary"):
    """How the joins of the run ended."""

    outcomes: dict[str, int]
    counters: dict[str, int]
    """MPTcpExt counters of joins, and by how much they moved."""

    def text(self) -> str:
        said = ", ".join(f"{count} {what}" for what, count in self.outcomes.items()) or "none"
        return f"joins: {said}{counted(self.counters)}"


LINES = StartedLine | JoinLine | JoinsSummaryLine | AccountLine
