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
    """Whether this host sent it."""
    kind: str
    """``MP_FASTCLOSE``, ``MP_TCPRST`` or ``RST``."""
    reason: int | None
    """Reason in MP_TCPRST (RFC 8684, 3.6)."""
    transient: bool | None
    """T flag of MP_TCPRST: the cause is transient."""
    kernel_reason: str | None
    """Why this host's kernel sent it: a name of enum sk_rst_reason."""
    noticed: bool
    """Whether this host's kernel processed it."""
    why: str
    """The cause as a sentence."""

    def text(self) -> str:
        way = "sent" if self.sent else "received"
        return f"{self.shown_token:<8}  {way:<8}  {self.kind:<12}  {self.shown_subflow}  {self.why}"


class ResetsSummaryLine(SummaryLine, frozen=True, tag="summary"):
    """The resets of the run."""

    seen: dict[str, int]
    """Number of resets by kind and direction."""
    counters: dict[str, int]
    """Increments of the namespace's MPTcpExt counters of resets."""

    def text(self) -> str:
        text = ", ".join(f"{count} {what}" for what, count in self.seen.items()) or "none"
        return f"resets: {text}{counted(self.counters)}"


LINES = StartedLine | ResetLine | ResetsSummaryLine | AccountLine
