# SPDX-License-Identifier: BSD-3-Clause
"""``trace sched``: which subflow the scheduler chose, and why it did not choose the others.

bpf/trace.bpf.c repeats the default scheduler's decision from the values that it compares
(mptcp_subflow_get_send in net/mptcp/protocol.c) and counts the results by subflow.  The bytes sent
are TCP's own counters (from inet_diag, and from records of state changes).  The BPF map has the
addresses beside the counts, because many connections end between two reads.  The counts of ended
subflows are moved here within two seconds, and only the last ones are kept, so that the number of
connections is not limited.  Another scheduler (net.mptcp.scheduler) passes the tracepoint only if
it calls the same function.
"""

import struct
from collections.abc import Iterable
from typing import NamedTuple

from mptcpd_ebpf.core.measurement import Measurement
from mptcpd_ebpf.core.token import token_text
from mptcpd_ebpf.kernel import diag
from mptcpd_ebpf.trace.frame import Summary, Trace
from mptcpd_ebpf.trace.lines.sched import (
    AGAINST,
    ChosenLine,
    FurtherSubflowsLine,
    SchedRow,
    SchedSummaryLine,
)
from mptcpd_ebpf.trace.scope import Subject
from mptcpd_ebpf.trace.trace_programs import Record, TracePrograms

_ROWS = 64
"""Ended subflows, and ended connections, that are kept for the summary."""
_COOKIE = struct.Struct("=Q")
_CONNECTION = struct.Struct("=II")


class Row(NamedTuple):
    """One subflow over a span of time."""

    subject: Subject
    share: Record
    """Number of decisions for it, and against it by reason."""
    sent: int | None
    """Bytes without retransmissions; None: not known yet."""


def minus(now: Record, before: Record | None) -> Record:
    """The counts since `before`."""
    if before is None:
        return now
    return {**now, **{name: now[name] - before[name] for name in ("chosen", *AGAINST)}}


def first_sent(measured: Iterable[Measurement]) -> dict[int, int]:
    """Bytes sent without retransmissions, by socket cookie."""
    return {
        each.cookie: (each.bytes_sent or 0) - (each.bytes_retrans or 0)
        for each in measured
        if each.cookie
    }


class SchedTrace:
    """Reads the counts and emits their changes."""

    def __init__(self, trace: Trace, kernel: TracePrograms) -> None:
        self._trace = trace
        self._kernel = kernel
        self._shares: dict[int, Record] = {}
        self._rounds: dict[tuple[int, int], Record] = {}
        """Of live connections, as of the last read."""
        self._ended: dict[int, Record] = {}
        self._ended_rounds: dict[tuple[int, int], Record] = {}
        self._start = self._sent = first_sent(diag.subflows())
        self._last_sent = dict(self._start)
        self.further = 0
        """Number of ended subflows whose counts were dropped."""

    def take(self, record: Record) -> None:
        """A subflow's state changed."""
        if record["cookie"]:
            self._last_sent[record["cookie"]] = record["bytes_sent"] - record["bytes_retrans"]

    def _read(self) -> tuple[dict[int, Record], dict[int, int]]:
        measured = diag.subflows()
        for each in measured:
            self._trace.directory.of_measurement(each)
        self._last_sent |= first_sent(measured)
        table = self._kernel.table("shares", _COOKIE, "trace_share")
        shares = {key[0]: value for key, value in table.items()}
        self._end({each.cookie for each in measured}, shares)
        self._end_rounds({each.token for each in measured})
        return {**self._ended, **shares}, dict(self._last_sent)

    def _end(self, live: set[int | None], shares: dict[int, Record]) -> None:
        """Removes ended subflows from `shares`.

        A subflow has ended if an earlier read had it and `live` does not; a subflow that was
        opened after `live` was read is in no earlier read.
        """
        for cookie in [each for each in shares if each in self._shares and each not in live]:
            self._ended[cookie] = shares.pop(cookie)
            self._kernel.forget("shares", _COOKIE.pack(cookie))
        while len(self._ended) > _ROWS:
            cookie = next(iter(self._ended))
            self.further += 1
            for known in (self._ended, self._start, self._sent, self._last_sent):
                known.pop(cookie, None)
        for cookie in self._last_sent.keys() - live - self._ended.keys() - shares.keys():
            del self._last_sent[cookie]

    def _end_rounds(self, live: set[int]) -> None:
        before = self._rounds
        self._rounds = self._kernel.table("rounds", _CONNECTION, "trace_rounds")
        for key in [each for each in self._rounds if each in before and each[1] not in live]:
            self._ended_rounds[key] = self._rounds.pop(key)
            self._kernel.forget("rounds", _CONNECTION.pack(*key))
        while len(self._ended_rounds) > _ROWS:
            del self._ended_rounds[next(iter(self._ended_rounds))]

    def rounds(self) -> dict[int, Record]:
        """By token, as of the last read."""
        both = {**self._ended_rounds, **self._rounds}
        return {token: round_ for (_, token), round_ in both.items()}

    def rows(self, *, whole: bool) -> dict[int, list[Row]]:
        """Rows by token, since the last call of `look` or (`whole`) since the trace began."""
        shares, sent = self._read()
        found: dict[int, list[Row]] = {}
        for cookie, share in shares.items():
            subject = self._trace.directory.of_share(cookie, share)
            if not self._trace.admits(subject):
                continue
            before = None if whole else self._shares.get(cookie)
            base = (self._start if whole else self._sent).get(cookie, 0)
            total = sent.get(cookie)
            row = Row(subject, minus(share, before), None if total is None else total - base)
            if any(row.share[name] for name in ("chosen", *AGAINST)):
                found.setdefault(share["token"], []).append(row)
        if not whole:
            self._shares, self._sent = shares, sent
        return found

    def look(self) -> None:
        """Emits a line per connection for the last second."""
        for token, rows in self.rows(whole=False).items():
            subflows = [_row(row) for row in rows]
            self._trace.emit(
                ChosenLine(at=self._trace.now(), token=token_text(token), subflows=subflows)
            )

    def summary(self) -> None:
        lasted = self._trace.now() - self._trace.began
        found = self.rows(whole=True)
        by_token = self.rounds()
        for token, rows in found.items():
            round_ = by_token.get(token)
            if round_ is None:
                continue
            self._trace.emit(
                SchedSummaryLine(
                    at=self._trace.now(),
                    token=token_text(token),
                    lasted_ns=lasted,
                    rounds=round_["rounds"],
                    full=round_["full"],
                    unusable=round_["unusable"],
                    without_ns=round_["without_ns"],
                    unusable_ns=round_["unusable_ns"],
                    longest_ns=round_["longest_ns"],
                    subflows=[_row(row) for row in rows],
                )
            )
        if self.further:
            self._trace.emit(FurtherSubflowsLine(at=self._trace.now(), further=self.further))


def _row(row: Row) -> SchedRow:
    counts = {name: row.share[name] for name in ("chosen", *AGAINST)}
    return SchedRow(**row.subject.fields(), **counts, bytes_sent=row.sent)


def trace_sched(trace: Trace, constants: dict[str, int]) -> Summary:
    kernel = trace.open(TracePrograms("trace", ("round_ends", "state_changed"), constants))
    trace.means += [*kernel.hooks(), "inet_diag"]
    trace.directory.look()
    scheduling = SchedTrace(trace, kernel)

    def read() -> None:
        for record in kernel.read("trace_record"):
            scheduling.take(record)

    trace.watch(kernel, read)
    trace.every(1.0, scheduling.look)
    return scheduling.summary
