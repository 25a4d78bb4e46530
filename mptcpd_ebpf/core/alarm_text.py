# SPDX-License-Identifier: BSD-3-Clause
"""Alarms in words, for reasons of decisions and for people."""

from mptcpd_ebpf.core.events import AlarmRaised
from mptcpd_ebpf.core.measurement import AlarmKind


def alarm_text(alarm: AlarmRaised) -> str:
    """An alarm in one clause, with its numbers."""
    measured = alarm.measurement
    usual = f" (usual RTT {measured.min_rtt_us / 1000:.0f} ms)" if measured.min_rtt_us else ""
    match alarm.kind:
        case AlarmKind.NO_PROGRESS:
            flight = f" with {measured.in_flight} segments in flight" if measured.in_flight else ""
            return f"nothing came back for {alarm.value / 1000:.0f} ms{flight}{usual}"
        case AlarmKind.TIMEOUTS:
            return f"{alarm.value} retransmission timeouts in a row{usual}"
        case AlarmKind.LOSS:
            return f"{alarm.value} % of the last segments were lost"
        case AlarmKind.RTT:
            return f"RTT rose to {alarm.value / 1000:.0f} ms{usual}"
        case AlarmKind.STALL:
            return f"it held up the connection for {alarm.value / 1000:.0f} ms of the last second"
        case AlarmKind.HOLE:
            return f"received data waited for it for {alarm.value / 1000:.0f} ms of the last second"
        case AlarmKind.SILENCE:
            return f"nothing came on it for {alarm.value / 1000:.0f} ms while received data waits"


def limit_text(alarm: AlarmRaised) -> str:
    """The threshold that an alarm crossed, with its unit."""
    match alarm.kind:
        case AlarmKind.TIMEOUTS:
            return str(alarm.limit)
        case AlarmKind.LOSS:
            return f"{alarm.limit} %"
        case _:
            return f"{alarm.limit / 1000:.0f} ms"
