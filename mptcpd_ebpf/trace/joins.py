# SPDX-License-Identifier: BSD-3-Clause
"""``trace joins``: each MP_JOIN attempt and how it ended.

The handshake (RFC 8684, 3.2: SYN, SYN/ACK, ACK, each with MP_JOIN) is read off the wire; the
kernel's own state says when a subflow stands and with which error it was given up.  Why
this host refused is in no packet, but the kernel counts it (net/mptcp/mib.h): a counter
that moved, and that no other refusal explains, is the reason.  Where none moved, or the peer
refused, what remains possible is listed with the evidence.

Nothing here subscribes to path-manager events: under the userspace path manager a
subscriber changes which joins are accepted.
"""

from collections import Counter
from dataclasses import dataclass, field

from mptcpd_ebpf.kernel import counters, sysctl
from mptcpd_ebpf.kernel.pm_client import PmClient
from mptcpd_ebpf.trace import words
from mptcpd_ebpf.trace.frame import Summary, Trace
from mptcpd_ebpf.trace.kernel_side import KernelSide, Record
from mptcpd_ebpf.trace.scope import Flow, Subject, token_words
from mptcpd_ebpf.trace.signals import Flag, Signal, Subtype
from mptcpd_ebpf.trace.tap import Tap

_ESTABLISHED, _SYN_SENT, _CLOSE = 1, 2, 7
_GIVEN_UP_NS = 180_000_000_000
"""No SYN is repeated for so long (tcp_syn_retries 6: 127 s)."""
_PROHIBITED = 3
"""The reason of an MP_TCPRST (RFC 8684, 3.6): administratively prohibited."""
_QUIET_NS = 200_000_000
"""A handshake that has not been refused so long after its third packet stands."""

COUNTED = {
    "MPJoinNoTokenFound": "unknown token: this host has no connection with it (any more)",
    "MPJoinAckHMacFailure": "wrong HMAC in the third packet: not the peer of this connection",
    "MPJoinSynAckHMacFailure": "wrong HMAC in the SYN/ACK: not the peer of this connection",
    "MismatchPortSynRx": "the SYN came to a port that was never announced",
    "MismatchPortAckRx": "the third packet came to a port that was never announced",
    "MPJoinRejected": "the path manager did not want it",
}
"""Counters of refusals by this host, and what each means."""
_NEVER_LEFT = {
    "MPJoinSynTxCreatSkErr": "no socket could be made",
    "MPJoinSynTxBindErr": "the local address could not be bound: it is gone, or the port is taken",
    "MPJoinSynTxConnectErr": "there is no route from the local address to the peer",
}


@dataclass
class Attempt:
    """One MP_JOIN handshake under way."""

    syn: Signal
    token: int | None
    """The local token."""
    syns: int = 1
    syn_ack: Signal | None = None
    third: Signal | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def incoming(self) -> bool:
        return not self.syn.outgoing

    @property
    def backup(self) -> bool:
        option = self.syn.option(Subtype.MP_JOIN)
        return option is not None and option.backup


class Joins:
    """Follows handshakes to their ends."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._attempts: dict[Flow, Attempt] = {}
        self._explained = counters.read()
        """The counters, less what no outcome has been explained by yet."""
        self.outcomes: Counter[str] = Counter()

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

    def _refused(self, flow: Flow, attempt: Attempt, reset: Signal) -> None:
        told = reset.option(Subtype.MP_TCPRST)
        code = None if told is None else told.reset_reason
        said = "a plain RST"
        if told is not None and code is not None:
            said = f"RST with MP_TCPRST ({words.reset(code, told.reset_transient)})"
        if reset.outgoing:
            why, evidence = self._own_reason(attempt, said, code)
        else:
            why, evidence = _peers_reason(attempt, code, said)
        self._end(flow, attempt, "refused", why, reset.at, evidence)

    def _own_reason(self, attempt: Attempt, said: str, code: int | None) -> tuple[str, list[str]]:
        """Why this host sent the reset: a counter knows, or candidates are listed."""
        evidence = [f"this host sent {said}", *attempt.notes]
        now = counters.read()
        moved = [name for name in COUNTED if now.get(name, 0) > self._explained.get(name, 0)]
        evidence += [f"counter {name} moved" for name in moved]
        if len(moved) > 1:
            candidates = ", or ".join(COUNTED[name] for name in moved)
            return f"several joins were refused at once; this one: {candidates}", evidence
        for name in moved:
            self._explained[name] += 1
            if name == "MPJoinRejected":
                return self._rejected(evidence)
            return COUNTED[name], evidence
        if code == _PROHIBITED and attempt.incoming:  # a kernel that does not count it
            return self._rejected(evidence)
        if attempt.notes:
            return attempt.notes[0], evidence
        if not attempt.incoming:
            return "this host gave the handshake up", evidence
        return "nobody listens at that address and port", evidence

    @staticmethod
    def _rejected(evidence: list[str]) -> tuple[str, list[str]]:
        """MPJoinRejected: the path manager did not want it."""
        mode = sysctl.PathManagerSetting().current()
        if mode == "userspace":
            return "refused by policy: path manager userspace, and nobody listens to it", evidence
        with PmClient() as client:
            limits = client.limits()
        return (
            f"the limit of {limits.subflows} additional subflows "
            "(mptcpd-ebpf or 'ip mptcp limits' sets it)",
            evidence,
        )

    # --- the kernel's state

    def take(self, record: Record, kind: str) -> None:
        who = self._trace.directory.of_record(record)
        flow = who.local, who.remote
        attempt = self._attempts.get(flow)
        if kind != "TRACE_STATE" or not who.joined:
            return
        if record["state"] == _ESTABLISHED:
            if attempt is None:
                return
            attempt.token = who.token or attempt.token
        elif record["old_state"] == _SYN_SENT and record["state"] == _CLOSE:
            error = record["error"]
            if attempt is None:
                return
            attempt.token = who.token or attempt.token
            if error:
                self._end(flow, attempt, "failed", _error_reason(error, attempt), record["at"], [])

    def look(self, now: int, *, last: bool = False) -> None:
        """Ends what stands since a while, and tells of joins that never left this host."""
        for flow, attempt in list(self._attempts.items()):
            if attempt.third and (last or now - attempt.third.at > _QUIET_NS):
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
                self._end(flow, attempt, "unanswered", why, now, _silent(attempt))
        present = counters.read()
        for name, why in _NEVER_LEFT.items():
            for _ in range(present.get(name, 0) - self._explained.get(name, 0)):
                self._explained[name] += 1
                if self._trace.scope.asks_for_one:
                    continue  # whose it was is not known
                self.outcomes["never sent"] += 1
                self._trace.say(
                    "join",
                    f"?         out  never sent  {why}  (counter {name} moved)",
                    outcome="never sent",
                    why=why,
                    evidence=[f"counter {name} moved"],
                    token=None,
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
        way = "in " if attempt.incoming else "out"
        took = at - attempt.syn.at
        text = (
            f"{token_words(who.token):<8}  {way}  {outcome:<11}  {who.name}  "
            f"id {option.address_id if option else '?'}  {words.duration(took)}  {why}"
        )
        self._trace.say(
            "join",
            "\n".join([text, *(f"    {each}" for each in evidence)]),
            at,
            **who.fields(),
            incoming=attempt.incoming,
            outcome=outcome,
            why=why,
            evidence=evidence,
            address_id=option.address_id if option else None,
            backup=attempt.backup,
            syns=attempt.syns,
            took_ns=took,
        )


def _peers_reason(attempt: Attempt, code: int | None, said: str) -> tuple[str, list[str]]:
    """Why the peer sent the reset: it need not say."""
    evidence = [f"the peer sent {said}", *attempt.notes]
    where = "the third packet" if attempt.third else "the SYN"
    if code is not None and code != 0:
        words_of = {
            1: "it knows no such token, or the HMAC was wrong",
            2: "it lacks resources",
            3: "its policy or its limit of subflows forbids it",
            5: "it holds the path for unacceptable",
            6: "it suspects a middlebox",
        }
        return f"the peer refused {where}: {words_of.get(code, 'no reason known')}", evidence
    if attempt.third:
        candidates = ["a wrong HMAC", "the connection has ended there", "a middlebox"]
    else:
        candidates = ["nobody listens at that address", "a firewall", "its limit of subflows"]
    return f"the peer refused {where}; it may be: {', '.join(candidates)}", evidence


def _error_reason(error: int, attempt: Attempt) -> str:
    tries = f"{attempt.syns} SYN"
    return f"given up after {tries}: {words.error(error)}"


def _silent(attempt: Attempt) -> list[str]:
    if attempt.incoming:
        return ["this host did not answer the SYN" if attempt.syn_ack is None else "ACK missing"]
    return [
        "it may be: the path loses everything, a firewall drops the SYN, "
        "or the peer has no way back to this address"
    ]


def trace_joins(trace: Trace, constants: dict[str, int]) -> Summary:
    kernel = trace.open(KernelSide("trace", ("state_changed",), constants))
    tap = trace.open(Tap(constants["own_netns"]))
    trace.means += [*kernel.hooks(), *tap.hooks(), "MPTcpExt counters"]
    trace.directory.look()
    kinds = kernel.enumeration("trace_kind")
    joins = Joins(trace)

    def read_both() -> None:
        # The kernel's state first: it knows the token of a SYN that has just left.
        records = kernel.read("trace_record")
        for record in records:
            trace.directory.of_record(record)
        for signal in tap.signals():
            joins.hear(signal)
        for record in records:
            joins.take(record, kinds[record["kind"]])

    trace.watch(kernel, read_both)
    trace.watch(tap, read_both)
    trace.every(0.1, lambda: joins.look(trace.now()))

    def summary() -> None:
        joins.look(trace.now(), last=True)
        moved = {k: v for k, v in trace.counted().items() if k.startswith(("MPJoin", "Mismatch"))}
        trace.note(
            "joins: "
            + (", ".join(f"{n} {what}" for what, n in joins.outcomes.most_common()) or "none")
            + "".join(f"\n  {value:5}  {name}" for name, value in moved.items()),
            outcomes=dict(joins.outcomes),
            counters=moved,
        )

    return summary
