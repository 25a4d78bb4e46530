# SPDX-License-Identifier: BSD-3-Clause
"""Lines of ``trace pm``."""

from typing import Any

from mptcpd_ebpf.trace import words
from mptcpd_ebpf.trace.lines.base import (
    AccountLine,
    Line,
    StartedLine,
    SummaryLine,
    counted,
    shown_owner,
)


class CommandLine(Line, frozen=True):
    """A command to the kernel's path manager."""

    command: str
    """Of include/uapi/linux/mptcp_pm.h, without its prefix."""
    asked: str
    """Its attributes in words."""
    token: str | None
    pid: int | None
    comm: str | None
    duration_ns: int
    errno: int | None
    """0: done; None: the sender did not ask for an answer."""
    said: str | None
    """The kernel's extended acknowledgement."""

    def text(self) -> str:
        if self.errno is None:
            answer = "no answer was asked for"
        elif self.errno:
            answer = f"refused: {words.error(self.errno)}"
            answer += f": {self.said}" if self.said else ""
        else:
            answer = "done"
        return (
            f"{self.token or '':<8}  command  {self.command} {self.asked}  "
            f"by {shown_owner(self.pid, self.comm)}  {words.duration(self.duration_ns)}  {answer}"
        )


class EventLine(Line, frozen=True, omit_defaults=True):
    """An event of the kernel's path manager; members that it does not carry are left out."""

    kind: str
    """``ConnectionCreated``, ``SubflowEstablished`` …, as in docs/kernel.md."""
    token: str | None
    since_command: str | None
    """The newest command that can have led to it."""
    since_command_ns: int | None
    address_id: int | None = None
    ip: str | None = None
    port: int | None = None
    local: str | None = None
    remote: str | None = None
    server_side: bool | None = None
    deny_join_id0: bool | None = None
    local_id: int | None = None
    remote_id: int | None = None
    backup: bool | None = None
    if_index: int | None = None
    error: int | None = None
    """errno of the subflow's socket."""
    reset_reason: int | None = None
    """Of MP_TCPRST (RFC 8684, 3.6)."""
    reset_flags: int | None = None

    def text(self) -> str:
        told = " ".join(f"{name}={value}" for name, value in self._carried().items() if value)
        said = f"{self.token or '':<8}  event    {self.kind} {told}"
        if self.since_command_ns is not None:
            said += f"  {words.duration(self.since_command_ns)} after {self.since_command}"
        return said

    def _carried(self) -> dict[str, Any]:
        named = EventLine.__struct_fields__
        first = named.index("address_id")
        return {name: getattr(self, name) for name in named[first:]}


class LostLine(Line, frozen=True):
    """The socket's buffer was full, and the kernel dropped events."""

    def text(self) -> str:
        return "events were lost: the socket's buffer was full"


class PmSummaryLine(SummaryLine, frozen=True, tag="summary"):
    """Commands and events of the run."""

    commands: dict[str, int]
    refused: int
    slowest_ns: int
    """The slowest command."""
    events: dict[str, int]

    def text(self) -> str:
        return (
            f"{sum(self.commands.values())} commands, {self.refused} refused, the slowest "
            f"{words.duration(self.slowest_ns)}; {sum(self.events.values())} events"
            f"{counted(self.commands)}{counted(self.events)}"
        )


LINES = StartedLine | CommandLine | EventLine | LostLine | PmSummaryLine | AccountLine
