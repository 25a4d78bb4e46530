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
    """An MP_JOIN handshake ended.

    Where the kernel refuses the BPF programs, packets are not seen, and the members from
    `incoming` on are unknown.
    """

    outcome: str
    """``established``, ``refused``, ``failed``, ``abandoned``, ``unanswered``, ``never sent``."""
    why: str
    """The cause of the outcome."""
    evidence: list[str]
    """What the cause is concluded from."""
    incoming: bool | None = None
    """Whether the peer sent the SYN."""
    address_id: int | None = None
    """Address id in the SYN's MP_JOIN, 0 to 255."""
    backup: bool | None = None
    """Whether the SYN's MP_JOIN had the backup flag."""
    syns: int | None = None
    """Number of SYNs, with retransmissions."""
    took_ns: int | None = None
    """Nanoseconds from the first SYN to the outcome."""

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
    """Number of joins by outcome."""
    counters: dict[str, int]
    """Increments of the namespace's MPTcpExt counters of joins."""

    def text(self) -> str:
        text = ", ".join(f"{count} {what}" for what, count in self.outcomes.items()) or "none"
        return f"joins: {text}{counted(self.counters)}"


LINES = StartedLine | JoinLine | JoinsSummaryLine | AccountLine
