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
    """Nanoseconds since the first SYN; null if that preceded the trace, or the peer sent it."""
    accepted: bool
    """Whether the peer sent the SYN."""

    def text(self) -> str:
        kind = "connection" if self.initial or self.initial is None else "join"
        how = "  accepted" if self.accepted else ""
        if self.handshake_ns is not None:
            how = f"  after {words.duration(self.handshake_ns)}"
        return f"{self.shown_token}  {kind:<10}  {self.shown_subflow}  {self.shown_owner}{how}"


class EndedLine(SubflowLine, frozen=True):
    """A subflow ended, or its SYN was never answered."""

    established: bool
    """Whether it had been established."""
    lasted_ns: int | None
    """Nanoseconds since it was established, else since its SYN; null if it is older than the
    trace."""
    bytes_sent: int
    """Bytes of payload sent, with retransmissions."""
    bytes_acked: int
    """Bytes that the peer acknowledged."""
    bytes_received: int
    """Bytes of payload received in order."""
    retransmits: int
    """Number of retransmitted segments."""
    why: str
    """The cause of the end."""

    def text(self) -> str:
        return (
            f"{self.shown_token}  {'end':<10}  {self.shown_subflow}  {_age(self.lasted_ns)}  "
            f"sent {words.size(self.bytes_sent)}, received {words.size(self.bytes_received)}, "
            f"retransmitted {self.retransmits}  {self.why}"
        )


class ClosedLine(Line, frozen=True):
    """The last subflow of a connection ended: sums over all its subflows."""

    token: str
    """The connection's local token, eight hexadecimal digits."""
    lasted_ns: int | None
    """Nanoseconds since it was established; null if it is older than the trace."""
    subflows: int
    """Number of its subflows that ended."""
    bytes_sent: int
    """Bytes of payload sent, without retransmissions."""
    bytes_received: int
    """Bytes of payload received in order."""
    retransmits: int
    """Number of retransmitted segments."""
    pid: int | None
    """The process that opened the connection; on a server, the one that opened the listener."""
    comm: str | None
    """Name of that process, at most 15 bytes."""

    def text(self) -> str:
        return (
            f"{self.token}  closed      {self.subflows} subflows  {_age(self.lasted_ns)}  "
            f"sent {words.size(self.bytes_sent)}, received {words.size(self.bytes_received)}, "
            f"retransmitted {self.retransmits}  {shown_owner(self.pid, self.comm)}"
        )


class LifeSummaryLine(SummaryLine, frozen=True, tag="summary"):
    """The ends of the run."""

    connections: int
    """Number of connections that were closed."""
    ends: dict[str, int]
    """Number of subflows that ended, by cause."""
    alive: int
    """Number of subflows that are open at the end of the run."""

    def text(self) -> str:
        return (
            f"{self.connections} connections closed, {sum(self.ends.values())} subflows ended, "
            f"{self.alive} still open{counted(self.ends)}"
        )


def _age(lasted_ns: int | None) -> str:
    return "older than the trace" if lasted_ns is None else words.duration(lasted_ns)


LINES = StartedLine | EstablishedLine | EndedLine | ClosedLine | LifeSummaryLine | AccountLine
