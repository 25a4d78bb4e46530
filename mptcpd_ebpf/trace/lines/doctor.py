# SPDX-License-Identifier: BSD-3-Clause
"""Lines of ``trace doctor``."""

from msgspec import Struct

from mptcpd_ebpf.trace.lines.base import AccountLine, StartedLine, SummaryLine, shown_owner


class SubflowRow(Struct, frozen=True, kw_only=True):
    """One subflow of a connection."""

    local: str
    remote: str
    initial: bool | None
    backup: bool | None
    """Either side marked it backup."""
    established: bool

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
    local: str
    remote: str
    pid: int | None
    comm: str | None
    subflows: list[SubflowRow]

    def text(self) -> str:
        head = f"{self.token}  {self.local} → {self.remote}  {shown_owner(self.pid, self.comm)}"
        return "\n".join([head, *(row.text() for row in self.subflows)])


class NoConnectionLine(SummaryLine, frozen=True, tag="summary"):
    """There is no connection to list."""

    connections: int = 0

    def text(self) -> str:
        return "no connection is alive in this namespace"


class FindingRow(Struct, frozen=True, kw_only=True):
    """One explanation of what limits a connection."""

    cause: str
    """A short name, which stays the same: docs/tracing.md lists them."""
    weight: float
    """0 to 1: how much it explains."""
    words: str
    evidence: list[str]


class DiagnosisLine(SummaryLine, frozen=True):
    """What limits a connection, ranked."""

    token: str
    findings: list[FindingRow]

    def text(self) -> str:
        lines = [f"{self.token}  diagnosis, what explains most first:"]
        for number, finding in enumerate(self.findings, 1):
            lines.append(f"  {number}. {finding.words}")
            lines += [f"       {each}" for each in finding.evidence]
        return "\n".join(lines)


LINES = StartedLine | ConnectionLine | NoConnectionLine | DiagnosisLine | AccountLine
