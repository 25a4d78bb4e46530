# SPDX-License-Identifier: BSD-3-Clause
"""Lines of ``trace doctor``."""

from msgspec import Struct

from mptcpd_ebpf.trace.lines.base import AccountLine, StartedLine, SummaryLine, shown_owner


class SubflowRow(Struct, frozen=True, kw_only=True):
    """One subflow of a connection."""

    local: str
    """This host's address and port."""
    remote: str
    """The peer's address and port."""
    initial: bool | None
    """Whether it was opened with MP_CAPABLE rather than MP_JOIN."""
    backup: bool | None
    """Whether either side marked it as backup."""
    established: bool
    """Whether its TCP state is ESTABLISHED."""

    def text(self) -> str:
        return (
            f"    {self.local} → {self.remote}  "
            + ("initial" if self.initial else "joined")
            + (", backup" if self.backup else "")
            + ("" if self.established else ", not established")
        )


class ConnectionLine(SummaryLine, frozen=True):
    """A live connection."""

    token: str
    """The connection's local token, eight hexadecimal digits."""
    local: str
    """This host's address and port."""
    remote: str
    """The peer's address and port."""
    pid: int | None
    """A process that has the connection open."""
    comm: str | None
    """Name of that process, at most 15 bytes."""
    subflows: list[SubflowRow]
    """Its subflows, the initial one first."""

    def text(self) -> str:
        head = f"{self.token}  {self.local} → {self.remote}  {shown_owner(self.pid, self.comm)}"
        return "\n".join([head, *(row.text() for row in self.subflows)])


class NoConnectionLine(SummaryLine, frozen=True, tag="summary"):
    """There is no connection to list."""

    connections: int = 0
    """Number of connections."""

    def text(self) -> str:
        return "there is no MPTCP connection in this namespace"


class FindingRow(Struct, frozen=True, kw_only=True):
    """One explanation of what limits a connection."""

    cause: str
    """A short, stable name; docs/tracing.md lists them."""
    weight: float
    """How much it explains, 0 to 1."""
    words: str
    """The explanation as a sentence."""
    evidence: list[str]
    """The measurements that support it."""


class DiagnosisLine(SummaryLine, frozen=True):
    """What limits a connection."""

    token: str
    """The connection's local token, eight hexadecimal digits."""
    findings: list[FindingRow]
    """The explanations, the one with the greatest weight first."""

    def text(self) -> str:
        lines = [f"{self.token}  diagnosis, what explains most first:"]
        for number, finding in enumerate(self.findings, 1):
            lines.append(f"  {number}. {finding.words}")
            lines += [f"       {each}" for each in finding.evidence]
        return "\n".join(lines)


LINES = StartedLine | ConnectionLine | NoConnectionLine | DiagnosisLine | AccountLine
