# SPDX-License-Identifier: BSD-3-Clause
"""A path in trouble raises an alarm of the fitting kind; a healthy one raises none.

Traffic is request and response, the first customer, over 20 ms of round trip; the time an
alarm takes is measured in bench/, not here.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path as FilePath

import pytest

from mptcpd_ebpf.core.measurement import AlarmKind, Thresholds
from mptcpd_ebpf.lab import Bulk, Lab, LivePath, Path, RequestResponse, Stream
from mptcpd_ebpf.lab.kernel_path_manager import allow_joins
from tests.netns.probed import QUIET, Listening, compile_probes_with, probing, sample
from tests.waiting import INTERVAL_MS, until

ONLY_RTT = Thresholds(
    loss_percent=0, timeouts=0, no_progress_us=0, stall_us=0, hole_us=0, silence_us=0
)
ONLY_LOSS = Thresholds(
    rtt_factor_percent=0, timeouts=0, no_progress_us=0, stall_us=0, hole_us=0, silence_us=0
)
ONLY_TIMEOUTS = Thresholds(
    rtt_factor_percent=0, loss_percent=0, no_progress_us=0, stall_us=0, hole_us=0, silence_us=0
)
ONLY_PROGRESS = Thresholds(
    rtt_factor_percent=0, loss_percent=0, timeouts=0, stall_us=0, hole_us=0, silence_us=0
)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(paths=[Path(delay_ms=10, rate_mbit=20)]) as lab:
        yield lab


def lose(path: LivePath) -> None:
    path.set(loss_percent=30)


def delay(path: LivePath) -> None:
    path.set(delay_ms=100)


def swallow(path: LivePath) -> None:
    path.blackhole()


@pytest.mark.parametrize(
    ("fault", "thresholds", "kind"),
    [
        pytest.param(delay, ONLY_RTT, AlarmKind.RTT, id="+90 ms each way: rtt"),
        pytest.param(lose, ONLY_LOSS, AlarmKind.LOSS, id="30 % loss: loss"),
        pytest.param(swallow, ONLY_PROGRESS, AlarmKind.NO_PROGRESS, id="blackhole: no progress"),
        pytest.param(swallow, ONLY_TIMEOUTS, AlarmKind.TIMEOUTS, id="blackhole: timeouts"),
    ],
)
def test_a_fault_raises_its_alarm(
    lab: Lab, fault: Callable[[LivePath], None], thresholds: Thresholds, kind: AlarmKind
) -> None:
    with probing(lab.client, thresholds=thresholds) as probes:
        listening = Listening(probes)
        running = lab.start(RequestResponse())
        assert running.token is not None
        exchanges_before(lab, probes, 10)
        assert not listening.alarms()
        fault(lab.paths[0])
        alarm = listening.alarm(running.token)
    assert alarm.kind is kind
    assert alarm.value >= alarm.limit > 0
    # It carries the whole measurement of that moment.
    seen = alarm.measurement
    assert seen.local == running.local
    assert seen.srtt_us is not None
    assert seen.srtt_us >= 20_000
    assert seen.segments_out
    assert seen.owner is not None
    assert seen.owner.pid == running.pid


def test_silence_is_noticed_where_the_kernel_gives_no_timers(
    lab: Lab, tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_probes_with("bpf_timer_start(timer,nsecs,flags)=(-22)", tmp_path, monkeypatch)
    with probing(lab.client, thresholds=ONLY_PROGRESS) as probes:
        listening = Listening(probes)
        running = lab.start(RequestResponse())
        assert running.token is not None
        exchanges_before(lab, probes, 10)
        lab.paths[0].blackhole()
        assert listening.alarm(running.token).kind is AlarmKind.NO_PROGRESS


def exchanges_before(lab: Lab, probes: object, segments: int) -> None:
    """Waits until the connection has sent some segments, so that it has a baseline."""
    until(
        lambda: any((each.segments_out or 0) > segments for each in sample(lab.client, probes)),  # type: ignore[arg-type]
        "traffic",
    )


@pytest.mark.parametrize(
    "workload",
    [
        pytest.param(RequestResponse(count=60), id="two segments a message"),
        pytest.param(RequestResponse(size=100, response_size=100, count=60), id="one segment"),
        pytest.param(Stream(rate_mbit=0.02, size=100, seconds=2.0), id="one segment, no response"),
        pytest.param(Bulk(bytes=8_000_000), id="upload, slow start overshooting"),
        pytest.param(Bulk(bytes=8_000_000, direction="down"), id="download"),
    ],
)
def test_a_healthy_path_raises_none(lab: Lab, workload: RequestResponse | Bulk | Stream) -> None:
    # A machine that stumbles makes a silence of its own, which is rightly told; what the
    # probes take for trouble by mistake is there each time.
    for _ in range(3):
        with probing(lab.client) as probes:
            listening = Listening(probes)
            lab.start(workload).result()
            alarms = listening.alarms()
        if not alarms:
            return
    pytest.fail(f"alarms on a healthy path: {alarms}")


def test_alarms_keep_their_distance_and_thresholds_change_at_run_time(lab: Lab) -> None:
    interval_us = 300_000
    with probing(lab.client, thresholds=QUIET) as probes:
        listening = Listening(probes)
        running = lab.start(RequestResponse(interval_ms=INTERVAL_MS))
        assert running.token is not None
        exchanges_before(lab, probes, 10)
        lab.paths[0].set(loss_percent=15)
        exchanges_before(lab, probes, 80)
        assert listening.alarms() == []
        probes.set_thresholds(
            Thresholds(
                rtt_factor_percent=0,
                timeouts=0,
                no_progress_us=0,
                stall_us=0,
                hole_us=0,
                silence_us=0,
                min_interval_us=interval_us,
            )
        )
        until(lambda: len(listening.alarms()) >= 3, "three alarms")
        times = [alarm.measurement.at for alarm in listening.alarms()]
    gaps = [(late - early) / 1000 for early, late in itertools.pairwise(times)]
    assert min(gaps) >= interval_us


def test_a_sibling_that_stays_fast_makes_the_first_strike_count() -> None:
    # Ten strikes would be needed if the fast sibling were not looked at.
    thresholds = Thresholds(
        loss_percent=0,
        timeouts=0,
        no_progress_us=0,
        stall_us=0,
        hole_us=0,
        silence_us=0,
        rtt_strikes=1_000_000,
    )
    with (
        Lab(paths=[Path(delay_ms=10), Path(delay_ms=12)]) as lab,
        probing(lab.client, thresholds=thresholds) as probes,
    ):
        allow_joins(lab)
        listening = Listening(probes)
        running = lab.start(RequestResponse())
        assert running.token is not None
        until(lambda: len(sample(lab.client, probes)) == 2, "second subflow")
        exchanges_before(lab, probes, 20)
        lab.paths[0].set(delay_ms=100)
        alarm = listening.alarm(running.token)
    assert alarm.kind is AlarmKind.RTT
    assert alarm.measurement.local.ip == lab.paths[0].client_ip
