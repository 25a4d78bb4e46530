# SPDX-License-Identifier: BSD-3-Clause
"""``trace doctor TOKEN``: observes one connection and reports what limits it.

The probes' iterator measures every subflow four times a second; the tracing programs provide the
scheduler's rounds, resets and ends.  `diagnosis` evaluates the sums.
"""

import struct
import time
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass

from mptcpd_ebpf.control import client
from mptcpd_ebpf.control.schema import Status
from mptcpd_ebpf.core.events import SubflowEnded
from mptcpd_ebpf.core.measurement import Measurement, Owner
from mptcpd_ebpf.core.token import token_text
from mptcpd_ebpf.kernel import diag
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure
from mptcpd_ebpf.trace.diagnosis import (
    KeptPath,
    Observation,
    PathFigures,
    came_back,
    diagnose,
    has_long_queue,
    lost_without_queue,
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
from mptcpd_ebpf.trace.trace_programs import TracePrograms

_EVERY_S = 0.25
_CONNECTION = struct.Struct("=II")
_ESTABLISHED = 1


@dataclass
class Watched:
    """One subflow under observation: sums over its samples (`PathFigures` describes them)."""

    first: Measurement
    last: Measurement
    samples: int = 0
    busy: int = 0
    full: int = 0
    losing: int = 0
    lost_without_queue: int = 0
    queued: int = 0
    worst_timeouts: int = 0
    worst_silence_us: int = 0
    refused: int = 0
    ended: bool = False

    def add(self, seen: Measurement) -> None:
        """Adds a sample."""
        if (seen.lost or 0) > (self.last.lost or 0):
            self.losing += 1
            self.lost_without_queue += lost_without_queue(self.last, seen)
        self.refused += came_back(seen)
        self.queued += has_long_queue(self.last, seen)
        self.last = seen
        self.samples += 1
        in_flight = seen.in_flight or 0
        if in_flight:
            self.busy += 1
            self.worst_silence_us = max(self.worst_silence_us, seen.idle_us or 0)
        if in_flight and 5 * in_flight >= 4 * (seen.cwnd or 0):
            self.full += 1
        self.worst_timeouts = max(self.worst_timeouts, seen.timeouts or 0)

    def path(self, received: int = 0) -> PathFigures:
        """The figures so far; `received`: bytes received from the peer."""
        samples = max(1, self.samples)
        return PathFigures(
            first=self.first,
            last=self.last,
            busy=self.busy / samples,
            full=self.full / samples,
            losing=self.losing / samples,
            lost_without_queue=self.lost_without_queue,
            queued=self.queued / samples,
            worst_timeouts=self.worst_timeouts,
            worst_silence_us=self.worst_silence_us,
            refused=self.refused,
            received=received,
            ended=self.ended,
        )


def _received(token: int) -> Counter[int]:
    """Bytes received so far on each open subflow, by cookie; the probes do not count them."""
    counts: Counter[int] = Counter()
    for each in diag.subflows():
        if each.token == token and each.cookie:
            counts[each.cookie] += each.bytes_received or 0
    return counts


def _kept_paths(remotes: Container[str]) -> list[KeptPath]:
    """The paths to these peers that a daemon of this namespace does not use; none without one."""
    try:
        status: Status = client.get(client.default_path(), "/v1/status")
    except Failure:
        return []
    return [
        KeptPath(
            name=f"{each['interface'] or each['local_ip']} ({each['local_ip']} → "
            f"{each['remote_ip']})",
            state=each["state"],
            reason=each["reason"],
            for_s=max(0.0, time.time() - each["since"]),
            probes=f"{each['probes_answered']} of {each['probes_needed']} probes answered"
            if each["state"] == "away"
            else "",
        )
        for each in status["paths"]
        if each["remote_ip"] in remotes
    ]


def list_connections(trace: Trace) -> None:
    """Emits the open connections with their tokens and subflows.  Raises NetlinkRefused."""
    found = diag.snapshot()
    # Sorted, because the kernel lists sockets in the order of its hash tables.
    found.subflows.sort(key=lambda each: (not each.initial, each.local, each.remote))
    for connection in sorted(found.connections, key=lambda each: (each.local, each.remote)):
        subflows = [each for each in found.subflows if each.token == connection.token]
        owner = connection.owner or Owner()
        trace.emit(
            ConnectionLine(
                at=trace.now(),
                token=token_text(connection.token),
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

    def sample() -> None:
        for seen in probes.sample():
            if seen.token == token and seen.cookie and seen.state == _ESTABLISHED:
                watched.setdefault(seen.cookie, Watched(seen, seen)).add(seen)

    def end() -> None:
        for event in probes.read():
            if isinstance(event, SubflowEnded) and event.measurement.cookie in watched:
                entry = watched[event.measurement.cookie]
                entry.ended = True
                endings.append(f"{entry.path().name} was closed")

    def reset() -> None:
        for record in kernel.read("trace_record"):
            subject = trace.directory.of_record(record)
            if kinds[record["kind"]] == "TRACE_RESET_SENT":
                endings.append(f"{subject.name} was {reset_here(record, reasons)}")
            else:
                endings.append(f"{subject.name} was reset by the peer")
            if record["cookie"] in watched:
                watched[record["cookie"]].ended = True

    sample()
    if not watched:
        tokens = sorted({token_text(each.token) for each in probes.sample()})
        raise Failure(
            f"this namespace has no connection {token_text(token)}; "
            + (f"it has {', '.join(tokens)}" if tokens else "it has no MPTCP connection"),
            ExitCode.USAGE,
        )
    received_before = _received(token)
    trace.watch(probes, end)
    trace.watch(kernel, reset)
    trace.every(_EVERY_S, sample)

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
            kept=_kept_paths({entry.last.remote.ip for entry in watched.values()}),
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
        trace.emit(DiagnosisLine(at=now, token=token_text(token), findings=rows))

    return summary
