# SPDX-License-Identifier: BSD-3-Clause
"""``trace retrans``: retransmissions and reinjections, with subflow and cause.

TCP retransmits a segment on its subflow (tcp_retransmit_skb); the state of congestion control
gives the cause (tcp_input.c, tcp_output.c): a timeout, a fast retransmission after duplicate or
selective acknowledgements, or a tail loss probe while nothing is known to be lost.  MPTCP sends a
mapping again on another subflow (reinjection, net/mptcp/protocol.c): its data is before snd_nxt.
MPTCPRetrans counts the reinjections of the connection's timer (__mptcp_retrans), not those after a
subflow was closed or marked stale (__mptcp_retransmit_pending_data).  The blamed subflow is the
other one with data in flight and the most timeouts.
"""

from collections import Counter

from mptcpd_ebpf.trace.frame import Summary, Trace
from mptcpd_ebpf.trace.lines.retrans import (
    ReinjectedLine,
    RetransmittedLine,
    RetransRow,
    RetransSummaryLine,
)
from mptcpd_ebpf.trace.scope import Subject
from mptcpd_ebpf.trace.trace_programs import Record, TracePrograms

_SYN_STATES = (2, 3)
_ROWS = 1000
"""Subflows with a row in the summary; the others are added up."""
_RECOVERY, _LOSS = 3, 4  # include/uapi/linux/tcp.h: enum tcp_ca_state


def cause(record: Record) -> str:
    """Why TCP retransmitted."""
    if record["state"] in _SYN_STATES:
        return "SYN unanswered"
    if record["timeouts"]:
        return f"timeout {record['timeouts']} in a row"
    if record["ca_state"] == _LOSS:
        return "after a timeout"
    if record["ca_state"] == _RECOVERY:
        return "fast retransmission"
    return "tail loss probe"


class Retransmissions:
    """Emits a line for each, and counts them by subflow and cause."""

    def __init__(self, trace: Trace, kinds: dict[int, str]) -> None:
        self._trace = trace
        self._kinds = kinds
        self._names: dict[int, Subject] = {}
        self.causes: dict[int, Counter[str]] = {}
        self.others: Counter[str] = Counter()
        """Counts of the subflows without a row."""
        self.segments = 0
        self.reinjections = 0
        self.reinjected_bytes = 0

    def take(self, record: Record) -> None:
        subject = self._trace.directory.of_record(record)
        if not self._trace.admits(subject):
            return
        if self._kinds[record["kind"]] == "TRACE_RETRANSMITTED":
            self._retransmitted(subject, record)
        else:
            self._reinjected(subject, record)

    def _retransmitted(self, subject: Subject, record: Record) -> None:
        why = cause(record)
        self.segments += 1
        self._count(subject, why.split(" in a row")[0].rstrip(" 0123456789"))
        self._trace.emit(
            RetransmittedLine(
                at=record["at"],
                **subject.fields(),
                seq=record["seq"],
                length=record["length"],
                cause=why,
                timeouts=record["timeouts"],
                srtt_us=None if record["srtt_us"] == 0xFFFFFFFF else record["srtt_us"],
                stale=bool(record["stale"]),
            )
        )

    def _reinjected(self, subject: Subject, record: Record) -> None:
        self.reinjections += 1
        self.reinjected_bytes += record["length"]
        blamed = self._trace.directory.by_cookie.get(record["blamed"])
        if blamed is None and record["blamed"]:
            self._trace.directory.look()
            blamed = self._trace.directory.by_cookie.get(record["blamed"])
        if not record["blamed"]:
            why = "no other subflow has data in flight: the one that had it is closed"
        elif record["blamed_timeouts"]:
            why = f"{record['blamed_timeouts']} timeouts in a row on {blamed and blamed.name}"
        else:
            why = f"not yet acknowledged on {blamed and blamed.name}"
        self._count(subject, "reinjected here")
        if blamed is not None:
            self._count(blamed, "reinjected elsewhere")
        self._trace.emit(
            ReinjectedLine(
                at=record["at"],
                **subject.fields(),
                data_seq=record["data_seq"],
                length=record["length"],
                blamed=blamed.name if blamed else None,
                blamed_timeouts=record["blamed_timeouts"],
                cause=why,
            )
        )

    def _count(self, subject: Subject, why: str) -> None:
        if subject.cookie not in self.causes:
            if subject.cookie is None or len(self.causes) >= _ROWS:
                self.others[why] += 1
                return
            self._names[subject.cookie] = subject
            self.causes[subject.cookie] = Counter()
        self.causes[subject.cookie][why] += 1

    def rows(self) -> list[tuple[Subject, Counter[str]]]:
        return [(self._names[cookie], causes) for cookie, causes in self.causes.items()]


def trace_retrans(trace: Trace, constants: dict[str, int]) -> Summary:
    programs = ("retransmitted", "work_starts", "send_begins", "mapped")
    kernel = trace.open(TracePrograms("trace", programs, constants))
    trace.means += kernel.hooks()
    trace.directory.look()
    found = Retransmissions(trace, kernel.enumeration("trace_kind"))

    def read() -> None:
        for record in kernel.read("trace_record"):
            found.take(record)

    trace.watch(kernel, read)

    def summary() -> None:
        moved = trace.counted().get("MPTCPRetrans", 0)
        trace.emit(
            RetransSummaryLine(
                at=trace.now(),
                retransmissions=found.segments,
                reinjections=found.reinjections,
                reinjected_bytes=found.reinjected_bytes,
                counters={"MPTCPRetrans": moved},
                subflows=[
                    RetransRow(**subject.fields(), causes=dict(causes.most_common()))
                    for subject, causes in found.rows()
                ],
                others=dict(found.others.most_common()),
            )
        )

    return summary
