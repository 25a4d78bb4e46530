# SPDX-License-Identifier: BSD-3-Clause
"""``trace pm``: path-manager commands and events of all managers, with latency.

Commands are traced as the system calls that carry them (bpf/trace_pm.bpf.c), with the kernel's
answer and message; events come from the kernel's multicast group.  An event is reported with the
time since the last command for its connection.

Listening to events has an effect (`events`); the first line says so where it applies.  Where the
kernel refuses the BPF programs, events are reported without commands.
"""

import struct
from collections import Counter, deque
from dataclasses import dataclass, field
from socket import AF_INET, AF_INET6, inet_ntop

from mptcpd_ebpf.core.address import SockAddr, unmapped
from mptcpd_ebpf.core.endpoints import EndpointFlag
from mptcpd_ebpf.core.events import Event, EventsLost
from mptcpd_ebpf.core.measurement import Owner
from mptcpd_ebpf.core.names import name_of
from mptcpd_ebpf.core.token import token_text
from mptcpd_ebpf.kernel.netlink import GENERIC_HEADER, HEADER, attributes, number
from mptcpd_ebpf.kernel.pm import AddrAttr, Attr, Cmd
from mptcpd_ebpf.kernel.pm_client import mptcp_family
from mptcpd_ebpf.kernel.transport import NETLINK_GENERIC, Requester
from mptcpd_ebpf.probes import BpfUnavailable
from mptcpd_ebpf.trace.events import Events
from mptcpd_ebpf.trace.frame import Summary, Trace
from mptcpd_ebpf.trace.lines.pm import CommandLine, EventLine, LostLine, PmSummaryLine
from mptcpd_ebpf.trace.scope import Subject, bound
from mptcpd_ebpf.trace.trace_programs import Record, TracePrograms

_UNANSWERED = 0x7FFFFFFF
_RELATED_NS = 2_000_000_000
"""An event may be the result of a command within this time before it."""
_COMMANDS_KEPT = 64
_IN_PROGRESS_NS = 50_000_000
"""Delay of events: a command is recorded when it has been answered, and the removal of an endpoint
closes its subflows before that."""


@dataclass
class PmRequest:
    """A command to the path manager, decoded from its netlink message."""

    name: str
    token: int | None = None
    """Local token of the connection that it names."""
    asked: str = ""
    """Its attributes as text."""
    addresses: list[SockAddr] = field(default_factory=list)
    """The addresses that it names; port 0: any."""


def _address(nest: bytes) -> tuple[SockAddr | None, str]:
    found = attributes(nest, 0, len(nest))
    place = None
    port = number(found.get(AddrAttr.PORT, b""))
    if AddrAttr.ADDR4 in found:
        place = SockAddr(inet_ntop(AF_INET, found[AddrAttr.ADDR4]), port)
    elif AddrAttr.ADDR6 in found:
        place = SockAddr(unmapped(inet_ntop(AF_INET6, found[AddrAttr.ADDR6])), port)
    parts = [] if place is None else [str(place) if port else place.ip]
    if AddrAttr.ID in found:
        parts.append(f"id {number(found[AddrAttr.ID])}")
    flags = EndpointFlag(number(found.get(AddrAttr.FLAGS, b"")))
    if flags.name:
        parts.append(flags.name.lower().replace("|", ","))
    if AddrAttr.IF_IDX in found:
        parts.append(f"interface {number(found[AddrAttr.IF_IDX])}")
    return place, " ".join(parts)


def read_command(message: bytes) -> PmRequest:
    """Decodes a netlink message; attributes that cannot be decoded are ``malformed``."""
    code = message[HEADER.size]
    command = PmRequest(Cmd(code).name if code in Cmd.__members__.values() else f"command {code}")
    start = HEADER.size + GENERIC_HEADER.size
    try:
        found = attributes(message, start, len(message))
        texts = []
        for attr, before in ((Attr.ADDR, ""), (Attr.ADDR_REMOTE, "→ ")):
            if attr in found:
                place, text = _address(found[attr])
                texts.append(before + text)
                if place is not None:
                    command.addresses.append(place)
        if Attr.LOC_ID in found:
            texts.append(f"id {number(found[Attr.LOC_ID])}")
        for attr, what in ((Attr.SUBFLOWS, "subflows"), (Attr.RCV_ADD_ADDRS, "accepted")):
            if attr in found:
                texts.append(f"{what} {number(found[attr])}")
        command.token = number(found[Attr.TOKEN]) if Attr.TOKEN in found else None
        command.asked = " ".join(texts)
    except (ValueError, struct.error, OSError):
        return PmRequest(command.name, asked="malformed")
    return command


class PmTrace:
    """Emits commands and events in their order."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._commanded: deque[tuple[int, int | None, str]] = deque(maxlen=_COMMANDS_KEPT)
        """Time, token (None: no connection) and name of the newest commands."""
        self._admitted_before: dict[int, bool] = {}
        """By token: whether any of its events passed the filters."""
        self.commands: Counter[str] = Counter()
        self.refused = 0
        self.events: Counter[str] = Counter()
        self.slowest_ns = 0
        """Duration of the slowest command."""

    def command(self, record: Record) -> None:
        message = record["message"][: record["length"]]
        command = read_command(message)
        name, token = command.name, command.token
        owner = Owner(
            pid=record["pid"],
            uid=record["uid"],
            cgroup=record["cgroup"],
            comm=name_of(record["comm"]),
        )
        if not self._allowed(owner, command):
            return
        error = record["error"] - (1 << 32) if record["error"] >> 31 else record["error"]
        answer = record["words"].split(b"\0", 1)[0].decode(errors="replace")
        self._commanded.append((record["at"], token, name))
        self.commands[name] += 1
        self.slowest_ns = max(self.slowest_ns, record["duration_ns"])
        self.refused += error not in (0, _UNANSWERED)
        self._trace.emit(
            CommandLine(
                at=record["at"],
                command=name,
                asked=command.asked,
                token=None if token is None else token_text(token),
                pid=owner.pid,
                comm=owner.comm,
                duration_ns=record["duration_ns"],
                errno=None if error == _UNANSWERED else -error,
                said=answer or None,
            )
        )

    def _allowed(self, owner: Owner, command: PmRequest) -> bool:
        """Whether a command passes the filters, by its sender and its attributes."""
        scope = self._trace.scope
        return (
            (scope.pid is None or owner.pid == scope.pid)
            and (scope.comm is None or owner.comm == scope.comm)
            and (not scope.cgroups or owner.cgroup in scope.cgroups)
            and (scope.token is None or command.token == scope.token)
            and (scope.address is None or any(map(scope.matches, command.addresses)))
        )

    def _admits(self, token: int | None, local: SockAddr | None, remote: SockAddr | None) -> bool:
        """Whether an event passes the filters; an event without addresses passes if another event
        or a known subflow of its connection does."""
        if not self._trace.scope.is_restricted:
            return True
        if token is None:
            return False
        if local and remote:
            admitted = self._trace.admits(Subject(token=token, local=local, remote=remote))
            self._admitted_before[token] = admitted or self._admitted_before.get(token, False)
            bound(self._admitted_before)
            return admitted
        known = self._trace.directory.by_flow.values()
        return self._admitted_before.get(token) or any(
            self._trace.admits(each) for each in known if each.token == token
        )

    def _command_before(self, token: int | None, at: int) -> tuple[int | None, str | None]:
        """Age in nanoseconds and name of the newest command that may have caused an event."""
        for began, of, name in reversed(self._commanded):
            if of in (token, None) and 0 <= at - began < _RELATED_NS:
                return at - began, name
        return None, None

    def event(self, event: Event, at: int) -> None:
        kind = type(event).__name__
        if isinstance(event, EventsLost):
            self._trace.emit(LostLine(at=at))
            return
        fields = {name: getattr(event, name) for name in event.__struct_fields__}
        token = fields.pop("token", None)
        local, remote = fields.get("local"), fields.get("remote")
        if not self._admits(token, local, remote):
            return
        self.events[kind] += 1
        since, command = self._command_before(token, at)
        self._trace.emit(
            EventLine(
                at=at,
                kind=kind,
                token=None if token is None else token_text(token),
                since_command=command,
                since_command_ns=since,
                **fields
                | {
                    name: str(place)
                    for name, place in (("local", local), ("remote", remote))
                    if place is not None
                },
            )
        )


def trace_pm(trace: Trace, constants: dict[str, int]) -> Summary:
    with Requester(NETLINK_GENERIC) as requester:
        family = mptcp_family(requester).id
    pm = PmTrace(trace)
    kernel = None
    try:
        kernel = trace.open(TracePrograms("trace_pm", None, {**constants, "family": family}))
        trace.means += kernel.hooks()
    except BpfUnavailable as error:
        trace.means.append(f"only events, commands are not seen: {error}")
    events = trace.open(Events())
    trace.means += events.means()
    trace.directory.look()
    waiting: deque[tuple[Event, int]] = deque()

    def read() -> None:
        if kernel is not None:
            for record in kernel.read("trace_command"):
                pm.command(record)
        at = trace.now()
        waiting.extend((event, at) for event in events.read())

    def report(*, last: bool = False) -> None:
        while waiting and (last or trace.now() - waiting[0][1] > _IN_PROGRESS_NS):
            pm.event(*waiting.popleft())

    if kernel is not None:
        trace.watch(kernel, read)
    trace.watch(events, read)
    trace.every(0.02, report)

    def summary() -> None:
        report(last=True)
        trace.emit(
            PmSummaryLine(
                at=trace.now(),
                commands=dict(pm.commands.most_common()),
                refused=pm.refused,
                slowest_ns=pm.slowest_ns,
                events=dict(pm.events.most_common()),
            )
        )

    return summary
