# SPDX-License-Identifier: BSD-3-Clause
"""``trace doctor TOKEN``: watches one connection and says what limits it.

Four times a second every subflow is measured (the probes' iterator); the scheduler's
rounds, resets and endings come from the tracing programs.  What they add up to is judged
by `diagnosis`.
"""

import struct
from collections import Counter
from dataclasses import dataclass

from mptcpd_ebpf.core.events import SubflowEnded
from mptcpd_ebpf.core.measurement import Measurement, Owner
from mptcpd_ebpf.kernel import diag
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure
from mptcpd_ebpf.trace.diagnosis import (
    Observation,
    PathFigures,
    came_back,
    diagnose,
    has_long_queue,
    lost_freely,
)
from mptcpd_ebpf.trace.frame import Summary, Trace
from mptcpd_ebpf.trace.life import kernel_reasons, reset_here
from mptcpd_ebpf.trace.lines.doctor import (
    ConnectionLine,
    DiagnosisLine,
    FindingRow,
    NoConnectionLine,
    SubflowRow,
)
from mptcpd_ebpf.trace.probing import Probing
from mptcpd_ebpf.trace.rtt import QUIET
from mptcpd_ebpf.trace.scope import token_words
from mptcpd_ebpf.trace.trace_programs import TracePrograms

_EVERY_S = 0.25
_CONNECTION = struct.Struct("=II")
_ESTABLISHED = 1


@dataclass
class Watched:
    """One subflow while it is watched."""

    first: Measurement
    last: Measurement
    looks: int = 0
    busy: int = 0
    full: int = 0
    losing: int = 0
    lost_freely: int = 0
    queued: int = 0
    worst_timeouts: int = 0
    worst_silence_us: int = 0
    refused: int = 0
    ended: bool = False

    def look(self, seen: Measurement) -> None:
        if (seen.lost or 0) > (self.last.lost or 0):
            self.losing += 1
            self.lost_freely += lost_freely(self.last, seen)
        self.refused += came_back(seen)
        self.queued += has_long_queue(self.last, seen)
        self.last = seen
        self.looks += 1
        in_flight = seen.in_flight or 0
        if in_flight:
            self.busy += 1
            self.worst_silence_us = max(self.worst_silence_us, seen.idle_us or 0)
        if in_flight and 5 * in_flight >= 4 * (seen.cwnd or 0):
            self.full += 1
        self.worst_timeouts = max(self.worst_timeouts, seen.timeouts or 0)

    def path(self, received: int = 0) -> PathFigures:
        looks = max(1, self.looks)
        return PathFigures(
            first=self.first,
            last=self.last,
            busy=self.busy / looks,
            full=self.full / looks,
            losing=self.losing / looks,
            lost_freely=self.lost_freely,
            queued=self.queued / looks,
            worst_timeouts=self.worst_timeouts,
            worst_silence_us=self.worst_silence_us,
            refused=self.refused,
            received=received,
            ended=self.ended,
        )


def _received(token: int) -> Counter[int]:
    """Bytes that came on each live subflow so far, by cookie; the probes do not say it."""
    counts: Counter[int] = Counter()
    for each in diag.subflows():
        if each.token == token and each.cookie:
            counts[each.cookie] += each.bytes_received or 0
    return counts


def list_connections(trace: Trace) -> None:
    """The live connections with their tokens and subflows.  Raises NetlinkRefused."""
    found = diag.snapshot()
    # The kernel lists sockets in the order of its hash tables.
    found.subflows.sort(key=lambda each: (not each.initial, each.local, each.remote))
    for connection in sorted(found.connections, key=lambda each: (each.local, each.remote)):
        subflows = [each for each in found.subflows if each.token == connection.token]
        owner = connection.owner or Owner()
        trace.emit(
            ConnectionLine(
                at=trace.now(),
                token=token_words(connection.token),
                local=str(connection.local),
                remote=str(connection.remote),
                pid=owner.pid,
                comm=owner.comm,
                subflows=[
                    SubflowRow(
                        local=str(each.local),
                        remote=str(each.remote),
                        initial=each.initial,
                        backup=each.backup or each.backup_by_peer,
                        established=each.state == _ESTABLISHED,
                    )
                    for each in subflows
                ],
            )
        )
    if not found.connections:
        trace.emit(NoConnectionLine(at=trace.now()))


def trace_doctor(trace: Trace, constants: dict[str, int]) -> Summary:
    token = trace.scope.token
    assert token is not None
    probes = trace.open(Probing(constants["own_netns"], QUIET))
    programs = ("round_ends", "reset_sent", "reset_received")
    kernel = trace.open(TracePrograms("trace", programs, {**constants, "only_token": token}))
    trace.means += [*probes.means(), *kernel.hooks()]
    kinds, reasons = kernel.enumeration("trace_kind"), kernel_reasons()
    watched: dict[int, Watched] = {}
    endings: list[str] = []

    def look() -> None:
        for seen in probes.sample():
            if seen.token == token and seen.cookie and seen.state == _ESTABLISHED:
                entry = watched.setdefault(seen.cookie, Watched(seen, seen))
                entry.look(seen)

    def end() -> None:
        for event in probes.read():
            if isinstance(event, SubflowEnded) and event.measurement.cookie in watched:
                entry = watched[event.measurement.cookie]
                entry.ended = True
                endings.append(f"{entry.path().name} was closed")

    def reset() -> None:
        for record in kernel.read("trace_record"):
            who = trace.directory.of_record(record)
            if kinds[record["kind"]] == "TRACE_RESET_SENT":
                endings.append(f"{who.name} was {reset_here(record, reasons)}")
            else:
                endings.append(f"{who.name} was reset by the peer")
            if record["cookie"] in watched:
                watched[record["cookie"]].ended = True

    look()
    if not watched:
        alive = sorted({token_words(each.token) for each in probes.sample()})
        raise Failure(
            f"no connection {token_words(token)} in this namespace; "
            + (f"there are {', '.join(alive)}" if alive else "there is none at all"),
            ExitCode.USAGE,
        )
    received_before = _received(token)
    trace.watch(probes, end)
    trace.watch(kernel, reset)
    trace.every(_EVERY_S, look)

    def summary() -> None:
        now = trace.now()
        received = _received(token) - received_before
        table = kernel.table("rounds", _CONNECTION, "trace_rounds")
        round_ = next(iter(table.values()), None)
        window_ns = 0
        if round_ is not None:
            window_ns = round_["window_ns"]
            if round_["window_since"]:
                window_ns += now - round_["window_since"]
        seen = Observation(
            lasted_us=max(1, (now - trace.began) // 1000),
            paths=[entry.path(received[cookie]) for cookie, entry in watched.items()],
            window_us=window_ns // 1000,
            endings=endings,
        )
        findings = diagnose(seen)
        rows = [
            FindingRow(
                cause=finding.cause,
                weight=round(finding.weight, 2),
                words=finding.words,
                evidence=finding.evidence,
            )
            for finding in findings
        ]
        trace.emit(DiagnosisLine(at=now, token=token_words(token), findings=rows))

    return summary
