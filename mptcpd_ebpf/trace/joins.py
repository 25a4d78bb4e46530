# SPDX-License-Identifier: BSD-3-Clause
"""``trace joins``: each MP_JOIN attempt and how it ended.

The handshake (RFC 8684, 3.2: SYN, SYN/ACK, ACK, each with MP_JOIN) is read off the wire; the
kernel's own state says when a subflow stands and with which error it was given up.  Why
this host refused is in no packet, but the kernel counts it (net/mptcp/mib.h): a counter
that moved, and that no other refusal explains, is the reason.  MPJoinRejected has several:
which it was say the connection's state and subflows at that moment (`standing`).  Where no
counter moved, or the peer refused, what remains possible is listed with the evidence.  A
join that its own initiator ends is abandoned, not refused.

Nothing here subscribes to path-manager events: under the userspace path manager a
subscriber changes which joins are accepted.  Only where the kernel refuses the programs
they are what is left (`joins_by_events`).
"""

from collections import Counter

from mptcpd_ebpf.kernel import counters, sysctl
from mptcpd_ebpf.kernel.pm_client import PmClient
from mptcpd_ebpf.probes import BpfUnavailable
from mptcpd_ebpf.trace import words
from mptcpd_ebpf.trace.frame import Summary, Trace
from mptcpd_ebpf.trace.join_attempt import (
    COUNTED,
    NEVER_LEFT,
    QUIET_NS,
    Attempt,
    error_reason,
    fits,
    meaning,
    peers_reason,
    silent,
)
from mptcpd_ebpf.trace.joins_by_events import JoinsByEvents, follow_joins_by_events
from mptcpd_ebpf.trace.lines.joins import JoinLine, JoinsSummaryLine
from mptcpd_ebpf.trace.scope import Flow, Subject
from mptcpd_ebpf.trace.signals import Flag, Signal, Subtype
from mptcpd_ebpf.trace.standing import Standing
from mptcpd_ebpf.trace.tap import BothSides, Tap, open_with_tap
from mptcpd_ebpf.trace.trace_programs import Record, TracePrograms

_SYN_SENT, _CLOSE = 2, 7  # include/net/tcp_states.h
_GIVEN_UP_NS = 180_000_000_000
"""No SYN is repeated for so long (tcp_syn_retries 6: 127 s)."""


class JoinTrace:
    """Follows handshakes to their ends."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._attempts: dict[Flow, Attempt] = {}
        self._explained = counters.read()
        """The counters, less what no outcome has been explained by yet."""
        self._quiet: dict[str, int] = {}
        """The counters at the last look, if no join was under way then."""
        self.outcomes: Counter[str] = Counter()
        self.standing = Standing()

    # --- the wire

    def hear(self, signal: Signal) -> None:
        flow = signal.local, signal.remote
        attempt = self._attempts.get(flow)
        option = signal.option(Subtype.MP_JOIN)
        if signal.is_syn and option:
            self._begin(flow, signal, attempt)
        elif attempt is None:
            return
        elif signal.is_reset:
            self._refused(flow, attempt, signal)
        elif signal.is_syn_ack:
            attempt.syn_ack = signal
            if not option:
                attempt.notes.append(
                    "the SYN/ACK carries no MP_JOIN: a middlebox removed it, "
                    "or the other end is no MPTCP host"
                )
        elif option and signal.flags & Flag.ACK:
            attempt.third = signal

    def _begin(self, flow: Flow, syn: Signal, before: Attempt | None) -> None:
        if before is not None and before.syn.seq == syn.seq:
            before.syns += 1
            return
        option = syn.option(Subtype.MP_JOIN)
        token = option.join_token if option and not syn.outgoing else None
        if syn.outgoing:
            token = self._trace.directory.of_flow(*flow).token
        self._attempts[flow] = Attempt(syn, token)
        self._quiet = {}

    def _refused(self, flow: Flow, attempt: Attempt, reset: Signal) -> None:
        told = reset.option(Subtype.MP_TCPRST)
        code = None if told is None else told.reset_reason
        said = "a plain RST"
        if told is not None and code is not None:
            said = f"RST with MP_TCPRST ({words.reset(code, told.reset_transient)})"
        evidence = [f"{'this host' if reset.outgoing else 'the peer'} sent {said}", *attempt.notes]
        known = self._trace.directory.of_flow(*flow)
        token = attempt.token or known.token
        evidence += self._closing(token, reset.at)
        up = self.standing.up_for(token, known.cookie, reset.at)
        if attempt.incoming and up is not None:
            outcome, why = "established", f"established, and reset after {words.duration(up)}"
        elif reset.outgoing:
            outcome, why = self._own_reason(attempt, token, reset.at, code, evidence)
        elif attempt.incoming:
            outcome = "abandoned"
            why = "the peer gave its own join up: its connection has probably ended there"
        else:
            outcome, why = "refused", peers_reason(attempt, code)
        self._end(flow, attempt, outcome, why, reset.at, evidence)

    def _closing(self, token: int | None, at: int) -> list[str]:
        closing = self.standing.closing_for(token, at)
        if closing is None:
            return []
        return [f"the connection was closing here for {words.duration(closing)}"]

    def _own_reason(
        self, attempt: Attempt, token: int | None, at: int, code: int | None, evidence: list[str]
    ) -> tuple[str, str]:
        """The outcome where this host sent the reset, and why; adds to the evidence."""
        now = counters.read()
        moved = [
            name
            for name in COUNTED
            if now.get(name, 0) > self._explained.get(name, 0) and fits(name, attempt)
        ]
        evidence += [f"counter {name} moved" for name in moved]
        if len(moved) > 1:
            candidates = ", or ".join(dict.fromkeys(meaning(name, attempt) for name in moved))
            return "refused", f"several joins were refused at once; this one: {candidates}"
        for name in moved:
            self._explained[name] += 1
            if name == "MPJoinRejected":
                return "refused", self._rejected(token, at, evidence)
            if attempt.incoming and name == "MPJoinAckHMacFailure" and "MPJoinRejected" not in now:
                # Such a kernel (before 6.15) counts all refusals of the third packet here.
                why = self._known_rejection(token, at, evidence)
                return "refused", why or meaning(name, attempt)
            return "refused", meaning(name, attempt)
        if not attempt.incoming:
            if attempt.notes:
                return "refused", attempt.notes[0]
            return "abandoned", self._given_up(token, at)
        if attempt.third:
            if code is None:
                return "refused", "the connection was ending here"
            return "refused", self._rejected(token, at, evidence)  # not counted by every kernel
        if code is not None:
            return "refused", "the SYN was not accepted, which this kernel does not explain"
        return "refused", "nobody listens at that address and port"

    def _given_up(self, token: int | None, at: int) -> str:
        """Why this host did not go on with a join of its own."""
        if self.standing.closing_for(token, at) is not None:
            return "the connection was closed here before the join stood"
        return (
            "this host gave its own join up: the connection was closed before the answer, "
            "or its path manager took the subflow back"
        )

    def _rejected(self, token: int | None, at: int, evidence: list[str]) -> str:
        """Why this host did not accept a join whose token and HMAC were right."""
        return self._known_rejection(token, at, evidence) or (
            "not the limit of subflows; it may be: data waited out of order (Linux 6.1 and "
            "6.12), the connection was not fully established yet, it was ending, or the limit "
            "was changed since"
        )

    def _known_rejection(self, token: int | None, at: int, evidence: list[str]) -> str | None:
        additional = self.standing.additional(token, at)
        closing = self.standing.closing_for(token, at) is not None
        if sysctl.PathManagerSetting().current() == "userspace":
            return (
                "the connection was closing already"
                if closing
                else "refused by policy: path manager userspace, and nobody listens to it"
            )
        with PmClient() as client:
            limit = client.limits().subflows
        evidence.append(
            f"the connection had {additional} additional subflows, the limit is {limit}"
        )
        if additional >= limit:
            return (
                f"the limit of {limit} additional subflows "
                "(mptcpd-ebpf or 'ip mptcp limits' sets it)"
            )
        return "the connection was closing already" if closing else None

    # --- the kernel's state

    def learn(self, record: Record, kind: str) -> None:
        """What happened to connections and subflows; before the packets are heard."""
        if kind == "TRACE_CONNECTION":
            self.standing.connection(record)
        elif kind == "TRACE_STATE":
            self._trace.directory.of_record(record)
            self.standing.subflow(record)

    def take(self, record: Record, kind: str) -> None:
        """Ends the joins that the kernel gave up; after the packets were heard."""
        if kind != "TRACE_STATE" or not record["joined"]:
            return
        who = self._trace.directory.of_record(record)
        flow = who.local, who.remote
        attempt = self._attempts.get(flow)
        if attempt is None:
            return
        attempt.token = who.token or attempt.token
        if record["old_state"] != _SYN_SENT or record["state"] != _CLOSE:
            return
        if record["error"]:
            outcome, why = "failed", error_reason(record["error"], attempt)
        else:
            outcome, why = "abandoned", self._given_up(attempt.token, record["at"])
        evidence = [*attempt.notes, *self._closing(attempt.token, record["at"])]
        self._end(flow, attempt, outcome, why, record["at"], evidence)

    def look(self, now: int, *, last: bool = False) -> None:
        """Ends what stands since a while, and tells of joins that never left this host."""
        for flow, attempt in list(self._attempts.items()):
            if attempt.third and (last or now - attempt.third.at > QUIET_NS):
                option = attempt.syn_ack and attempt.syn_ack.option(Subtype.MP_JOIN)
                backup = attempt.backup or bool(option and option.backup)
                why = "established as backup" if backup else "established"
                self._end(flow, attempt, "established", why, attempt.third.at, attempt.notes)
            elif last or now - attempt.syn.at > _GIVEN_UP_NS:
                waited = words.duration(now - attempt.syn.at)
                by = "this host" if attempt.incoming else "the peer"
                sent = f"{attempt.syns} SYN in {waited}"
                if attempt.syn_ack is None:
                    why = f"no answer from {by} so far ({sent})"
                else:
                    why = f"the SYN/ACK was never confirmed ({sent})"
                self._end(flow, attempt, "unanswered", why, now, silent(attempt))
        present = counters.read()
        # What was counted before the last look, and no join under way explains, none will.
        self._explained |= {name: self._quiet[name] for name in COUNTED if name in self._quiet}
        self._quiet = {} if self._attempts else present
        for name, why in NEVER_LEFT.items():
            for _ in range(present.get(name, 0) - self._explained.get(name, 0)):
                self._explained[name] += 1
                if self._trace.scope.asks_for_one:
                    continue  # whose it was is not known
                self.outcomes["never sent"] += 1
                self._trace.emit(
                    JoinLine(
                        at=now,
                        token=None,
                        outcome="never sent",
                        why=why,
                        evidence=[f"counter {name} moved"],
                        incoming=False,
                    )
                )

    def _end(
        self,
        flow: Flow,
        attempt: Attempt,
        outcome: str,
        why: str,
        at: int,
        evidence: list[str],
    ) -> None:
        del self._attempts[flow]
        known = self._trace.directory.of_flow(*flow)
        who = Subject(
            token=attempt.token or known.token,
            local=flow[0],
            remote=flow[1],
            joined=True,
            owner=known.owner,
        )
        if not self._trace.admits(who):
            return
        self.outcomes[outcome] += 1
        option = attempt.syn.option(Subtype.MP_JOIN)
        self._trace.emit(
            JoinLine(
                at=at,
                **who.fields(),
                incoming=attempt.incoming,
                outcome=outcome,
                why=why,
                evidence=evidence,
                address_id=option.address_id if option else None,
                backup=attempt.backup,
                syns=attempt.syns,
                took_ns=at - attempt.syn.at,
            )
        )


def trace_joins(trace: Trace, constants: dict[str, int]) -> Summary:
    programs = ("state_changed", "connection_changed")
    joins: JoinTrace | JoinsByEvents
    try:
        kernel, tap = open_with_tap(trace, programs, constants)
    except BpfUnavailable as error:
        joins = follow_joins_by_events(trace, str(error))
    else:
        trace.means.append("MPTcpExt counters")
        joins = _follow(trace, kernel, tap)

    def summary() -> None:
        joins.look(trace.now(), last=True)
        moved = {k: v for k, v in trace.counted().items() if k.startswith(("MPJoin", "Mismatch"))}
        trace.emit(
            JoinsSummaryLine(
                at=trace.now(), outcomes=dict(joins.outcomes.most_common()), counters=moved
            )
        )

    return summary


def _follow(trace: Trace, kernel: TracePrograms, tap: Tap) -> JoinTrace:
    kinds = kernel.enumeration("trace_kind")
    joins = JoinTrace(trace)
    joins.standing.begin(trace.directory.look().subflows)

    both = BothSides(kernel, tap)

    def read_both() -> None:
        # The kernel's state knows the token of a SYN that has just left, and what was so when
        # a packet passed; a join that a packet ended is told with that packet.
        records, signals, followed = both.read()
        for record in records:
            joins.learn(record, kinds[record["kind"]])
        for signal in signals:
            joins.hear(signal)
        for record in followed:
            joins.take(record, kinds[record["kind"]])

    def look() -> None:
        read_both()
        joins.look(trace.now())

    trace.watch(kernel, read_both)
    trace.watch(tap, read_both)
    trace.every(0.1, look)
    return joins
