# SPDX-License-Identifier: BSD-3-Clause
"""An engine with `adaptive`, and a model of the kernel's answers to its commands. Time is a
number. A path answers joins and probes after its RTT or never, as the test sets it; the test sends
the alarms of a bad path.
"""

import heapq
import itertools
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from mptcpd_ebpf.config.plugin_loader import load
from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.commands import (
    CreateSubflow,
    Decision,
    DestroySubflow,
    ProbePath,
    ReportPath,
    RequestSample,
)
from mptcpd_ebpf.core.engine import Outcome
from mptcpd_ebpf.core.measurement import AlarmKind, Measurement
from mptcpd_ebpf.core.model import MS, SECOND, Connection, Subflow, SubflowKey
from tests.core.scenario import StartedEngine

START = 1000 * SECOND
TOKEN = 0x1A2B3C4D
SERVER = SockAddr("10.0.9.1", 443)
FIBRE, MOBILE = "10.0.1.2", "10.0.2.2"
RTT = {FIBRE: 20 * MS, MOBILE: 80 * MS}


class Flow(NamedTuple):
    """What a path carries of a bulk upload."""

    rate: float
    """Bytes per second."""
    blocked: float = 0.0
    """Part of the time in which the others wait for it."""


Answers = Callable[[], bool]
"""Whether a join or probe sent now is answered."""


class Simulation:
    """One client connection from `FIBRE`, and a second interface with `MOBILE`."""

    def __init__(
        self, *, mobile: bool = True, server_side: bool = False, options: str = ""
    ) -> None:
        adaptive = load("adaptive")
        plugin = adaptive(msgspec.yaml.decode(options or "{}", type=adaptive.Options))
        self.engine = StartedEngine(plugin, default_plugin="adaptive")
        self.now = START
        self.answers: dict[str, Answers] = {FIBRE: lambda: True, MOBILE: lambda: True}
        self.small_only: dict[str, None] = {}
        """Addresses from which no large packet arrives."""
        self.unsendable = 0
        """What the kernel answers to probes."""
        self.extra_rtt = {FIBRE: 0, MOBILE: 0}
        self.rates: Callable[[list[str]], dict[str, Flow]] = lambda _: {}
        """What each path carries while these addresses have regular subflows."""
        self.idle_us: int | None = None
        """For how long nothing has come back on a subflow, as samples show it."""
        self._carried = {FIBRE: 0.0, MOBILE: 0.0}
        self._blocked_us = {FIBRE: 0.0, MOBILE: 0.0}
        self.errno = 0
        """What the kernel answers to joins."""
        self.crossing = False
        """Whether a join's answer crosses the command that gives it up."""
        self.decisions: list[Decision] = []
        self.reports: list[ReportPath] = []
        """What the plugin reported of its paths; not among `decisions`."""
        self.faults: list[str] = []
        self._due: list[tuple[int, int, ev.Event]] = []
        self._order = itertools.count()
        self._ports = itertools.count(40_001)
        self._opening: dict[SubflowKey, int] = {}
        interfaces = [(1, "fibre", FIBRE), (2, "mobile", MOBILE)][: 2 if mobile else 1]
        for index, name, ip in interfaces:
            self.tell(ev.LinkChanged(if_index=index, name=name, up=True, running=True))
            self.tell(ev.LocalAddressChanged(if_index=index, ip=ip, prefix_len=24))
            self.tell(ev.DefaultRouteAdded(if_index=index, ipv6=False))
        first = SockAddr(FIBRE, 40_000)
        for kind in (ev.ConnectionCreated, ev.ConnectionEstablished):
            self.tell(kind(token=TOKEN, local=first, remote=SERVER, server_side=server_side))

    @property
    def connection(self) -> Connection:
        return self.engine.world.connections[TOKEN]

    def regular(self, ip: str) -> list[Subflow]:
        """The established subflows from an address that are not on backup."""
        return [
            subflow
            for subflow in self.connection.usable_subflows()
            if subflow.local.ip == ip and not subflow.backup
        ]

    def tell(self, event: ev.Event) -> None:
        self._outcome(self.engine.handle(event, self.now))

    def wait(self, nanoseconds: int) -> None:
        """Advances the time: handles deadlines and answers joins."""
        until = self.now + nanoseconds
        while True:
            deadline = self.engine.deadline
            next_event = self._due[0][0] if self._due else None
            moment = min((at for at in (deadline, next_event) if at is not None), default=None)
            if moment is None or moment > until:
                break
            self._advance(max(self.now, moment))
            if next_event is not None and next_event <= self.now:
                self._deliver(heapq.heappop(self._due)[2])
            else:
                self.tell(ev.Tick())
        self._advance(until)

    def _advance(self, to: int) -> None:
        """Lets the time pass, and the data flow."""
        elapsed = (to - self.now) / SECOND
        regular = [ip for ip in self._carried if self.engine.world.connections and self.regular(ip)]
        for ip, flow in self.rates(regular).items():
            self._carried[ip] += flow.rate * elapsed
            self._blocked_us[ip] += flow.blocked * elapsed * 1e6
        self.now = to

    def alarm(self, ip: str, kind: AlarmKind, *, in_flight: int = 4, value: int = 120_000) -> None:
        """The path's subflow crosses a threshold."""
        for subflow in self.regular(ip):
            measured = self._measure(subflow, in_flight)
            self.tell(ev.AlarmRaised(kind=kind, measurement=measured, value=value))
            return

    def reload(self) -> None:
        """A reload with an unchanged configuration."""
        outcome = self.engine.configure(load("adaptive")(), default_plugin="adaptive", now=self.now)
        self._outcome(outcome)

    def actions(self, since: int = START) -> list[Decision]:
        """What was decided since then, and not refused, without the routine."""
        return [
            each
            for each in self.decisions
            if each.at >= since and each.refused is None and not each.command.routine
        ]

    # --- the kernel's part

    def _outcome(self, outcome: Outcome) -> None:
        self.faults += [f"{fault.handler}: {fault.error}" for fault in outcome.faults]
        for decision in outcome.decisions:
            if isinstance(decision.command, ReportPath):
                self.reports.append(decision.command)
                continue
            self.decisions.append(decision)
            if decision.refused is None:
                self._carry_out(decision)

    def _carry_out(self, decision: Decision) -> None:
        """The answer is handled first, as in the daemon."""
        if isinstance(decision.command, RequestSample):
            self._later(0, ev.Sampled(measurements=self._sample()))
            return
        if isinstance(decision.command, ProbePath):
            self._probe(decision.id, decision.command)
            return
        refused = self.errno if isinstance(decision.command, CreateSubflow) else 0
        self._later(0, ev.CommandAnswered(decision_id=decision.id, errno=refused))
        if refused:
            return
        match decision.command:
            case CreateSubflow() as create:
                self._join(create)
            case DestroySubflow() as destroy:
                key = (destroy.local, destroy.remote)
                if not self.crossing:
                    self._opening.pop(key, None)
                elif key in self._opening:
                    joined = ev.SubflowEstablished(
                        token=destroy.token, local=destroy.local, remote=destroy.remote
                    )
                    self._later(0, joined)
                closed = ev.SubflowClosed(
                    token=destroy.token, local=destroy.local, remote=destroy.remote
                )
                self._later(0, closed)

    def _probe(self, number: int, probe: ProbePath) -> None:
        self._later(0, ev.CommandAnswered(decision_id=number, errno=self.unsendable))
        lost = probe.full_size and probe.local_ip in self.small_only
        if self.unsendable or lost or not self.answers[probe.local_ip]():
            return
        rtt = RTT[probe.local_ip] + self.extra_rtt[probe.local_ip]
        self._later(rtt, ev.PathProbed(decision_id=number, rtt_us=rtt // 1000, size=1500))

    def _join(self, create: CreateSubflow) -> None:
        local = SockAddr(create.local_ip, next(self._ports))
        self._opening[local, create.remote] = self.now
        if not self.answers[create.local_ip]():
            return
        joined = ev.SubflowEstablished(
            token=create.token,
            local=local,
            remote=create.remote,
            local_id=create.local_id,
            remote_id=0,
        )
        self._later(RTT[create.local_ip] + self.extra_rtt[create.local_ip], joined)

    def _deliver(self, event: ev.Event) -> None:
        """A join that was given up meanwhile never succeeds."""
        if (
            not isinstance(event, ev.SubflowEstablished)
            or self._opening.pop((event.local, event.remote), None) is not None
        ):
            self.tell(event)

    def _later(self, nanoseconds: int, event: ev.Event) -> None:
        heapq.heappush(self._due, (self.now + nanoseconds, next(self._order), event))

    def _sample(self) -> list[Measurement]:
        opening = [
            Measurement(at=self.now, token=TOKEN, local=local, remote=remote, state=2)
            for local, remote in self._opening
        ]
        live = self.connection.usable_subflows() if self.engine.world.connections else []
        return opening + [self._measure(subflow, 2) for subflow in live]

    def _measure(self, subflow: Subflow, in_flight: int) -> Measurement:
        rtt_us = RTT[subflow.local.ip] // 1000
        return Measurement(
            at=self.now,
            token=subflow.token,
            local=subflow.local,
            remote=subflow.remote,
            state=1,
            srtt_us=rtt_us,
            min_rtt_us=rtt_us,
            in_flight=in_flight,
            idle_us=self.idle_us,
            bytes_acked=int(self._carried[subflow.local.ip]),
            stalled_us=int(self._blocked_us[subflow.local.ip]),
            connection_bytes_acked=int(sum(self._carried.values())),
        )
