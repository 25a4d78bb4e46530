# SPDX-License-Identifier: BSD-3-Clause
"""Stalled time: what stood still, for how long, and because of whom."""

import time

import pytest

from mptcpd_ebpf.core.measurement import AlarmKind, Thresholds
from mptcpd_ebpf.lab import Lab, Path
from mptcpd_ebpf.lab.kernel_path_manager import allow_joins
from mptcpd_ebpf.lab.wire import Wire
from mptcpd_ebpf.lab.wire.segment import Segment
from mptcpd_ebpf.probes import Probes
from tests.netns.mptcp_sockets import connection
from tests.netns.probed import QUIET, Listening, probing, sample
from tests.netns.transfer import Upload
from tests.waiting import SLOWNESS, until

ONLY_STALLS = Thresholds(
    rtt_factor_percent=0, loss_percent=0, timeouts=0, no_progress_us=0, hole_us=0, silence_us=0
)
SMALL = 65536
STAGED_US = 150_000
PAUSE_US = 5_000
"""More than a round trip of the fast path: what is shorter may be the wait for an answer."""


def idle_us(segments: list[Segment], start: int, end: int) -> int:
    """How long an interface sent no data although all it had sent before was acknowledged.

    Counted from the last byte sent, in microseconds, between two times in ns; pauses that
    are shorter than PAUSE_US are left out.
    """
    sent_at, sent_to, acked, total = start, None, True, 0

    def pause(until: int) -> int:
        took = (until - sent_at) // 1000
        return took if acked and took >= PAUSE_US else 0

    for segment in segments:
        if segment.outgoing and segment.payload_length:
            if segment.at > start:
                total += pause(segment.at)
                sent_at = segment.at
            sent_to, acked = segment.seq + segment.payload_length, False
        elif not segment.outgoing and sent_to is not None:
            acked = acked or (segment.ack - sent_to) % 2**32 < 2**31
    return total + pause(end)


def both_joined(lab: Lab, probes: Probes) -> None:
    until(lambda: [each.state for each in sample(lab.client, probes)] == [1, 1], "second subflow")


def stalled_us(lab: Lab, probes: Probes) -> dict[str, int]:
    return {each.local.ip: each.stalled_us or 0 for each in sample(lab.client, probes)}


def test_a_staged_stall_is_measured_and_blamed_on_the_path_that_died() -> None:
    """The slower path dies under a small send buffer: the fast one falls silent, idle.

    Its wire shows for how long: everything it sent is acknowledged and nothing follows.
    """
    with (
        Lab(paths=[Path(delay_ms=2, rate_mbit=100), Path(delay_ms=60, rate_mbit=100)]) as lab,
        probing(lab.client, thresholds=ONLY_STALLS) as probes,
    ):
        allow_joins(lab)
        first, second = lab.paths
        with connection(lab, send_buffer=SMALL) as ends:
            both_joined(lab, probes)
            listening = Listening(probes)
            with Wire(lab.client.name, snap=160) as wire, Upload(ends):
                until(
                    lambda: all(
                        (each.bytes_acked or 0) > 300_000 and each.in_flight
                        for each in sample(lab.client, probes)
                    ),
                    "traffic on both paths",
                )
                died_at = time.monotonic_ns()
                before = stalled_us(lab, probes)
                second.blackhole()
                token = sample(lab.client, probes)[0].token
                alarm = listening.alarm(token, AlarmKind.STALL)
                until(
                    lambda: (
                        stalled_us(lab, probes)[second.client_ip]
                        > before[second.client_ip] + STAGED_US
                    ),
                    "staged stall",
                )
                charged = {ip: now - before[ip] for ip, now in stalled_us(lab, probes).items()}
                ended_at = time.monotonic_ns()
                seen = wire.matching(interface=first.client_if)
                second.heal()
    idle = idle_us([each for each in seen if each.at < ended_at], died_at, ended_at)
    # A slow machine reads the two values so much apart.
    apart = SLOWNESS * 10_000
    assert charged[second.client_ip] == pytest.approx(idle, rel=0.10, abs=apart)
    assert charged[first.client_ip] < 0.10 * charged[second.client_ip]
    assert alarm.measurement.local.ip == second.client_ip
    assert alarm.value >= alarm.limit == ONLY_STALLS.stall_us


def test_two_useful_paths_do_not_stall_each_other() -> None:
    with (
        Lab(paths=[Path(delay_ms=5, rate_mbit=20), Path(delay_ms=10, rate_mbit=20)]) as lab,
        probing(lab.client, thresholds=QUIET) as probes,
    ):
        allow_joins(lab)
        with connection(lab) as ends:
            both_joined(lab, probes)
            start = time.monotonic_ns()
            with Upload(ends):
                until(
                    lambda: all(
                        (each.bytes_acked or 0) > 3_000_000 for each in sample(lab.client, probes)
                    ),
                    "traffic on both paths",
                )
                took_us = (time.monotonic_ns() - start) // 1000
                # All of it where one path holds the other up; some, where the machine is slow
                # to forward what the path would have carried.
                assert sum(stalled_us(lab, probes).values()) < 0.2 * took_us
