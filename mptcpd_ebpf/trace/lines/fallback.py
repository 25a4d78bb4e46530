# SPDX-License-Identifier: BSD-3-Clause
"""Lines of ``trace fallback``."""

from mptcpd_ebpf.trace.lines.base import (
    AccountLine,
    StartedLine,
    SubflowLine,
    SummaryLine,
    counted,
    indented,
)


class FallbackLine(SubflowLine, frozen=True):
    """A connection fell back to TCP, or never became MPTCP."""

    reason: str
    """A short, stable name of the cause; docs/tracing.md lists them."""
    why: str
    """The cause as a sentence."""
    counter: str | None
    """The MPTcpExt counter that was incremented; null if the kernel has none for this cause."""
    evidence: list[str]
    """What the line is concluded from: counters and packets."""
    candidates: list[str]
    """Subflows that may have fallen back, if it is not known which one did; at most five."""

    def text(self) -> str:
        place = f"{self.shown_token}  {self.shown_subflow}"
        if self.local is None:
            place = "one of: " + (", ".join(self.candidates) or "connections that are closed")
        return f"{place}  {self.why}{indented(self.evidence)}"


class FallbackSummaryLine(SummaryLine, frozen=True, tag="summary"):
    """The fallbacks of the run."""

    counters: dict[str, int]
    """Number of reported fallbacks by counter, or by reason where there is no counter."""
    moved: dict[str, int]
    """Increments of the namespace's MPTcpExt counters of fallbacks."""
    filtered: bool
    """Whether filters restricted the run to some connections."""

    def text(self) -> str:
        text = "fallbacks: " + ("" if self.counters else "none") + counted(self.counters)
        if self.filtered and self.moved:
            text += "\ncounters, of all connections:" + counted(self.moved)
        return text


LINES = StartedLine | FallbackLine | FallbackSummaryLine | AccountLine
