# SPDX-License-Identifier: BSD-3-Clause
"""Stalled time: what stood still, for how long, and because of whom."""

import threading
import time
from itertools import pairwise

import pytest

from mptcpd_ebpf.core.measurement import AlarmKind, Thresholds
from mptcpd_ebpf.lab import Lab, Path
from mptcpd_ebpf.lab.wire import Wire
from mptcpd_ebpf.probes import Probes
from tests.netns.probed import (
    QUIET,
    Ends,
    Listening,
    allow_joins,
    connection,
    probing,
    sample,
    wait_for,
)

ONLY_STALLS = Thresholds(rtt_factor_percent=0, loss_percent=0, timeouts=0, no_progress_us=0)
SMALL = 65536


class Upload:
    """Sends as fast as goes from one end to the other, until stopped."""

    def __init__(self, ends: Ends) -> None:
        self._ends = ends
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=each) for each in (self._send, self._receive)]

    def __enter__(self) -> "Upload":
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for each in self._threads:
            each.join()

    def _send(self) -> None:
        while not self._stopping.is_set():
            self._ends.client.send(bytes(16384))
        self._ends.client.shutdown(1)

    def _receive(self) -> None:
        while self._ends.server.recv(1 << 18):
            pass


def gaps_us(times: list[int], at_least_us: int) -> int:
    """The sum of the pauses between the given times (ns) that last at least so long."""
    pauses = ((late - early) // 1000 for early, late in pairwise(times))
    return sum(pause for pause in pauses if pause >= at_least_us)


def both_joined(lab: Lab, probes: Probes) -> None:
    wait_for(
        lambda: [each.state for each in sample(lab.client, probes)] == [1, 1], "second subflow"
    )


def stalled_us(lab: Lab, probes: Probes) -> dict[str, int]:
    return {each.local.ip: each.stalled_us or 0 for each in sample(lab.client, probes)}


def test_a_staged_stall_is_measured_and_blamed_on_the_path_that_died() -> None:
    """The second path dies under a small send buffer: the first pauses until it gives up.

    The wire of the first path shows how long that was.
    """
    with (
        Lab(paths=[Path(delay_ms=5, rate_mbit=20), Path(delay_ms=10, rate_mbit=20)]) as lab,
        probing(lab.client, thresholds=ONLY_STALLS) as probes,
    ):
        allow_joins(lab)
        first, second = lab.paths
        with connection(lab, send_buffer=SMALL) as ends:
            both_joined(lab, probes)
            listening = Listening(probes)
            with Wire(lab.client.name, snap=160) as wire, Upload(ends):
                wait_for(
                    lambda: all(
                        (each.bytes_acked or 0) > 300_000 for each in sample(lab.client, probes)
                    ),
                    "traffic on both paths",
                )
                before = stalled_us(lab, probes)
                round_trip_us = max(each.srtt_us or 0 for each in sample(lab.client, probes))
                died_at = time.monotonic_ns()
                second.blackhole()
                token = sample(lab.client, probes)[0].token
                alarm = listening.alarm(token, AlarmKind.STALL)
                wait_for(
                    lambda: (
                        stalled_us(lab, probes)[second.client_ip]
                        > before[second.client_ip] + 250_000
                    ),
                    "quarter of a second of stall",
                )
                charged = {ip: now - before[ip] for ip, now in stalled_us(lab, probes).items()}
                ended_at = time.monotonic_ns()
                sent = wire.matching(interface=first.client_if, direction="out", since=died_at)
                second.heal()
    # Until a round trip of the first path has passed, what the second holds is not late.
    late_from = died_at + round_trip_us * 1000
    times = [segment.at for segment in sent if segment.payload_length]
    times = [late_from, *(at for at in times if late_from < at < ended_at), ended_at]
    paused = gaps_us(times, at_least_us=12_000)  # longer than a round trip
    assert paused > 100_000, "nothing stood still"
    # Where a pause begins and ends is known to no better than a round trip.
    expected = pytest.approx(paused, rel=0.10, abs=1.5 * round_trip_us)
    assert charged[second.client_ip] == expected
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
                wait_for(
                    lambda: all(
                        (each.bytes_acked or 0) > 3_000_000 for each in sample(lab.client, probes)
                    ),
                    "traffic on both paths",
                )
                took_us = (time.monotonic_ns() - start) // 1000
                assert sum(stalled_us(lab, probes).values()) < 0.05 * took_us
