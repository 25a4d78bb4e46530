# SPDX-License-Identifier: BSD-3-Clause
"""``trace fallback``: when and why a connection fell back to TCP, or did not become MPTCP.

The kernel counts fallbacks by cause (net/mptcp/mib.h); packets show the flow: a handshake whose
answer lacks MP_CAPABLE, an MP_FAIL, an infinite mapping (RFC 8684, 3.7).  A counter's increment is
attributed to the flow with such a sign within the second before.  Without a sign, it is attributed
to the one connection that was MPTCP and no longer is (inet_diag lists open connections that fell
back); if there are several, they are the candidates; if there is none, all open connections are.
With filters, the increment is reported if a candidate passes them.  Process and token come from
inet_sock_set_state, at connect and before the kernel processes the answer; the SYN's socket cookie
maps them to the flow.
No counter says that this host declined a peer's offer; packets alone show it.
Where the kernel refuses the BPF programs there are no signs, and events identify the connections.
"""

from collections import Counter
from dataclasses import dataclass

from mptcpd_ebpf.core.events import (
    ConnectionClosed,
    ConnectionCreated,
    ConnectionEstablished,
    SubflowClosed,
    SubflowEstablished,
)
from mptcpd_ebpf.kernel import counters, diag, sysctl
from mptcpd_ebpf.probes import BpfUnavailable
from mptcpd_ebpf.trace.events import Events
from mptcpd_ebpf.trace.frame import Summary, Trace
from mptcpd_ebpf.trace.lines.fallback import FallbackLine, FallbackSummaryLine
from mptcpd_ebpf.trace.scope import Flow, Subject
from mptcpd_ebpf.trace.signals import Signal, Subtype
from mptcpd_ebpf.trace.tap import BothSides, Tap, open_with_tap
from mptcpd_ebpf.trace.trace_programs import TracePrograms

_NEAR_NS = 1_000_000_000
"""A sign explains an increment that follows within this time."""
_SETTLED_NS = 50_000_000
"""An increment is reported after this time, when the packets have been read."""
_CANDIDATES = 5
_CLOSE = 7  # include/net/tcp_states.h
_ANY = ("0.0.0.0", "::")

REASONS = {
    "MPCapableFallbackSYNACK": (
        "syn-ack",
        "the SYN/ACK has no MP_CAPABLE: the server does not support MPTCP, "
        "or a middlebox removed the option from the SYN or the SYN/ACK",
    ),
    "MPCapableFallbackACK": (
        "ack",
        "the client's third packet has no MP_CAPABLE: "
        "a middlebox removed the option from the SYN/ACK or the ACK",
    ),
    "MPCapableSYNTXDrop": (
        "syn-dropped",
        "SYNs with MP_CAPABLE were not answered, so the SYN was repeated without it: "
        "a middlebox may drop SYNs with unknown options",
    ),
    "MPCapableSYNTXDisabled": (
        "blackhole",
        "MPTCP is suspended because earlier SYNs were answered only without MP_CAPABLE "
        "(net.mptcp.blackhole_timeout)",
    ),
    "MPCapableDataFallback": (
        "first-data",
        "the first data has no MPTCP option: a middlebox removes options after the handshake",
    ),
    "DSSCorruptionFallback": (
        "dss",
        "a mapping does not match the data: a middlebox changed lengths or split segments",
    ),
    "DssFallback": (
        "no-dss",
        "data without a mapping: a middlebox removes options after the handshake",
    ),
    "InfiniteMapRx": ("infinite-rx", "the peer stopped using mappings (infinite mapping)"),
    "InfiniteMapTx": ("infinite-tx", "this host stopped using mappings (infinite mapping)"),
    "MPFailRx": ("fail-rx", "the peer found a wrong DSS checksum (MP_FAIL): data was changed"),
    "DataCsumErr": ("checksum", "a wrong DSS checksum: a middlebox changed data"),
    "MD5SigFallback": ("md5", "TCP MD5 signatures leave no room for MPTCP (TCP_MD5SIG)"),
    "SimultConnectFallback": ("simultaneous", "both ends connected to each other at once"),
    "MPFallbackTokenInit": ("token", "no unused token could be generated"),
    "FallbackFailed": (
        "failed",
        "the connection could not fall back (more than one subflow), so the subflow was reset",
    ),
}
"""By counter: the short name of the cause, and the cause as a sentence."""

_OF_HANDSHAKE = {
    "MPCapableFallbackSYNACK": "answer without MP_CAPABLE",
    "MPCapableFallbackACK": "third packet",
    "MPCapableSYNTXDrop": "SYN repeated without MP_CAPABLE",
    "MPCapableSYNTXDisabled": "SYN without MP_CAPABLE",
}
_OF_SIGNAL = {
    "MPFailRx": "MP_FAIL received",
    "DataCsumErr": "MP_FAIL sent",
    "InfiniteMapRx": "infinite mapping received",
    "InfiniteMapTx": "infinite mapping sent",
}


@dataclass
class Sign:
    """A packet that indicates a fallback."""

    at: int
    subject: Subject
    """As known at that time: it may be forgotten before the counter is reported."""
    what: str


class Fallbacks:
    """Attributes counter increments to flows, and emits their lines."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._counted = counters.read()
        self._offers: dict[Flow, Signal] = {}
        """Unanswered SYNs with MP_CAPABLE, in both directions."""
        self._signs: list[Sign] = []
        self._reported = {(each.local, each.remote) for each in diag.fallen()}
        """Open connections that fell back, and are reported or older than the trace."""
        self._moved_at: dict[str, int] = {}
        """By counter: when its unreported increment was seen."""
        self.reasons: Counter[str] = Counter()

    def on_signal(self, signal: Signal) -> None:
        flow = signal.local, signal.remote
        if signal.is_syn and signal.outgoing:
            self._trace.directory.sent_by(signal.cookie, *flow)
        capable = signal.option(Subtype.MP_CAPABLE)
        offer = self._offers.get(flow)
        if signal.is_syn:
            if capable:
                self._offers[flow] = signal
            elif offer is not None and signal.seq == offer.seq:
                self._sign(signal, "SYN repeated without MP_CAPABLE")
            elif signal.outgoing and not signal.options:
                self._sign(signal, "SYN without MP_CAPABLE")
        elif signal.is_syn_ack and offer is not None:
            if not capable:
                del self._offers[flow]
                if signal.outgoing:
                    self._answered_with_tcp(signal)
                else:
                    self._sign(signal, "answer without MP_CAPABLE")
        elif capable:
            self._offers.pop(flow, None)
        if signal.option(Subtype.MP_FAIL):
            self._sign(signal, f"MP_FAIL {'sent' if signal.outgoing else 'received'}")
        if signal.option(Subtype.DSS):  # the tap passes only infinite mappings
            way = "sent" if signal.outgoing else "received"
            self._sign(signal, f"infinite mapping {way}")

    def _answered_with_tcp(self, signal: Signal) -> None:
        """Reports that this host declined the peer's offer, which no counter counts."""
        subject = self._trace.directory.of_flow(signal.local, signal.remote)
        if not self._trace.admits(subject):
            return
        mptcp_listens = any(
            each.port == signal.local.port and each.ip in (signal.local.ip, *_ANY)
            for each in diag.listeners()
        )
        if mptcp_listens:
            reason, why = "answer", "this host answered without MP_CAPABLE and gives no reason"
        elif sysctl.read_all().get("enabled") == "0":
            reason, why = (
                "sysctl",
                "the program on this host listens with plain TCP: MPTCP is disabled "
                "(net.mptcp.enabled is 0)",
            )
        else:
            reason, why = (
                "tcp-listener",
                "the program on this host listens with plain TCP: make it open MPTCP sockets, "
                "for example with 'mptcpd-ebpf exec' or 'mptcpd-ebpf mptcpify'",
            )
        evidence = ["the SYN has MP_CAPABLE, the SYN/ACK of this host has not"]
        self.reasons[reason] += 1
        self._trace.emit(
            FallbackLine(
                at=signal.at,
                **subject.fields(),
                reason=reason,
                why=why,
                counter=None,
                evidence=evidence,
                candidates=[],
            )
        )

    def _sign(self, signal: Signal, what: str) -> None:
        subject = self._trace.directory.of_flow(signal.local, signal.remote)
        self._signs.append(Sign(signal.at, subject, what))

    def look(self, now: int, *, last: bool = False) -> None:
        """Reports increments of counters, `_SETTLED_NS` after they were seen."""
        present = counters.read()
        for name in REASONS:
            if present.get(name, 0) > self._counted.get(name, 0):
                since = self._moved_at.setdefault(name, now)
                if last or now - since > _SETTLED_NS:
                    del self._moved_at[name]
                    for left in range(present[name] - self._counted[name], 0, -1):
                        self._report(name, now, left)
                    self._counted[name] = present[name]
        self._signs = [sign for sign in self._signs if now - sign.at < _NEAR_NS]
        for flow, signal in list(self._offers.items()):
            if now - signal.at > 60 * _NEAR_NS:
                del self._offers[flow]

    def _report(self, name: str, now: int, left: int) -> None:
        """Reports one fallback, the first of `left` unreported ones of this counter."""
        short, why = REASONS[name]
        subject, candidates, clues = self._attribute(name, left)
        evidence = [f"counter {name} was incremented", *clues]
        if subject is not None:
            self._reported.add((subject.local, subject.remote))
            self._trace.directory.forget(subject)
            if not self._trace.admits(subject):
                return
        elif self._trace.scope.is_restricted:
            candidates = [each for each in candidates if self._trace.admits(each)]
            if not candidates:
                return
        self.reasons[name] += 1
        names = [each.name for each in candidates[:_CANDIDATES]]
        fields = subject.fields() if subject else {"token": None}
        self._trace.emit(
            FallbackLine(
                at=now,
                **fields,
                reason=short,
                why=why,
                counter=name,
                evidence=evidence,
                candidates=names,
            )
        )

    def _attribute(self, name: str, left: int) -> tuple[Subject | None, list[Subject], list[str]]:
        """The subflow that fell back, or those that may have, and the evidence for it."""
        directory = self._trace.directory
        sign = self._take(name)
        if sign is not None:
            return sign.subject, [], [sign.what]
        waiting = [flow for flow, syn in self._offers.items() if not syn.outgoing]
        if name == "MPCapableFallbackACK" and waiting:
            clue = ["no third packet with MP_CAPABLE was seen"]
            if len(waiting) > left:
                return None, [directory.of_flow(*flow) for flow in waiting], clue
            del self._offers[waiting[0]]
            return directory.of_flow(*waiting[0]), [], clue
        present = [directory.of_measurement(each) for each in diag.subflows()]
        fallen = self._newly_fallen() or self._gone({(each.local, each.remote) for each in present})
        if len(fallen) == 1:
            return fallen[0], [], ["it is the only one that is no longer MPTCP"]
        if fallen:
            return None, fallen, ["these are no longer MPTCP"]
        return None, [] if name in _OF_HANDSHAKE else present, []

    def _newly_fallen(self) -> list[Subject]:
        """Open connections that fell back and have not been reported."""
        fallen = {(each.local, each.remote): each for each in diag.fallen()}
        self._reported &= fallen.keys()
        directory = self._trace.directory
        return [
            directory.of_event(each.token, each.local, each.remote)
            for flow, each in fallen.items()
            if flow not in self._reported
        ]

    def _gone(self, present: set[Flow]) -> list[Subject]:
        """Subflows that were MPTCP, have not ended, and are no longer MPTCP."""
        known = self._trace.directory.by_flow
        return [subject for flow, subject in known.items() if subject.token and flow not in present]

    def _take(self, name: str) -> Sign | None:
        """Removes and returns the oldest sign of a counter."""
        wanted = _OF_HANDSHAKE.get(name) or _OF_SIGNAL.get(name)
        for sign in self._signs:
            if sign.what == wanted:
                self._signs.remove(sign)
                return sign
        return None


def trace_fallback(trace: Trace, constants: dict[str, int]) -> Summary:
    fallbacks = Fallbacks(trace)
    try:
        kernel, tap = open_with_tap(trace, ("state_changed", "destroyed"), constants)
    except BpfUnavailable as error:
        _follow_events(trace, str(error))
    else:
        _follow(trace, fallbacks, kernel, tap)
    trace.directory.look()
    trace.every(0.05, lambda: fallbacks.look(trace.now()))

    def summary() -> None:
        fallbacks.look(trace.now(), last=True)
        moved = {name: value for name, value in trace.counted().items() if name in REASONS}
        trace.emit(
            FallbackSummaryLine(
                at=trace.now(),
                counters=dict(fallbacks.reasons.most_common()),
                moved=moved,
                filtered=trace.scope.is_restricted,
            )
        )

    return summary


def _follow(trace: Trace, fallbacks: Fallbacks, kernel: TracePrograms, tap: Tap) -> None:
    kinds = kernel.enumeration("trace_kind")
    trace.means.append("MPTcpExt counters")
    both = BothSides(kernel, tap)

    def read() -> None:
        # Records come before packets: process and token of a connection cannot be looked up
        # after it fell back.
        records, signals, followed = both.read()
        for record in records:
            trace.directory.of_record(record)
        for signal in signals:
            fallbacks.on_signal(signal)
        for record in followed:
            if kinds[record["kind"]] == "TRACE_ENDED" or record["state"] == _CLOSE:
                trace.directory.forget(trace.directory.of_record(record))

    trace.watch(kernel, read)
    trace.watch(tap, read)


def _follow_events(trace: Trace, refusal: str) -> None:
    """Learns connections from the kernel's events, where packets are not seen."""
    events = trace.open(Events())
    trace.means += [*events.means(), "MPTcpExt counters", f"packets are not seen: {refusal}"]

    def read() -> None:
        directory = trace.directory
        for event in events.read():
            if isinstance(event, ConnectionCreated | ConnectionEstablished | SubflowEstablished):
                directory.of_event(event.token, event.local, event.remote)
            elif isinstance(event, SubflowClosed):
                directory.forget(directory.of_flow(event.local, event.remote))
            elif isinstance(event, ConnectionClosed):
                gone = [
                    subject
                    for subject in directory.by_flow.values()
                    if subject.token == event.token
                ]
                for subject in gone:
                    directory.forget(subject)

    trace.watch(events, read)
