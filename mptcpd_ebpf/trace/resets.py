# SPDX-License-Identifier: BSD-3-Clause
"""``trace resets``: every RST and MP_FASTCLOSE of an MPTCP connection, and its reason.

The wire shows the packet and what it says (MP_TCPRST, RFC 8684, 3.6; MP_FASTCLOSE, 3.5);
tcp_send_reset and tcp_receive_reset name the connection, and for one that this host
sends the kernel's own reason.  Both are put together by their flow: the tracepoint of a
sent reset fires before the packet is seen, that of a received one after.
"""

from collections import Counter, deque
from dataclasses import dataclass

from mptcpd_ebpf.trace import words
from mptcpd_ebpf.trace.frame import Summary, Trace
from mptcpd_ebpf.trace.life import kernel_reasons, reset_reason, reset_words
from mptcpd_ebpf.trace.lines.resets import ResetLine, ResetsSummaryLine
from mptcpd_ebpf.trace.scope import Flow, Subject
from mptcpd_ebpf.trace.signals import Signal, Subtype
from mptcpd_ebpf.trace.tap import open_with_tap
from mptcpd_ebpf.trace.trace_programs import Record

_TOGETHER_NS = 50_000_000
"""Packet and tracepoint of one reset come within this time."""
_REMEMBERED_NS = 5_000_000_000


@dataclass
class Reset:
    """What is known of one reset so far."""

    at: int
    sent: bool
    who: Subject
    signal: Signal | None = None
    record: Record | None = None


class Resets:
    """Puts packets and records together."""

    def __init__(self, trace: Trace, kinds: dict[int, str], reasons: dict[int, str]) -> None:
        self._trace = trace
        self._kinds = kinds
        self._reasons = reasons
        self._open: dict[tuple[Flow, bool], Reset] = {}
        self._ended: deque[tuple[int, Subject]] = deque()
        """Subflows that are gone, and when: resets may still come for them."""
        self.seen: Counter[str] = Counter()

    def hear(self, signal: Signal) -> None:
        if not signal.is_reset and signal.option(Subtype.MP_FASTCLOSE) is None:
            return
        who = self._trace.directory.of_flow(signal.local, signal.remote)
        reset = self._reset(who, signal.outgoing, signal.at)
        reset.signal = reset.signal or signal

    def take(self, record: Record) -> None:
        who = self._trace.directory.of_record(record)
        kind = self._kinds[record["kind"]]
        if kind == "TRACE_ENDED":
            self._ended.append((record["at"], who))
        elif kind in ("TRACE_RESET_SENT", "TRACE_RESET_RECEIVED"):
            reset = self._reset(who, kind == "TRACE_RESET_SENT", record["at"])
            reset.who, reset.record = who, record

    def _reset(self, who: Subject, sent: bool, at: int) -> Reset:
        return self._open.setdefault(((who.local, who.remote), sent), Reset(at, sent, who))

    def flush(self, now: int, *, last: bool = False) -> None:
        """Tells those whose other half has come or will not come any more."""
        for key, reset in list(self._open.items()):
            if last or now - reset.at > _TOGETHER_NS:
                del self._open[key]
                self._tell(reset)
        while self._ended and now - self._ended[0][0] > _REMEMBERED_NS:
            self._trace.directory.forget(self._ended.popleft()[1])

    def _tell(self, reset: Reset) -> None:
        signal, record, who = reset.signal, reset.record, reset.who
        options = signal.options if signal else []
        if record is None and who.token is None and not options:
            return  # plain TCP
        if not self._trace.admits(who):
            return
        told = signal.option(Subtype.MP_TCPRST) if signal else None
        fastclose = bool(signal and signal.option(Subtype.MP_FASTCLOSE))
        code = told.reset_reason if told else None
        if fastclose:
            kind, why = "MP_FASTCLOSE", "the whole connection was aborted"
        elif told and code is not None:
            kind, why = "MP_TCPRST", words.reset(code, told.reset_transient)
        else:
            kind, why = "RST", "without a reason"
        kernel = None
        if record is not None and reset.sent:
            kernel = reset_reason(record, self._reasons)
            why += f"; kernel: {reset_words(kernel)}" if kernel else ""
        elif signal is None:
            why += "; the packet was not seen"
        elif not reset.sent and record is None and not fastclose:
            why += "; the kernel took no notice of it"
        way = "sent" if reset.sent else "received"
        self.seen[f"{kind} {way}"] += 1
        self._trace.emit(
            ResetLine(
                at=reset.at,
                **who.fields(),
                sent=reset.sent,
                kind=kind,
                reason=code,
                transient=told.reset_transient if told else None,
                kernel_reason=kernel,
                noticed=record is not None,
                why=why,
            )
        )


def trace_resets(trace: Trace, constants: dict[str, int]) -> Summary:
    programs = ("state_changed", "reset_sent", "reset_received", "destroyed")
    kernel, tap = open_with_tap(trace, programs, constants)
    trace.directory.look()
    resets = Resets(trace, kernel.enumeration("trace_kind"), kernel_reasons())

    def read_both() -> None:
        signals = tap.signals()
        records = kernel.read("trace_record")
        for signal in signals:
            resets.hear(signal)
        for record in records:
            resets.take(record)

    trace.watch(kernel, read_both)
    trace.watch(tap, read_both)
    trace.every(0.05, lambda: resets.flush(trace.now()))

    def summary() -> None:
        resets.flush(trace.now(), last=True)
        names = ("MPRstTx", "MPRstRx", "MPFastcloseTx", "MPFastcloseRx")
        moved = {name: value for name, value in trace.counted().items() if name in names}
        seen = dict(resets.seen.most_common())
        trace.emit(ResetsSummaryLine(at=trace.now(), seen=seen, counters=moved))

    return summary
