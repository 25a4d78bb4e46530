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
    """Its name in include/uapi/linux/mptcp_pm.h without the prefix ``MPTCP_PM_CMD_``."""
    asked: str
    """Its attributes as text."""
    token: str | None
    """Local token of the connection that it names, eight hexadecimal digits."""
    pid: int | None
    """The process that sent it."""
    comm: str | None
    """Name of that process, at most 15 bytes."""
    duration_ns: int
    """Nanoseconds that the system call took."""
    errno: int | None
    """The kernel's answer, 0 for success; null if the sender asked for no acknowledgement."""
    said: str | None
    """The kernel's message (extended acknowledgement)."""

    def text(self) -> str:
        if self.errno is None:
            answer = "no acknowledgement requested"
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
    """The connection's local token, eight hexadecimal digits."""
    since_command: str | None
    """The newest command within two seconds that may have caused it."""
    since_command_ns: int | None
    """Nanoseconds since that command."""
    address_id: int | None = None
    """Id of an address that the peer announced or withdrew."""
    ip: str | None = None
    """An address that the peer announced."""
    port: int | None = None
    """Port of that address."""
    local: str | None = None
    """This host's address and port."""
    remote: str | None = None
    """The peer's address and port."""
    server_side: bool | None = None
    """Whether this host accepted the connection."""
    deny_join_id0: bool | None = None
    """Whether the peer refuses joins to its initial address (RFC 8684, 3.1, C flag)."""
    local_id: int | None = None
    """Address id of `local`, 0 to 255."""
    remote_id: int | None = None
    """Address id of `remote`, 0 to 255."""
    backup: bool | None = None
    """Whether the peer marked the subflow as backup."""
    if_index: int | None = None
    """Index of the interface."""
    error: int | None = None
    """errno of the subflow's socket."""
    reset_reason: int | None = None
    """Reason of the peer's MP_TCPRST (RFC 8684, 3.6)."""
    reset_flags: int | None = None
    """Flags of the peer's MP_TCPRST; 1 (T): the cause is transient."""

    def text(self) -> str:
        members = " ".join(f"{name}={value}" for name, value in self._carried().items() if value)
        text = f"{self.token or '':<8}  event    {self.kind} {members}"
        if self.since_command_ns is not None:
            text += f"  {words.duration(self.since_command_ns)} after {self.since_command}"
        return text

    def _carried(self) -> dict[str, Any]:
        names = EventLine.__struct_fields__
        first = names.index("address_id")
        return {name: getattr(self, name) for name in names[first:]}


class LostLine(Line, frozen=True):
    """The socket's buffer was full, and the kernel dropped events."""

    def text(self) -> str:
        return "events were lost: the socket's buffer was full"


class PmSummaryLine(SummaryLine, frozen=True, tag="summary"):
    """Commands and events of the run."""

    commands: dict[str, int]
    """Number of commands by name."""
    refused: int
    """Number of commands that the kernel refused."""
    slowest_ns: int
    """Nanoseconds that the slowest command took."""
    events: dict[str, int]
    """Number of events by kind."""

    def text(self) -> str:
        return (
            f"{sum(self.commands.values())} commands, {self.refused} refused, the slowest "
            f"{words.duration(self.slowest_ns)}; {sum(self.events.values())} events"
            f"{counted(self.commands)}{counted(self.events)}"
        )


LINES = StartedLine | CommandLine | EventLine | LostLine | PmSummaryLine | AccountLine
