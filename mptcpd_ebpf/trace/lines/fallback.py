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
    """A short name of the cause, which stays the same: docs/tracing.md lists them."""
    why: str
    counter: str | None
    """The MPTcpExt counter that moved; None if the kernel counts none."""
    evidence: list[str]
    candidates: list[str]
    """Where it is not known which connection fell back: those that may have."""

    def text(self) -> str:
        place = f"{self.shown_token}  {self.shown_subflow}"
        if self.local is None:
            place = "one of: " + (", ".join(self.candidates) or "connections that are gone")
        return f"{place}  {self.why}{indented(self.evidence)}"


class FallbackSummaryLine(SummaryLine, frozen=True, tag="summary"):
    """The fallbacks of the run."""

    counters: dict[str, int]
    """Fallbacks that were reported, by counter or reason."""
    moved: dict[str, int]
    """Counters of all connections, and by how much they moved."""
    filtered: bool
    """Whether the run reported only some connections."""

    def text(self) -> str:
        said = "fallbacks: " + ("" if self.counters else "none") + counted(self.counters)
        if self.filtered and self.moved:
            said += "\ncounters, of all connections:" + counted(self.moved)
        return said


LINES = StartedLine | FallbackLine | FallbackSummaryLine | AccountLine
