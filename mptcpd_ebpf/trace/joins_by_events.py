# SPDX-License-Identifier: BSD-3-Clause
"""``trace joins`` where the kernel refuses its programs: path-manager events and counters.

A subflow that stands has an event, and so has its end, with the socket's error and the
peer's reason, if there are any.  A join is established for its initiator when the SYN/ACK
comes, so one that ends a moment later, while its connection goes on, was refused.  What
this host refused is only counted, and not for whom.
"""

from collections import Counter
from dataclasses import dataclass

from mptcpd_ebpf.core.events import ConnectionClosed, SubflowClosed, SubflowEstablished
from mptcpd_ebpf.kernel import counters
from mptcpd_ebpf.trace import words
from mptcpd_ebpf.trace.events import Events
from mptcpd_ebpf.trace.frame import Trace
from mptcpd_ebpf.trace.join_attempt import COUNTED, NEVER_LEFT, QUIET_NS
from mptcpd_ebpf.trace.lines.joins import JoinLine
from mptcpd_ebpf.trace.scope import Flow, Subject, bound

_TRANSIENT = 1  # MP_TCPRST's T flag (RFC 8684, 3.6)


@dataclass
class _Fresh:
    """A join that was established a moment ago."""

    at: int
    who: Subject
    why: str
    ended: bool = False


class JoinsByEvents:
    """Tells the ends of joins, as far as they can be known."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._explained = counters.read()
        self._fresh: dict[Flow, _Fresh] = {}
        self._closed: dict[int, None] = {}
        """Tokens of connections that were closed, the newest."""
        self.outcomes: Counter[str] = Counter()

    def take(self, event: object, at: int) -> None:
        if isinstance(event, ConnectionClosed):
            self._closed[event.token] = None
            bound(self._closed)
        if not isinstance(event, SubflowEstablished | SubflowClosed):
            return
        flow = event.local, event.remote
        who = Subject(
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
            self._fresh[flow] = _Fresh(at, who, why)
            bound(self._fresh)
        elif fresh := self._fresh.get(flow):
            reasons = [words.error(event.error)] if event.error else []
            if event.reset_reason is not None:
                transient = bool(event.reset_flags and event.reset_flags & _TRANSIENT)
                reasons.append(f"MP_TCPRST {words.reset(event.reset_reason, transient)}")
            if reasons:
                del self._fresh[flow]
                self._tell("failed", ", ".join(reasons), who, at)
            else:
                fresh.ended = True

    def look(self, now: int, *, last: bool = False) -> None:
        """Tells of joins that stand since a while, and of counters that moved."""
        for flow, fresh in list(self._fresh.items()):
            if last or now - fresh.at > QUIET_NS:
                del self._fresh[flow]
                outcome, why = "established", fresh.why
                if fresh.ended and fresh.who.token not in self._closed:
                    outcome = "failed"
                    why = "ended at once while its connection goes on: probably the peer refused it"
                self._tell(outcome, why, fresh.who, fresh.at)
        present = counters.read()
        for outcome, meanings in (("refused", COUNTED), ("never sent", NEVER_LEFT)):
            for name, why in meanings.items():
                for _ in range(present.get(name, 0) - self._explained.get(name, 0)):
                    self._tell(outcome, why, None, now, [f"counter {name} moved"])
        self._explained = present

    def _tell(
        self,
        outcome: str,
        why: str,
        who: Subject | None,
        at: int,
        evidence: list[str] | None = None,
    ) -> None:
        scope = self._trace.scope
        if scope.asks_for_one and (who is None or not self._trace.admits(who)):
            return
        self.outcomes[outcome] += 1
        fields = who.fields() if who else {"token": None}
        self._trace.emit(
            JoinLine(at=at, **fields, outcome=outcome, why=why, evidence=evidence or [])
        )


def follow_joins_by_events(trace: Trace, refusal: str) -> JoinsByEvents:
    """Opens the events and takes joins from them; `refusal`: why the programs do not."""
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
