# SPDX-License-Identifier: BSD-3-Clause
"""``trace fallback``: when and why a connection fell back to TCP, or was refused MPTCP.

The kernel counts each fallback under its reason (net/mptcp/mib.h); the wire shows whose it
was: a handshake whose answer lacks MP_CAPABLE, an MP_FAIL, an infinite mapping (RFC 8684,
3.7).  A counter is told with the flow that showed such a sign within the second before;
where none did, it is the one connection that was MPTCP and is no longer (inet_diag lists
those that fell back and live); where there are several such, or none, they, or the
connections that are alive, are the candidates.  With a filter it is told if one of them
fits.  Process and token come from inet_sock_set_state, at connect and before the answer is
judged; the SYN's socket tells which flow they belong to.
That this host did not take a peer's offer is counted nowhere, and told from the wire alone.
Where the kernel refuses the programs there are no signs, and the rest goes on by events.
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
_SETTLED_NS = 50_000_000
_CANDIDATES = 5
_CLOSE = 7  # include/net/tcp_states.h
_ANY = ("0.0.0.0", "::")

REASONS = {
    "MPCapableFallbackSYNACK": (
        "syn-ack",
        "the SYN/ACK came without MP_CAPABLE: the server does not speak MPTCP, "
        "or a middlebox removed the option from the SYN or the SYN/ACK",
    ),
    "MPCapableFallbackACK": (
        "ack",
        "the client's third packet came without MP_CAPABLE: "
        "a middlebox removed the option from the SYN/ACK or the ACK",
    ),
    "MPCapableSYNTXDrop": (
        "syn-dropped",
        "MPTCP SYNs got no answer, so the SYN was repeated without MP_CAPABLE: "
        "a middlebox may drop SYNs with unknown options",
    ),
    "MPCapableSYNTXDisabled": (
        "blackhole",
        "MPTCP is suspended after SYNs that only plain TCP got answered "
        "(net.mptcp.blackhole_timeout)",
    ),
    "MPCapableDataFallback": (
        "first-data",
        "the first data came without MPTCP option: a middlebox removes options after the handshake",
    ),
    "DSSCorruptionFallback": (
        "dss",
        "a mapping did not fit the data: a middlebox changed lengths or split segments",
    ),
    "DssFallback": (
        "no-dss",
        "data without a mapping: a middlebox removes options after the handshake",
    ),
    "InfiniteMapRx": ("infinite-rx", "the peer gave up mappings (infinite mapping)"),
    "InfiniteMapTx": ("infinite-tx", "this host gave up mappings (infinite mapping)"),
    "MPFailRx": ("fail-rx", "the peer found a wrong DSS checksum (MP_FAIL): data was changed"),
    "DataCsumErr": ("checksum", "a wrong DSS checksum: a middlebox changed data"),
    "MD5SigFallback": ("md5", "TCP MD5 signatures leave no room for MPTCP (TCP_MD5SIG)"),
    "SimultConnectFallback": ("simultaneous", "both ends connected to each other at once"),
    "MPFallbackTokenInit": ("token", "no unused token could be made"),
    "FallbackFailed": (
        "failed",
        "falling back was not possible any more (more than one subflow): it was reset instead",
    ),
}
"""By counter: a short name, and the reason in words."""

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
    """Something on the wire that goes with a fallback."""

    at: int
    who: Subject
    """As known then: it may be forgotten before the counter is told."""
    what: str


class Fallbacks:
    """Joins counters with the signs of the wire."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._counted = counters.read()
        self._asked: dict[Flow, Signal] = {}
        """SYNs with MP_CAPABLE, not yet answered; both directions."""
        self._signs: list[Sign] = []
        self._told = {(each.local, each.remote) for each in diag.fallen()}
        """Those that live, fell back, and need no telling any more."""
        self._moved_at: dict[str, int] = {}
        self.reasons: Counter[str] = Counter()

    def hear(self, signal: Signal) -> None:
        flow = signal.local, signal.remote
        if signal.is_syn and signal.outgoing:
            self._trace.directory.sent_by(signal.cookie, *flow)
        capable = signal.option(Subtype.MP_CAPABLE)
        asked = self._asked.get(flow)
        if signal.is_syn:
            if capable:
                self._asked[flow] = signal
            elif asked is not None and signal.seq == asked.seq:
                self._sign(signal, "SYN repeated without MP_CAPABLE")
            elif signal.outgoing and not signal.options:
                self._sign(signal, "SYN without MP_CAPABLE")
        elif signal.is_syn_ack and asked is not None:
            if not capable:
                del self._asked[flow]
                if signal.outgoing:
                    self._answered_plainly(signal)
                else:
                    self._sign(signal, "answer without MP_CAPABLE")
        elif capable:
            self._asked.pop(flow, None)
        if signal.option(Subtype.MP_FAIL):
            self._sign(signal, f"MP_FAIL {'sent' if signal.outgoing else 'received'}")
        if signal.option(Subtype.DSS):  # the tap lets through infinite mappings only
            way = "sent" if signal.outgoing else "received"
            self._sign(signal, f"infinite mapping {way}")

    def _answered_plainly(self, signal: Signal) -> None:
        """This host did not take the peer's offer, which it does not count."""
        who = self._trace.directory.of_flow(signal.local, signal.remote)
        if not self._trace.admits(who):
            return
        mptcp_listens = any(
            each.port == signal.local.port and each.ip in (signal.local.ip, *_ANY)
            for each in diag.listeners()
        )
        if mptcp_listens:
            reason, why = "answer", "this host answered without MP_CAPABLE, and does not say why"
        elif sysctl.read_all().get("enabled") == "0":
            reason, why = (
                "sysctl",
                "the program here listens with plain TCP: MPTCP is switched off "
                "(net.mptcp.enabled is 0)",
            )
        else:
            reason, why = (
                "tcp-listener",
                "the program here listens with plain TCP: it must ask for MPTCP "
                "('mptcpd-ebpf exec' and 'mptcpd-ebpf mptcpify' do that for it)",
            )
        evidence = ["the SYN offered MPTCP, the SYN/ACK of this host did not"]
        self.reasons[reason] += 1
        self._trace.emit(
            FallbackLine(
                at=signal.at,
                **who.fields(),
                reason=reason,
                why=why,
                counter=None,
                evidence=evidence,
                candidates=[],
            )
        )

    def _sign(self, signal: Signal, what: str) -> None:
        who = self._trace.directory.of_flow(signal.local, signal.remote)
        self._signs.append(Sign(signal.at, who, what))

    def look(self, now: int, *, last: bool = False) -> None:
        """Tells of counters that moved; a moment later, so that the signs have been read."""
        present = counters.read()
        for name in REASONS:
            if present.get(name, 0) > self._counted.get(name, 0):
                since = self._moved_at.setdefault(name, now)
                if last or now - since > _SETTLED_NS:
                    del self._moved_at[name]
                    for left in range(present[name] - self._counted[name], 0, -1):
                        self._tell(name, now, left)
                    self._counted[name] = present[name]
        self._signs = [sign for sign in self._signs if now - sign.at < _NEAR_NS]
        for flow, signal in list(self._asked.items()):
            if now - signal.at > 60 * _NEAR_NS:
                del self._asked[flow]

    def _tell(self, name: str, now: int, left: int) -> None:
        """One fallback; `left` of this counter, with it, are still to be told."""
        short, why = REASONS[name]
        who, candidates, clues = self._whose(name, left)
        evidence = [f"counter {name} moved", *clues]
        if who is not None:
            self._told.add((who.local, who.remote))
            self._trace.directory.forget(who)
            if not self._trace.admits(who):
                return
        elif self._trace.scope.asks_for_one:
            candidates = [each for each in candidates if self._trace.admits(each)]
            if not candidates:
                return
        self.reasons[name] += 1
        names = [each.name for each in candidates[:_CANDIDATES]]
        fields = who.fields() if who else {"token": None}
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

    def _whose(self, name: str, left: int) -> tuple[Subject | None, list[Subject], list[str]]:
        """The subflow that fell back, or those that may have, and what speaks for it."""
        directory = self._trace.directory
        sign = self._take(name)
        if sign is not None:
            return sign.who, [], [sign.what]
        waiting = [flow for flow, syn in self._asked.items() if not syn.outgoing]
        if name == "MPCapableFallbackACK" and waiting:
            clue = ["no third packet with MP_CAPABLE was seen"]
            if len(waiting) > left:
                return None, [directory.of_flow(*flow) for flow in waiting], clue
            del self._asked[waiting[0]]
            return directory.of_flow(*waiting[0]), [], clue
        alive = [directory.of_measurement(each) for each in diag.subflows()]
        fallen = self._newly_fallen() or self._gone({(each.local, each.remote) for each in alive})
        if len(fallen) == 1:
            return fallen[0], [], ["it is the only one that is no longer MPTCP"]
        if fallen:
            return None, fallen, ["these are no longer MPTCP"]
        return None, [] if name in _OF_HANDSHAKE else alive, []

    def _newly_fallen(self) -> list[Subject]:
        """Connections that live, fell back, and were not told yet."""
        fallen = {(each.local, each.remote): each for each in diag.fallen()}
        self._told &= fallen.keys()
        directory = self._trace.directory
        return [
            directory.of_event(each.token, each.local, each.remote)
            for flow, each in fallen.items()
            if flow not in self._told
        ]

    def _gone(self, alive: set[Flow]) -> list[Subject]:
        """Subflows that were MPTCP, did not end, and are none now."""
        known = self._trace.directory.by_flow
        return [who for flow, who in known.items() if who.token and flow not in alive]

    def _take(self, name: str) -> Sign | None:
        """The oldest sign that goes with a counter."""
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
                filtered=trace.scope.asks_for_one,
            )
        )

    return summary


def _follow(trace: Trace, fallbacks: Fallbacks, kernel: TracePrograms, tap: Tap) -> None:
    kinds = kernel.enumeration("trace_kind")
    trace.means.append("MPTcpExt counters")
    both = BothSides(kernel, tap)

    def read() -> None:
        # What the records say of a subflow is known to its packets: whose a connection is,
        # and its token, cannot be asked any more once it fell back.
        records, signals, followed = both.read()
        for record in records:
            trace.directory.of_record(record)
        for signal in signals:
            fallbacks.hear(signal)
        for record in followed:
            if kinds[record["kind"]] == "TRACE_ENDED" or record["state"] == _CLOSE:
                trace.directory.forget(trace.directory.of_record(record))

    trace.watch(kernel, read)
    trace.watch(tap, read)


def _follow_events(trace: Trace, refusal: str) -> None:
    """Without packets: which connections there are is known from the kernel's events."""
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
                gone = [who for who in directory.by_flow.values() if who.token == event.token]
                for who in gone:
                    directory.forget(who)

    trace.watch(events, read)
