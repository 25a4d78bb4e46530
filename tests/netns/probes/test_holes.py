# SPDX-License-Identifier: BSD-3-Clause
"""Holes: how long received data waits for data of another subflow, and of which one."""

import time

import pytest

from mptcpd_ebpf.core.events import AlarmRaised
from mptcpd_ebpf.core.measurement import AlarmKind, Measurement, Thresholds
from mptcpd_ebpf.lab import Bulk, Lab, Path
from mptcpd_ebpf.lab.kernel_path_manager import allow_joins
from mptcpd_ebpf.lab.wire import Wire
from mptcpd_ebpf.probes import Probes
from tests.netns.mptcp_sockets import connection
from tests.netns.probed import QUIET, Listening, probing, sample
from tests.netns.reception import holes_us
from tests.netns.transfer import download
from tests.waiting import SLOWNESS, until

ONLY_LOSS = Thresholds(
    rtt_factor_percent=0, timeouts=0, no_progress_us=0, stall_us=0, hole_us=0, silence_us=0
)
ONLY_SILENCE = Thresholds(
    rtt_factor_percent=0, loss_percent=0, timeouts=0, no_progress_us=0, stall_us=0, hole_us=0
)
ENOUGH = 300_000
"""Bytes received on a path that carries part of a transfer."""
APART_US = SLOWNESS * 10_000
"""So much apart the probes' value and the last captured packet may be read."""


def seen(lab: Lab, probes: Probes) -> dict[str, Measurement]:
    return {each.local.ip: each for each in sample(lab.client, probes)}


def both_carry(lab: Lab, probes: Probes) -> None:
    until(
        lambda: (
            [(each.bytes_received or 0) > ENOUGH for each in sample(lab.client, probes)]
            == [True, True]
        ),
        "data on both paths",
    )


def test_a_staged_hole_is_as_long_as_on_the_wire_and_charged_to_the_late_path() -> None:
    late_ms = 150
    paths = [Path(delay_ms=5, rate_mbit=20), Path(delay_ms=6, rate_mbit=20)]
    with (
        Lab(paths=paths) as lab,
        probing(lab.client, thresholds=QUIET) as probes,
        Wire(lab.client.name, snap=160) as wire,
    ):
        allow_joins(lab)
        first, second = lab.paths
        with connection(lab) as ends, download(ends):
            both_carry(lab, probes)
            before = seen(lab, probes)
            second.set(direction="down", delay_ms=late_ms)
            time.sleep(2 * late_ms / 1000)
            second.heal()
            time.sleep(2 * late_ms / 1000)
            charged = {ip: each.holes_us or 0 for ip, each in seen(lab, probes).items()}
            read_at = time.monotonic_ns()
            segments = wire.matching()
    on_the_wire = holes_us(segments, read_at)
    assert charged[second.client_ip] - (before[second.client_ip].holes_us or 0) > 100_000
    for path in (first, second):
        expected = on_the_wire.get(path.client_ip, 0)
        assert charged[path.client_ip] == pytest.approx(expected, rel=0.10, abs=APART_US)


def test_a_hole_that_another_subflow_fills_is_charged_to_the_one_that_held_it() -> None:
    """The second path dies, and the peer sends its data again on the first."""
    paths = [Path(delay_ms=5, rate_mbit=20), Path(delay_ms=10, rate_mbit=20)]
    with Lab(paths=paths) as lab, probing(lab.client, thresholds=ONLY_SILENCE) as probes:
        allow_joins(lab)
        first, second = lab.paths
        listening = Listening(probes)
        with connection(lab) as ends, download(ends):
            both_carry(lab, probes)
            token = sample(lab.client, probes)[0].token
            before = seen(lab, probes)
            second.blackhole()
            alarm = listening.alarm(token, AlarmKind.SILENCE)
            assert alarm.measurement.local.ip == second.client_ip
            assert alarm.value >= alarm.limit >= ONLY_SILENCE.silence_us
            assert (alarm.measurement.connection_hole_us or 0) >= alarm.value
            received = alarm.measurement.connection_bytes_received or 0
            until(
                lambda: (
                    (seen(lab, probes)[first.client_ip].connection_bytes_received or 0)
                    > received + ENOUGH
                ),
                "data of the dead path on the other",
            )
            after = seen(lab, probes)
            grown = {ip: (after[ip].holes_us or 0) - (before[ip].holes_us or 0) for ip in after}
            second.heal()
    assert grown[second.client_ip] >= alarm.value
    assert grown[first.client_ip] < 0.25 * grown[second.client_ip]


def test_silence_is_reported_when_nothing_arrives() -> None:
    paths = [Path(delay_ms=5, rate_mbit=20), Path(delay_ms=20, rate_mbit=20)]
    with Lab(paths=paths) as lab, probing(lab.client, thresholds=ONLY_SILENCE) as probes:
        allow_joins(lab)
        first, second = lab.paths
        listening = Listening(probes)
        with connection(lab) as ends, download(ends):
            both_carry(lab, probes)
            token = sample(lab.client, probes)[0].token
            second.blackhole()
            until(
                lambda: (seen(lab, probes)[first.client_ip].connection_hole_us or 0) > 30_000,
                "hole",
            )
            first.blackhole()
            alarm = listening.alarm(token, AlarmKind.SILENCE)
            for path in lab.paths:
                path.heal()
    assert alarm.measurement.local.ip == second.client_ip


def test_a_download_over_one_path_has_no_holes() -> None:
    with (
        Lab(paths=[Path(delay_ms=5, rate_mbit=20, loss_percent=2)]) as lab,
        probing(lab.client, thresholds=ONLY_LOSS) as probes,
    ):
        listening = Listening(probes)
        running = lab.start(Bulk(bytes=3_000_000, direction="down"))
        measured = until(
            lambda: [
                each
                for each in sample(lab.client, probes)
                if (each.bytes_received or 0) > 2_000_000
            ],
            "data",
        )[0]
        running.result()
        # It sent nothing but acknowledgements: what came out of order is no loss of its own.
        assert listening.alarms() == []
    assert measured.holes_us == 0
    assert measured.connection_hole_us == 0
    assert measured.out_of_order
    assert measured.segments_in
    assert measured.rcv_rtt_us
    assert measured.rcv_rtt_us >= 10_000


def alarms_of(lab: Lab, seconds: float) -> list[AlarmRaised]:
    """What the default thresholds raise at the client during a download."""
    with probing(lab.client) as probes:
        allow_joins(lab)
        listening = Listening(probes)
        lab.start(Bulk(seconds=seconds, direction="down")).result()
        return listening.alarms()


def test_a_bad_path_beside_a_good_one_raises_the_hole_alarm_and_the_good_one_none() -> None:
    good = Path(delay_ms=5, rate_mbit=100, loss_percent=1)
    bad = Path(delay_ms=90, rate_mbit=3, loss_percent=6)
    with Lab(paths=[good, bad], seed=1) as lab:
        alarms = alarms_of(lab, 6.0)
        first, second = (path.client_ip for path in lab.paths)
    holes = [each for each in alarms if each.kind is AlarmKind.HOLE]
    assert {each.measurement.local.ip for each in holes} == {second}
    assert all(each.value >= each.limit == Thresholds().hole_us for each in holes)
    assert [each for each in alarms if each.measurement.local.ip == first] == []


def test_two_equal_good_paths_raise_no_alarm() -> None:
    with Lab(paths=[Path(delay_ms=5, rate_mbit=20), Path(delay_ms=5, rate_mbit=20)]) as lab:
        assert alarms_of(lab, 4.0) == []
