# SPDX-License-Identifier: BSD-3-Clause
"""The interface that CO-RE probes and probes compiled by bcc have in common."""

from collections.abc import Sequence
from typing import Protocol

from mptcpd_ebpf.core.events import AlarmRaised, SubflowEnded
from mptcpd_ebpf.core.measurement import Measurement, Thresholds
from mptcpd_ebpf.probes.core_probes import ProbeReport


class AnyProbes(Protocol):
    """Attached probes of one network namespace, or of all."""

    report: ProbeReport

    @property
    def sees_all(self) -> bool:
        """Whether subflows older than the probes are seen too."""

    @property
    def lost(self) -> dict[str, int]:
        """Records and inserts that were lost, by cause."""

    def programs(self) -> dict[str, int]:
        """The descriptors of the loaded programs."""

    def fileno(self) -> int: ...

    def read(self) -> Sequence[AlarmRaised | SubflowEnded]: ...

    def sample(self) -> list[Measurement]: ...

    def set_thresholds(self, thresholds: Thresholds) -> None: ...

    def close(self) -> None: ...
