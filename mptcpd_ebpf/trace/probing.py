# SPDX-License-Identifier: BSD-3-Clause
"""The daemon's probes as a source of a trace tool."""

import os

from mptcpd_ebpf.core.events import AlarmRaised, SubflowEnded
from mptcpd_ebpf.core.measurement import Measurement, Thresholds
from mptcpd_ebpf.probes import Probes
from mptcpd_ebpf.probes.libbpf import Libbpf
from mptcpd_ebpf.trace.trace_programs import STATS_RUN_TIME, Cost, run_time


class Probing:
    """Probes of one namespace; the kernel measures their run time while they are open."""

    def __init__(self, netns: int, thresholds: Thresholds) -> None:
        """Raises BpfUnavailable."""
        self._probes = Probes.open(netns=netns, thresholds=thresholds)
        self._statistics = Libbpf().bpf_enable_stats(STATS_RUN_TIME)

    def means(self) -> list[str]:
        return [hook.hook for hook in self._probes.report.hooks if hook.attached]

    def fileno(self) -> int:
        return self._probes.fileno()

    def read(self) -> list[AlarmRaised | SubflowEnded]:
        return self._probes.read()

    def sample(self) -> list[Measurement]:
        return self._probes.sample()

    @property
    def lost(self) -> dict[str, int]:
        """Lost records by cause, without final records that were kept."""
        return {k: v for k, v in self._probes.lost.items() if k != "final_records_kept"}

    def cost(self) -> Cost:
        return run_time(self._probes.programs().values())

    def close(self) -> None:
        self._probes.close()
        if self._statistics >= 0:
            os.close(self._statistics)
            self._statistics = -1
