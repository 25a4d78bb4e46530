# SPDX-License-Identifier: BSD-3-Clause
"""``trace joins`` where the kernel refuses the BPF programs: path-manager events and counters.

The kernel sends an event when a subflow is established and when it ends, with the socket's error
and the peer's reason, if any.  For its initiator a join is established when the SYN/ACK arrives,
so a join that ends right after, while its connection goes on, was refused.  Refusals by this host
are only counted, without the connection.
"""

from collections import Counter
from dataclasses import dataclass

from mptcpd_ebpf.core.events import ConnectionClosed, SubflowClosed, SubflowEstablished
from mptcpd_ebpf.kernel import counters
from mptcpd_ebpf.trace import words
from mptcpd_ebpf.trace.events import Events
from mptcpd_ebpf.trace.frame import Trace
from mptcpd_ebpf.trace.join_attempt import COUNTED, NEVER_SENT, QUIET_NS
from mptcpd_ebpf.trace.lines.joins import JoinLine
from mptcpd_ebpf.trace.scope import Flow, Subject, bound

_TRANSIENT = 1  # MP_TCPRST's T flag (RFC 8684, 3.6)


@dataclass
class _Fresh:
    """A join that was established less than `QUIET_NS` ago."""

    at: int
    subject: Subject
    why: str
    ended: bool = False


class JoinsByEvents:
    """Emits the ends of joins, as far as events and counters show them."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._explained = counters.read()
        self._fresh: dict[Flow, _Fresh] = {}
        self._closed: dict[int, None] = {}
        """Tokens of the connections closed last, in order; the values have no meaning."""
        self.outcomes: Counter[str] = Counter()

    def take(self, event: object, at: int) -> None:
        if isinstance(event, ConnectionClosed):
            self._closed[event.token] = None
            bound(self._closed)
        if not isinstance(event, SubflowEstablished | SubflowClosed):
            return
        flow = event.local, event.remote
        subject = Subject(
            token=event.token,
            local=event.local,
            remote=event.remote,
            local_id=event.local_id,
            remote_id=event.remote_id,
            joined=True,
        )
        if isinstance(event, SubflowEstablished):
            self._closed.pop(event.token, None)
            why = "established as backup" if event.backup else "established"
            self._fresh[flow] = _Fresh(at, subject, why)
            bound(self._fresh)
        elif fresh := self._fresh.get(flow):
            reasons = [words.error(event.error)] if event.error else []
            if event.reset_reason is not None:
                transient = bool(event.reset_flags and event.reset_flags & _TRANSIENT)
                reasons.append(f"MP_TCPRST {words.reset(event.reset_reason, transient)}")
            if reasons:
                del self._fresh[flow]
                self._report("failed", ", ".join(reasons), subject, at)
            else:
                fresh.ended = True

    def look(self, now: int, *, last: bool = False) -> None:
        """Reports joins that have been established for a while, and counters that increased."""
        for flow, fresh in list(self._fresh.items()):
            if last or now - fresh.at > QUIET_NS:
                del self._fresh[flow]
                outcome, why = "established", fresh.why
                if fresh.ended and fresh.subject.token not in self._closed:
                    outcome = "failed"
                    why = "ended at once while its connection goes on: the peer probably refused it"
                self._report(outcome, why, fresh.subject, fresh.at)
        present = counters.read()
        for outcome, meanings in (("refused", COUNTED), ("never sent", NEVER_SENT)):
            for name, why in meanings.items():
                for _ in range(present.get(name, 0) - self._explained.get(name, 0)):
                    self._report(outcome, why, None, now, [f"counter {name} was incremented"])
        self._explained = present

    def _report(
        self,
        outcome: str,
        why: str,
        subject: Subject | None,
        at: int,
        evidence: list[str] | None = None,
    ) -> None:
        scope = self._trace.scope
        if scope.is_restricted and (subject is None or not self._trace.admits(subject)):
            return
        self.outcomes[outcome] += 1
        fields = subject.fields() if subject else {"token": None}
        self._trace.emit(
            JoinLine(at=at, **fields, outcome=outcome, why=why, evidence=evidence or [])
        )


def follow_joins_by_events(trace: Trace, refusal: str) -> JoinsByEvents:
    """Follows joins by events; `refusal` says why the BPF programs are missing."""
    events = trace.open(Events())
    trace.means += [*events.means(), "MPTcpExt counters", f"packets are not seen: {refusal}"]
    joins = JoinsByEvents(trace)

    def read() -> None:
        at = trace.now()
        for event in events.read():
            joins.take(event, at)

    trace.watch(events, read)
    trace.every(0.1, lambda: joins.look(trace.now()))
    return joins
