# SPDX-License-Identifier: BSD-3-Clause
"""``trace resets``: every RST and MP_FASTCLOSE of an MPTCP connection, and its reason.

The packet has the peer's reason (MP_TCPRST, RFC 8684, 3.6; MP_FASTCLOSE, 3.5); the tracepoints
tcp_send_reset and tcp_receive_reset identify the connection, and give the kernel's reason for a
reset that this host sends.  Both are combined by their flow: the tracepoint of a sent reset comes
before its packet, that of a received one after.
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
"""Packet and tracepoint of a reset come within this time."""
_REMEMBERED_NS = 5_000_000_000
"""How long ended subflows are kept."""


@dataclass
class Reset:
    """One reset, as far as it is known."""

    at: int
    sent: bool
    subject: Subject
    signal: Signal | None = None
    record: Record | None = None


class Resets:
    """Combines packets and records, and emits a line for each reset."""

    def __init__(self, trace: Trace, kinds: dict[int, str], reasons: dict[int, str]) -> None:
        self._trace = trace
        self._kinds = kinds
        self._reasons = reasons
        self._open: dict[tuple[Flow, bool], Reset] = {}
        self._ended: deque[tuple[int, Subject]] = deque()
        """Subflows that ended, and when: further resets may arrive for them."""
        self.seen: Counter[str] = Counter()

    def on_signal(self, signal: Signal) -> None:
        if not signal.is_reset and signal.option(Subtype.MP_FASTCLOSE) is None:
            return
        subject = self._trace.directory.of_flow(signal.local, signal.remote)
        reset = self._reset(subject, signal.outgoing, signal.at)
        reset.signal = reset.signal or signal

    def take(self, record: Record) -> None:
        subject = self._trace.directory.of_record(record)
        kind = self._kinds[record["kind"]]
        if kind == "TRACE_ENDED":
            self._ended.append((record["at"], subject))
        elif kind in ("TRACE_RESET_SENT", "TRACE_RESET_RECEIVED"):
            reset = self._reset(subject, kind == "TRACE_RESET_SENT", record["at"])
            reset.subject, reset.record = subject, record

    def _reset(self, subject: Subject, sent: bool, at: int) -> Reset:
        return self._open.setdefault(
            ((subject.local, subject.remote), sent), Reset(at, sent, subject)
        )

    def flush(self, now: int, *, last: bool = False) -> None:
        """Reports the resets whose packet or tracepoint is no longer expected."""
        for key, reset in list(self._open.items()):
            if last or now - reset.at > _TOGETHER_NS:
                del self._open[key]
                self._report(reset)
        while self._ended and now - self._ended[0][0] > _REMEMBERED_NS:
            self._trace.directory.forget(self._ended.popleft()[1])

    def _report(self, reset: Reset) -> None:
        signal, record, subject = reset.signal, reset.record, reset.subject
        options = signal.options if signal else []
        if record is None and subject.token is None and not options:
            return  # plain TCP
        if not self._trace.admits(subject):
            return
        option = signal.option(Subtype.MP_TCPRST) if signal else None
        fastclose = bool(signal and signal.option(Subtype.MP_FASTCLOSE))
        code = option.reset_reason if option else None
        if fastclose:
            kind, why = "MP_FASTCLOSE", "the whole connection was aborted"
        elif option and code is not None:
            kind, why = "MP_TCPRST", words.reset(code, option.reset_transient)
        else:
            kind, why = "RST", "without a reason"
        kernel = None
        if record is not None and reset.sent:
            kernel = reset_reason(record, self._reasons)
            why += f"; kernel: {reset_words(kernel)}" if kernel else ""
        elif signal is None:
            why += "; the packet was not seen"
        elif not reset.sent and record is None and not fastclose:
            why += "; the kernel ignored it"
        way = "sent" if reset.sent else "received"
        self.seen[f"{kind} {way}"] += 1
        self._trace.emit(
            ResetLine(
                at=reset.at,
                **subject.fields(),
                sent=reset.sent,
                kind=kind,
                reason=code,
                transient=option.reset_transient if option else None,
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
            resets.on_signal(signal)
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
