# SPDX-License-Identifier: BSD-3-Clause
"""``trace joins``: each MP_JOIN attempt and how it ended.

The handshake (RFC 8684, 3.2: SYN, SYN/ACK, ACK, each with MP_JOIN) is followed by its packets; the
kernel's socket states say when a subflow is established and with which error a join failed.  No
packet says why this host refused a join, but the kernel counts refusals by cause
(net/mptcp/mib.h): a counter that was incremented, and that no other refusal explains, gives the
cause.  MPJoinRejected has several causes; the connection's state and subflows at that moment tell
them apart (`standing`).  If no counter was incremented, or the peer refused, the line lists the
possible causes with the evidence.  A join that its initiator ends is abandoned, not refused.

This tool does not subscribe to path-manager events, because under the userspace path manager a
subscriber changes which joins the kernel accepts.  Only if the kernel refuses the BPF programs,
`joins_by_events` uses them.
"""

from collections import Counter

from mptcpd_ebpf.kernel import counters, sysctl
from mptcpd_ebpf.kernel.pm_client import PmClient
from mptcpd_ebpf.probes import BpfUnavailable
from mptcpd_ebpf.trace import words
from mptcpd_ebpf.trace.frame import Summary, Trace
from mptcpd_ebpf.trace.join_attempt import (
    COUNTED,
    NEVER_SENT,
    QUIET_NS,
    Attempt,
    error_reason,
    fits,
    meaning,
    peers_reason,
    unanswered_causes,
)
from mptcpd_ebpf.trace.joins_by_events import JoinsByEvents, follow_joins_by_events
from mptcpd_ebpf.trace.lines.joins import JoinLine, JoinsSummaryLine
from mptcpd_ebpf.trace.scope import Flow, Subject
from mptcpd_ebpf.trace.signals import Flag, Signal, Subtype
from mptcpd_ebpf.trace.standing import ConnectionStates
from mptcpd_ebpf.trace.tap import BothSides, Tap, open_with_tap
from mptcpd_ebpf.trace.trace_programs import Record, TracePrograms

_SYN_SENT, _CLOSE = 2, 7  # include/net/tcp_states.h
_GIVEN_UP_NS = 180_000_000_000
"""Longer than SYNs are retransmitted (tcp_syn_retries 6: 127 s)."""


class JoinTrace:
    """Follows handshakes until they end, and emits their lines."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._attempts: dict[Flow, Attempt] = {}
        self._explained = counters.read()
        """The counters, without the increments that have not explained an outcome yet."""
        self._quiet: dict[str, int] = {}
        """The counters at the last check, if no handshake was in progress then."""
        self.outcomes: Counter[str] = Counter()
        self.states = ConnectionStates()

    # --- packets

    def on_signal(self, signal: Signal) -> None:
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
                    "the SYN/ACK has no MP_JOIN: a middlebox removed it, "
                    "or the other end does not support MPTCP"
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
        option = reset.option(Subtype.MP_TCPRST)
        code = None if option is None else option.reset_reason
        packet = "a plain RST"
        if option is not None and code is not None:
            packet = f"RST with MP_TCPRST ({words.reset(code, option.reset_transient)})"
        sender = "this host" if reset.outgoing else "the peer"
        evidence = [f"{sender} sent {packet}", *attempt.notes]
        known = self._trace.directory.of_flow(*flow)
        token = attempt.token or known.token
        evidence += self._closing(token, reset.at)
        up = self.states.up_for(token, known.cookie, reset.at)
        if attempt.incoming and up is not None:
            outcome, why = "established", f"established, and reset after {words.duration(up)}"
        elif reset.outgoing:
            outcome, why = self._own_reason(attempt, token, reset.at, code, evidence)
        elif attempt.incoming:
            outcome = "abandoned"
            why = "the peer gave up its own join: it has probably closed the connection"
        else:
            outcome, why = "refused", peers_reason(attempt, code)
        self._end(flow, attempt, outcome, why, reset.at, evidence)

    def _closing(self, token: int | None, at: int) -> list[str]:
        closing = self.states.closing_for(token, at)
        if closing is None:
            return []
        return [f"this host had been closing the connection for {words.duration(closing)}"]

    def _own_reason(
        self, attempt: Attempt, token: int | None, at: int, code: int | None, evidence: list[str]
    ) -> tuple[str, str]:
        """Outcome and cause of a join that this host reset; adds to the evidence."""
        now = counters.read()
        moved = [
            name
            for name in COUNTED
            if now.get(name, 0) > self._explained.get(name, 0) and fits(name, attempt)
        ]
        evidence += [f"counter {name} was incremented" for name in moved]
        if len(moved) > 1:
            candidates = ", or ".join(dict.fromkeys(meaning(name, attempt) for name in moved))
            return "refused", f"several joins were refused at the same time; this one: {candidates}"
        for name in moved:
            self._explained[name] += 1
            if name == "MPJoinRejected":
                return "refused", self._rejected(token, at, evidence)
            if attempt.incoming and name == "MPJoinAckHMacFailure" and "MPJoinRejected" not in now:
                # Kernels before 6.15 count all refusals of the third packet here.
                why = self._known_rejection(token, at, evidence)
                return "refused", why or meaning(name, attempt)
            return "refused", meaning(name, attempt)
        if not attempt.incoming:
            if attempt.notes:
                return "refused", attempt.notes[0]
            return "abandoned", self._given_up(token, at)
        if attempt.third:
            if code is None:
                return "refused", "this host was closing the connection"
            return "refused", self._rejected(token, at, evidence)  # some kernels do not count it
        if code is not None:
            return "refused", "the SYN was not accepted; this kernel gives no cause"
        return "refused", "nothing listens on that address and port"

    def _given_up(self, token: int | None, at: int) -> str:
        """Why this host ended its own join."""
        if self.states.closing_for(token, at) is not None:
            return "this host closed the connection before the join was established"
        return (
            "this host gave up its own join: it closed the connection before the answer, "
            "or its path manager destroyed the subflow"
        )

    def _rejected(self, token: int | None, at: int, evidence: list[str]) -> str:
        """Why this host did not accept a join with a correct token and HMAC."""
        return self._known_rejection(token, at, evidence) or (
            "not the limit of subflows; possible causes: data waited out of order (Linux 6.1 and "
            "6.12), the connection was not fully established yet, it was closing, or the limit "
            "has changed since"
        )

    def _known_rejection(self, token: int | None, at: int, evidence: list[str]) -> str | None:
        additional = self.states.additional(token, at)
        closing = self.states.closing_for(token, at) is not None
        if sysctl.PathManagerSetting().current() == "userspace":
            return (
                "the connection was already closing"
                if closing
                else "refused by policy: userspace path manager, and nothing listens to its events"
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
        return "the connection was already closing" if closing else None

    # --- the kernel's state

    def learn(self, record: Record, kind: str) -> None:
        """Updates the states of connections and subflows; called before the packets are read."""
        if kind == "TRACE_CONNECTION":
            self.states.connection(record)
        elif kind == "TRACE_STATE":
            self._trace.directory.of_record(record)
            self.states.subflow(record)

    def take(self, record: Record, kind: str) -> None:
        """Ends the joins that the kernel gave up; called after the packets were read."""
        if kind != "TRACE_STATE" or not record["joined"]:
            return
        subject = self._trace.directory.of_record(record)
        flow = subject.local, subject.remote
        attempt = self._attempts.get(flow)
        if attempt is None:
            return
        attempt.token = subject.token or attempt.token
        if record["old_state"] != _SYN_SENT or record["state"] != _CLOSE:
            return
        if record["error"]:
            outcome, why = "failed", error_reason(record["error"], attempt)
        else:
            outcome, why = "abandoned", self._given_up(attempt.token, record["at"])
        evidence = [*attempt.notes, *self._closing(attempt.token, record["at"])]
        self._end(flow, attempt, outcome, why, record["at"], evidence)

    def look(self, now: int, *, last: bool = False) -> None:
        """Ends joins that have been established or unanswered for a while, and reports joins
        whose SYN was never sent."""
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
                    why = f"the SYN/ACK was never acknowledged ({sent})"
                self._end(flow, attempt, "unanswered", why, now, unanswered_causes(attempt))
        present = counters.read()
        # Increments from before the last check, when no handshake was in progress, cannot explain
        # a later outcome.
        self._explained |= {name: self._quiet[name] for name in COUNTED if name in self._quiet}
        self._quiet = {} if self._attempts else present
        for name, why in NEVER_SENT.items():
            for _ in range(present.get(name, 0) - self._explained.get(name, 0)):
                self._explained[name] += 1
                if self._trace.scope.is_restricted:
                    continue  # the connection is not known
                self.outcomes["never sent"] += 1
                self._trace.emit(
                    JoinLine(
                        at=now,
                        token=None,
                        outcome="never sent",
                        why=why,
                        evidence=[f"counter {name} was incremented"],
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
        subject = Subject(
            token=attempt.token or known.token,
            local=flow[0],
            remote=flow[1],
            joined=True,
            owner=known.owner,
        )
        if not self._trace.admits(subject):
            return
        self.outcomes[outcome] += 1
        option = attempt.syn.option(Subtype.MP_JOIN)
        self._trace.emit(
            JoinLine(
                at=at,
                **subject.fields(),
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
    joins.states.begin(trace.directory.look().subflows)

    both = BothSides(kernel, tap)

    def read_both() -> None:
        # The kernel's state gives the token of a SYN that was just sent, and the state at the
        # time of a packet; a join that a packet ended is reported with that packet.
        records, signals, followed = both.read()
        for record in records:
            joins.learn(record, kinds[record["kind"]])
        for signal in signals:
            joins.on_signal(signal)
        for record in followed:
            joins.take(record, kinds[record["kind"]])

    def look() -> None:
        read_both()
        joins.look(trace.now())

    trace.watch(kernel, read_both)
    trace.watch(tap, read_both)
    trace.every(0.1, look)
    return joins
