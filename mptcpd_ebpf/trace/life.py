# SPDX-License-Identifier: BSD-3-Clause
"""``trace life``: every connection and subflow from its first SYN to its end.

The sources are inet_sock_set_state, tcp_send_reset, tcp_receive_reset and tcp_destroy_sock, whose
records carry TCP's own counters.  A subflow has ended when its state is CLOSE; the socket of an
initial subflow remains as long as its connection.  The cause of an end is what came first: a
reset in either direction, the socket's error, or the first FIN (from ESTABLISHED to FIN_WAIT1:
sent by this host; to CLOSE_WAIT: by the peer).  A subflow that this host closes before its SYN
was answered has no error.  A connection is closed when none of its subflows is open; subflows
older than the trace are known from inet_diag.  The sums of a connection include the subflows that
pass the filters.
"""

import errno
from collections import Counter
from dataclasses import dataclass, field

from mptcpd_ebpf.core.measurement import Measurement, Owner
from mptcpd_ebpf.core.token import token_text
from mptcpd_ebpf.probes.kernel_types import KernelTypes
from mptcpd_ebpf.trace import words
from mptcpd_ebpf.trace.frame import Summary, Trace
from mptcpd_ebpf.trace.lines.life import ClosedLine, EndedLine, EstablishedLine, LifeSummaryLine
from mptcpd_ebpf.trace.scope import Subject, bound
from mptcpd_ebpf.trace.trace_programs import Record, TracePrograms

_ESTABLISHED, _SYN_SENT, _SYN_RECV, _FIN_WAIT1, _CLOSE, _CLOSE_WAIT = 1, 2, 3, 4, 7, 8
_SETTLE_NS = 50_000_000
"""The record of a reset that this host sends may follow the record of the resulting state."""
_NO_REASON = 0xFF


@dataclass
class Life:
    """One subflow."""

    subject: Subject
    opened_at: int | None = None
    established_at: int | None = None
    why: str | None = None
    """The cause of its end, as known from the first record that indicates one."""
    last: Record | None = None
    """The record of its end, kept while further records may follow."""
    reported: bool = False


@dataclass
class ConnectionLife:
    """One connection: its open subflows, and sums over all that pass the filters."""

    opened_at: int | None
    """CLOCK_MONOTONIC nanoseconds; None if it is older than the trace."""
    live: set[int] = field(default_factory=set)
    """Socket cookies of the open subflows."""
    admitted: set[int] = field(default_factory=set)
    """Those of them that pass the filters."""
    subflows: int = 0
    """Number of subflows so far that pass the filters."""
    sent: int = 0
    """Bytes, without retransmissions."""
    received: int = 0
    """Bytes."""
    retransmitted: int = 0
    """Segments."""


class LifeTrace:
    """Follows subflows and connections by the kernel's records, and emits their lines."""

    def __init__(self, trace: Trace, kinds: dict[int, str], reasons: dict[int, str]) -> None:
        self._trace = trace
        self._kinds = kinds
        self._reasons = reasons
        self._lives: dict[int, Life] = {}
        self._connections: dict[int, ConnectionLife] = {}
        self.ends: Counter[str] = Counter()
        self.connections = 0

    def begin(self, present: list[Measurement]) -> None:
        """Adds the subflows that are older than the trace."""
        for each in present:
            if each.cookie and each.state not in (_SYN_SENT, _SYN_RECV):
                subject = self._trace.directory.of_measurement(each)
                self._lives[each.cookie] = Life(subject)
                self._enter(each.token, each.cookie, subject, None)

    def take(self, record: Record) -> None:
        subject = self._trace.directory.of_record(record)
        cookie = record["cookie"]
        life = self._lives.get(cookie)
        if life is None:
            life = self._lives[cookie] = Life(subject)
            bound(self._lives)
        match self._kinds[record["kind"]]:
            case "TRACE_STATE":
                self._state(life, record)
            case "TRACE_RESET_SENT":
                life.why = life.why or reset_here(record, self._reasons)
            case "TRACE_RESET_RECEIVED":
                life.why = life.why or "reset by the peer"
            case "TRACE_ENDED":
                life.last = life.last or record
                self._ended(life, life.last)
                self._lives.pop(cookie, None)
                self._trace.directory.forget(subject)

    def _state(self, life: Life, record: Record) -> None:
        old, new = record["old_state"], record["state"]
        if new == _CLOSE:
            life.last = record
        elif new in (_SYN_SENT, _SYN_RECV) and life.opened_at is None:
            life.opened_at = record["at"]
        if new == _ESTABLISHED:
            self._established(life, record)
        elif old == _ESTABLISHED and life.why is None:
            if new == _FIN_WAIT1:
                life.why = "closed by this host"
            elif new == _CLOSE_WAIT:
                life.why = "closed by the peer"
        if record["error"] and (life.why is None or life.why.startswith("closed")):
            life.why = _error_words(record, life)

    def _established(self, life: Life, record: Record) -> None:
        life.established_at = record["at"]
        subject, token = life.subject, life.subject.token
        if token is None:
            return
        opened_at = record["at"] if life.opened_at is None else life.opened_at
        if not self._enter(token, record["cookie"], subject, opened_at):
            return
        took = None if life.opened_at is None else record["at"] - life.opened_at
        self._trace.emit(
            EstablishedLine(
                at=record["at"],
                **subject.fields(),
                handshake_ns=took,
                accepted=record["old_state"] == _SYN_RECV,
            )
        )

    def _enter(self, token: int, cookie: int, subject: Subject, opened_at: int | None) -> bool:
        """Adds an open subflow to its connection; returns whether it passes the filters."""
        connection = self._connections.get(token)
        if connection is None:
            connection = self._connections[token] = ConnectionLife(opened_at)
            bound(self._connections)
        connection.live.add(cookie)
        admitted = self._trace.admits(subject)
        if admitted and cookie not in connection.admitted:
            connection.admitted.add(cookie)
            connection.subflows += 1
        return admitted

    def settle(self, now: int, *, last: bool = False) -> None:
        """Reports the ends for which no further record is expected."""
        for life in list(self._lives.values()):
            if life.last and not life.reported and (last or now - life.last["at"] > _SETTLE_NS):
                self._ended(life, life.last)

    def _ended(self, life: Life, record: Record) -> None:
        if life.reported:
            return
        life.reported = True
        subject = life.subject
        why = life.why
        if record["reset_reason"] != _NO_REASON:
            reset = words.reset(record["reset_reason"], bool(record["reset_transient"]))
            why = f"reset by the peer (MP_TCPRST {reset})"
        if why is None:
            why = _error_words(record, life) if record["error"] else _no_error_words(record)
        began = life.established_at or life.opened_at
        lasted = None if began is None else record["at"] - began
        self._trace.directory.find_owner(subject)
        if self._trace.admits(subject):
            self.ends[why] += 1
            self._trace.emit(
                EndedLine(
                    at=record["at"],
                    **subject.fields(),
                    established=life.established_at is not None,
                    lasted_ns=lasted,
                    bytes_sent=record["bytes_sent"],
                    bytes_acked=record["bytes_acked"],
                    bytes_received=record["bytes_received"],
                    retransmits=record["total_retrans"],
                    why=why,
                )
            )
        self._leave(subject, record)

    def _leave(self, subject: Subject, record: Record) -> None:
        connection = self._connections.get(subject.token or 0)
        if connection is None or subject.token is None:
            return
        cookie = record["cookie"]
        if self._trace.admits(subject):
            if cookie in connection.live - connection.admitted:  # its process became known late
                connection.subflows += 1
            connection.sent += record["bytes_sent"] - record["bytes_retrans"]
            connection.received += record["bytes_received"]
            connection.retransmitted += record["total_retrans"]
        connection.live.discard(cookie)
        connection.admitted.discard(cookie)
        if connection.live:
            return
        del self._connections[subject.token]
        if not connection.subflows:
            return
        self.connections += 1
        lasted = None if connection.opened_at is None else record["at"] - connection.opened_at
        owner = self._trace.directory.owners.get(subject.token) or Owner()
        self._trace.emit(
            ClosedLine(
                at=record["at"],
                token=token_text(subject.token),
                lasted_ns=lasted,
                subflows=connection.subflows,
                bytes_sent=connection.sent,
                bytes_received=connection.received,
                retransmits=connection.retransmitted,
                pid=owner.pid,
                comm=owner.comm,
            )
        )

    @property
    def alive(self) -> int:
        """Number of open subflows that pass the filters."""
        return sum(len(connection.admitted) for connection in self._connections.values())


def _no_error_words(record: Record) -> str:
    if record["old_state"] == _SYN_SENT:
        return "closed by this host before the SYN was answered"
    return "cause unknown: no reset, FIN or error was seen"


def reset_reason(record: Record, reasons: dict[int, str]) -> str | None:
    """Why the kernel sent a reset, by `kernel_reasons`; None if this kernel gives no reason."""
    return reasons.get(record["reason"], str(record["reason"])) if reasons else None


def reset_words(name: str) -> str:
    """``SK_RST_REASON_TCP_ABORT_ON_CLOSE`` as ``tcp abort on close``."""
    return name.removeprefix("SK_RST_REASON_").lower().replace("_", " ")


def reset_here(record: Record, reasons: dict[int, str]) -> str:
    """Says that this host reset a subflow, with the kernel's reason if it gives one."""
    reason = reset_reason(record, reasons)
    return "reset by this host" + (f" ({reset_words(reason)})" if reason else "")


def _error_words(record: Record, life: Life) -> str:
    code = record["error"]
    if life.established_at is None:
        if code == errno.ETIMEDOUT:
            return "the SYN was never answered"
        if code == errno.ECONNREFUSED:
            return "refused: the SYN was answered by a reset"
    if code == errno.ETIMEDOUT:
        return "timed out: the peer stopped acknowledging"
    return words.error(code)


def trace_life(trace: Trace, constants: dict[str, int]) -> Summary:
    programs = ("state_changed", "destroyed", "reset_sent", "reset_received")
    kernel = trace.open(TracePrograms("trace", programs, constants))
    trace.means += kernel.hooks()
    life = LifeTrace(trace, kernel.enumeration("trace_kind"), kernel_reasons())
    life.begin(trace.directory.look().subflows)

    def read() -> None:
        for record in kernel.read("trace_record"):
            life.take(record)

    trace.watch(kernel, read)
    trace.every(_SETTLE_NS / 1e9, lambda: life.settle(trace.now()))

    def summary() -> None:
        life.settle(trace.now(), last=True)
        trace.emit(
            LifeSummaryLine(
                at=trace.now(),
                connections=life.connections,
                ends=dict(life.ends.most_common()),
                alive=life.alive,
            )
        )

    return summary


def kernel_reasons() -> dict[int, str]:
    """The running kernel's enum sk_rst_reason; empty before Linux 6.10."""
    with KernelTypes() as types:
        return types.enumeration("sk_rst_reason")
