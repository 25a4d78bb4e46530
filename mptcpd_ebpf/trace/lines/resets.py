# SPDX-License-Identifier: BSD-3-Clause
"""Lines of ``trace resets``."""

from mptcpd_ebpf.trace.lines.base import (
    AccountLine,
    StartedLine,
    SubflowLine,
    SummaryLine,
    counted,
)


class ResetLine(SubflowLine, frozen=True):
    """A RST or an MP_FASTCLOSE."""

    sent: bool
    """By this host."""
    kind: str
    """``MP_FASTCLOSE``, ``MP_TCPRST`` or ``RST``."""
    reason: int | None
    """Of MP_TCPRST (RFC 8684, 3.6)."""
    transient: bool | None
    """Its T flag: the cause may go away."""
    kernel_reason: str | None
    """enum sk_rst_reason, for a reset of this host."""
    noticed: bool
    """The kernel acted on it."""
    why: str

    def text(self) -> str:
        way = "sent" if self.sent else "received"
        return f"{self.shown_token:<8}  {way:<8}  {self.kind:<12}  {self.shown_subflow}  {self.why}"


class ResetsSummaryLine(SummaryLine, frozen=True, tag="summary"):
    """The resets of the run."""

    seen: dict[str, int]
    """By kind and direction."""
    counters: dict[str, int]
    """MPTcpExt counters of resets, and by how much they moved."""

    def text(self) -> str:
        said = ", ".join(f"{count} {what}" for what, count in self.seen.items()) or "none"
        return f"resets: {said}{counted(self.counters)}"


LINES = StartedLine | ResetLine | ResetsSummaryLine | AccountLine
