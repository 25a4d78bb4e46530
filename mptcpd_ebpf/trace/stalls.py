# SPDX-License-Identifier: BSD-3-Clause
"""``trace stalls``: head-of-line blocking, with the path that causes it.

The probes (bpf/stall.h) measure the time during which a connection cannot send although a faster
subflow could, and charge it to the slowest subflow with unacknowledged data.  A line is emitted
when a subflow is charged 50 ms within a second; the summary has the sums.
"""

from mptcpd_ebpf.core.events import AlarmRaised
from mptcpd_ebpf.core.measurement import Measurement, Thresholds
from mptcpd_ebpf.trace.frame import Summary, Trace
from mptcpd_ebpf.trace.lines.stalls import FurtherStalls, StallLine, StallRow, StallsSummaryLine
from mptcpd_ebpf.trace.probing import Probing
from mptcpd_ebpf.trace.scope import Subject

_STALLS = Thresholds(
    rtt_factor_percent=0,
    loss_percent=0,
    timeouts=0,
    no_progress_us=0,
    stall_us=50_000,
    hole_us=0,
    silence_us=0,
    min_interval_us=0,
)

_ROWS = 64
"""Ended subflows with a row in the summary."""


class Stalls:
    """Stalled time by subflow."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._at_start: dict[int, int] = {}
        self.found: dict[int, tuple[Subject, Measurement, int]] = {}
        self._ended: set[int] = set()
        self.further = 0
        """Number of ended subflows without a row."""
        self.further_us = 0
        """Microseconds charged to them."""

    def begin(self, measured: list[Measurement]) -> None:
        self._at_start = {each.cookie: each.stalled_us or 0 for each in measured if each.cookie}

    def take(self, measured: Measurement) -> Subject | None:
        subject = self._trace.directory.of_measurement(measured)
        if measured.cookie is None or not self._trace.admits(subject):
            return None
        stalled = (measured.stalled_us or 0) - self._at_start.get(measured.cookie, 0)
        self.found[measured.cookie] = subject, measured, stalled
        return subject

    def end(self, measured: Measurement) -> None:
        """Takes a subflow's final record; keeps the ended subflows with the most stalled time."""
        if self.take(measured) is None or measured.cookie is None:
            return
        self._at_start.pop(measured.cookie, None)
        self._ended.add(measured.cookie)
        if len(self._ended) > _ROWS:
            least = min(self._ended, key=lambda cookie: self.found[cookie][2])
            self._ended.remove(least)
            self.further += 1
            self.further_us += self.found.pop(least)[2]

    def alarm(self, event: AlarmRaised) -> None:
        measured = event.measurement
        subject = self.take(measured)
        if subject is None:
            return
        self._trace.emit(
            StallLine(
                at=measured.at,
                **subject.fields(),
                stalled_us=event.value,
                srtt_us=measured.srtt_us,
                in_flight=measured.in_flight,
                timeouts=measured.timeouts,
                lost=measured.lost,
            )
        )


def trace_stalls(trace: Trace, constants: dict[str, int]) -> Summary:
    probes = trace.open(Probing(constants["own_netns"], _STALLS))
    trace.means += probes.means()
    stalls = Stalls(trace)
    stalls.begin(probes.sample())

    def read() -> None:
        for event in probes.read():
            if isinstance(event, AlarmRaised):
                stalls.alarm(event)
            else:
                stalls.end(event.measurement)

    trace.watch(probes, read)

    def summary() -> None:
        for measured in probes.sample():
            stalls.take(measured)
        rows = sorted(stalls.found.values(), key=lambda row: -row[2])
        trace.emit(
            StallsSummaryLine(
                at=trace.now(),
                lasted_ns=trace.now() - trace.began,
                subflows=[
                    StallRow(
                        **subject.fields(),
                        stalled_us=stalled,
                        srtt_us=measured.srtt_us,
                        retransmits=measured.retransmits,
                        lost=measured.lost,
                    )
                    for subject, measured, stalled in rows
                ],
                further=FurtherStalls(subflows=stalls.further, stalled_us=stalls.further_us),
            )
        )

    return summary
