# SPDX-License-Identifier: BSD-3-Clause
"""``trace rtt``: the distribution of each subflow's round-trip times.

The probes (bpf/subflow.bpf.c) count every new raw sample of a subflow in a histogram by powers of
two.  The counts from before the trace are subtracted.
"""

from collections import deque

from mptcpd_ebpf.core.events import SubflowEnded
from mptcpd_ebpf.core.measurement import Measurement, Thresholds
from mptcpd_ebpf.trace.frame import Summary, Trace
from mptcpd_ebpf.trace.lines.histograms import quantile
from mptcpd_ebpf.trace.lines.rtt import FurtherRttLine, RttLine
from mptcpd_ebpf.trace.probing import Probing
from mptcpd_ebpf.trace.scope import Subject

QUIET = Thresholds(
    rtt_factor_percent=0,
    loss_percent=0,
    timeouts=0,
    no_progress_us=0,
    stall_us=0,
    hole_us=0,
    silence_us=0,
)
_ROWS = 64
"""Ended subflows with a line of their own in the summary."""


class Histograms:
    """The samples since the trace began, by subflow."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._at_start: dict[int, list[int]] = {}
        self.found: dict[int, tuple[Subject, Measurement, list[int]]] = {}
        self.further: dict[tuple[str, str], list[int]] = {}
        """The samples of ended subflows beyond the last `_ROWS`, by local and remote IP address."""
        self._ended: deque[int] = deque()

    def begin(self, measured: list[Measurement]) -> None:
        for each in measured:
            if each.cookie and each.rtt_histogram:
                self._at_start[each.cookie] = each.rtt_histogram

    def take(self, measured: Measurement) -> None:
        subject = self._trace.directory.of_measurement(measured)
        if measured.rtt_histogram is None or measured.cookie is None:
            return
        if not self._trace.admits(subject):
            return
        before = self._at_start.get(measured.cookie, [0] * len(measured.rtt_histogram))
        fresh = [now - then for now, then in zip(measured.rtt_histogram, before, strict=True)]
        self.found[measured.cookie] = subject, measured, fresh

    def end(self, measured: Measurement) -> None:
        """Takes a subflow's final record."""
        self.take(measured)
        if measured.cookie not in self.found:
            return
        self._at_start.pop(measured.cookie, None)
        self._ended.append(measured.cookie)
        if len(self._ended) > _ROWS:
            subject, _, histogram = self.found.pop(self._ended.popleft())
            path = subject.local.ip, subject.remote.ip
            so_far = self.further.get(path, [0] * len(histogram))
            self.further[path] = [a + b for a, b in zip(so_far, histogram, strict=True)]


def trace_rtt(trace: Trace, constants: dict[str, int]) -> Summary:
    probes = trace.open(Probing(constants["own_netns"], QUIET))
    trace.means += probes.means()
    histograms = Histograms(trace)
    histograms.begin(probes.sample())

    def read() -> None:
        for event in probes.read():
            if isinstance(event, SubflowEnded):
                histograms.end(event.measurement)

    trace.watch(probes, read)

    def summary() -> None:
        for measured in probes.sample():
            histograms.take(measured)
        for subject, measured, histogram in histograms.found.values():
            number = sum(histogram)
            p50, p90, p99 = (quantile(histogram, share) for share in (0.5, 0.9, 0.99))
            trace.emit(
                RttLine(
                    at=trace.now(),
                    **subject.fields(),
                    samples=number,
                    min_rtt_us=measured.min_rtt_us,
                    srtt_us=measured.srtt_us,
                    below_us={"p50": p50, "p90": p90, "p99": p99} if number else None,
                    histogram=histogram,
                )
            )
        for (local, remote), histogram in histograms.further.items():
            trace.emit(
                FurtherRttLine(
                    at=trace.now(),
                    local=local,
                    remote=remote,
                    samples=sum(histogram),
                    histogram=histogram,
                )
            )

    return summary
