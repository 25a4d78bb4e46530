# SPDX-License-Identifier: BSD-3-Clause
"""Lines of ``trace life``."""

from mptcpd_ebpf.trace import words
from mptcpd_ebpf.trace.lines.base import (
    AccountLine,
    Line,
    StartedLine,
    SubflowLine,
    SummaryLine,
    counted,
    shown_owner,
)


class EstablishedLine(SubflowLine, frozen=True):
    """A subflow was established."""

    handshake_ns: int | None
    """From the first SYN; None if that was before the trace, or this host accepted it."""
    accepted: bool
    """This host answered the SYN."""

    def text(self) -> str:
        kind = "connection" if self.initial or self.initial is None else "join"
        how = "  accepted" if self.accepted else ""
        if self.handshake_ns is not None:
            how = f"  after {words.duration(self.handshake_ns)}"
        return f"{self.shown_token}  {kind:<10}  {self.shown_subflow}  {self.shown_owner}{how}"


class EndedLine(SubflowLine, frozen=True):
    """A subflow ended, or its SYN was never answered."""

    established: bool
    lasted_ns: int | None
    """Since it was established, else since its SYN; None if it is older than the trace."""
    bytes_sent: int
    bytes_acked: int
    bytes_received: int
    retransmits: int
    """Segments."""
    why: str

    def text(self) -> str:
        return (
            f"{self.shown_token}  {'end':<10}  {self.shown_subflow}  {_age(self.lasted_ns)}  "
            f"sent {words.size(self.bytes_sent)}, received {words.size(self.bytes_received)}, "
            f"retransmitted {self.retransmits}  {self.why}"
        )


class ClosedLine(Line, frozen=True):
    """The last subflow of a connection ended: the sums over all of them."""

    token: str
    lasted_ns: int | None
    """None if the connection is older than the trace."""
    subflows: int
    bytes_sent: int
    """Without what was sent again."""
    bytes_received: int
    retransmits: int
    pid: int | None
    comm: str | None

    def text(self) -> str:
        return (
            f"{self.token}  closed      {self.subflows} subflows  {_age(self.lasted_ns)}  "
            f"sent {words.size(self.bytes_sent)}, received {words.size(self.bytes_received)}, "
            f"retransmitted {self.retransmits}  {shown_owner(self.pid, self.comm)}"
        )


class LifeSummaryLine(SummaryLine, frozen=True, tag="summary"):
    """What happened during the run."""

    connections: int
    """Closed."""
    ends: dict[str, int]
    """Subflows that ended, by cause."""
    alive: int
    """Subflows that are open at the end."""

    def text(self) -> str:
        return (
            f"{self.connections} connections closed, {sum(self.ends.values())} subflows ended, "
            f"{self.alive} alive{counted(self.ends)}"
        )


def _age(lasted_ns: int | None) -> str:
    return "older than the trace" if lasted_ns is None else words.duration(lasted_ns)


LINES = StartedLine | EstablishedLine | EndedLine | ClosedLine | LifeSummaryLine | AccountLine
