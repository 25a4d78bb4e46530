# SPDX-License-Identifier: BSD-3-Clause
"""The rules of the diagnosis find each cause by its evidence, and none without."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.measurement import Measurement
from mptcpd_ebpf.trace.diagnosis import (
    KeptPath,
    Observation,
    PathFigures,
    came_back,
    diagnose,
    has_long_queue,
    lost_without_queue,
)

SECOND = 1_000_000
OF_THE_PATH = {each.name for each in dataclasses.fields(PathFigures)} - {"first", "last"}


def measured(**fields: Any) -> Measurement:
    known = {
        "bytes_sent": 0, "segments_out": 0, "retransmits": 0, "lost": 0, "stalled_us": 0,
        "srtt_us": 20_000, "min_rtt_us": 10_000, **fields,
    }  # fmt: skip
    return Measurement(
        at=0, token=1, local=SockAddr("10.0.0.1", 1), remote=SockAddr("10.0.0.2", 2), **known
    )


def path(*, busy: float = 1.0, full: float = 1.0, **fields: Any) -> PathFigures:
    own = {name: fields.pop(name) for name in OF_THE_PATH if name in fields}
    growth = {"bytes_sent": 1_000_000, "segments_out": 1000, **fields}
    return PathFigures(first=measured(), last=measured(**growth), busy=busy, full=full, **own)


def causes(*paths: PathFigures, **fields: Any) -> list[str]:
    seen = Observation(lasted_us=SECOND, paths=list(paths), **fields)
    return [finding.cause for finding in diagnose(seen)]


def test_a_healthy_connection_has_no_fault() -> None:
    assert causes(path(), path()) == ["capacity"]
    assert causes(path(busy=0.1), path(busy=0.2)) == ["application"]
    assert causes(path(full=0.1), path(full=0.2)) == ["application"]


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"retransmits": 30, "lost": 30, "losing": 0.7}, "loss"),
        ({"retransmits": 30, "lost": 30, "losing": 0.1, "lost_without_queue": 20}, "loss"),
        ({"stalled_us": 200_000, "srtt_us": 40_000}, "slow-path"),
        ({"stalled_us": 200_000, "worst_timeouts": 1}, "slow-path"),
        ({"worst_timeouts": 2, "worst_silence_us": SECOND}, "dead-path"),
        ({"stale": True, "worst_timeouts": 1}, "dead-path"),
        ({"srtt_us": 300_000, "queued": 0.9}, "queue"),
    ],
)
def test_each_fault_of_a_path_is_found(fields: dict[str, Any], cause: str) -> None:
    assert causes(path(**fields), path()) == [cause]


@pytest.mark.parametrize(
    "fields",
    [
        {"stale": True},
        {"retransmits": 4},
        {"retransmits": 19},
        {"stalled_us": 90_000},
        {"worst_timeouts": 1, "worst_silence_us": SECOND},
        {"worst_timeouts": 2, "worst_silence_us": 400_000},
        {"srtt_us": 300_000, "queued": 0.3},
    ],
)
def test_weak_evidence_is_no_finding(fields: dict[str, Any]) -> None:
    assert causes(path(**fields), path()) == ["capacity"]


def test_a_closed_window_is_the_peers_unless_a_path_caused_it() -> None:
    assert causes(path(), path(), window_us=500_000) == ["peer"]
    slow = path(stalled_us=500_000, srtt_us=40_000)
    assert causes(slow, path(), window_us=500_000) == ["slow-path"]
    # TCP has acknowledged everything that was sent, so no path causes the stall.
    quiet = path(stalled_us=500_000, busy=0.1)
    assert causes(quiet, path(busy=0.1), window_us=500_000) == ["peer"]


def test_a_peer_that_answers_without_accepting_data_is_the_limit() -> None:
    silent: dict[str, Any] = {
        "worst_timeouts": 4, "worst_silence_us": SECOND, "stale": True,
        "retransmits": 9, "segments_out": 100, "lost": 50, "losing": 0.9, "stalled_us": SECOND,
    }  # fmt: skip
    assert causes(path(**silent, refused=2), path(busy=0.0)) == ["peer"]
    # A single answer may have been late, and data of the peer is no answer.
    assert causes(path(**silent, refused=1), path(busy=0.0))[0] == "dead-path"
    assert causes(path(**silent, refused=2, received=1), path(busy=0.0))[0] == "dead-path"


def test_answers_to_retransmissions_are_detected() -> None:
    """The retransmission timer of Linux: 200 ms, doubled each time."""
    for at_us in range(0, 30 * SECOND, 50_000):
        sent = [200_000 * (2**n - 1) for n in range(1, 12)]
        done = [each for each in sent if each <= at_us]
        timer = {"timeouts": len(done), "rto_us": 200_000 * 2 ** len(done)}
        assert not came_back(measured(**timer, idle_us=at_us))
        answers = [each + 20_000 for each in done if each + 20_000 <= at_us]
        answered = measured(**timer, idle_us=at_us - max(answers, default=0))
        soon = len(done) >= 2 and at_us - done[-1] < timer["rto_us"] // 2
        assert came_back(answered) >= soon


def test_a_single_overshoot_is_no_loss() -> None:
    overshot = path(retransmits=100, lost=100, losing=0.2, lost_without_queue=10)
    assert causes(overshot, path()) == ["capacity"]


@pytest.mark.parametrize(
    ("lost", "srtt_us", "without_queue"),
    [(0, 10_000, 0), (5, 10_000, 5), (5, 15_000, 0), (200, 10_000, 0)],
)
def test_losses_without_a_queue_are_counted(lost: int, srtt_us: int, without_queue: int) -> None:
    before, after = measured(lost=7), measured(lost=7 + lost, srtt_us=srtt_us)
    assert lost_without_queue(before, after) == without_queue


def test_a_queue_is_long_relative_to_the_minimum_round_trip_time() -> None:
    def waits(**fields: Any) -> bool:
        return has_long_queue(measured(delivered=7), measured(**{"delivered": 8, **fields}))

    assert waits(srtt_us=120_000)
    assert not waits(srtt_us=100_000)
    assert not waits(srtt_us=150_000, min_rtt_us=50_000)
    # Nothing was delivered since, so the round-trip time is old.
    assert not waits(srtt_us=120_000, delivered=7)


def test_an_equally_fast_path_without_loss_does_not_cause_stalls() -> None:
    assert causes(path(stalled_us=400_000, srtt_us=11_000), path(srtt_us=11_000)) == ["peer"]


def test_a_path_that_waits_for_the_peer_to_read_is_not_slow() -> None:
    waits = path(srtt_us=50_000, min_rtt_us=10_000, stalled_us=800_000, full=0.0)
    assert causes(waits, path(busy=0.0, full=0.0), window_us=900_000) == ["peer"]


def test_a_queue_on_the_path_excludes_the_peer() -> None:
    states = {"srtt_us": 40_000, "min_rtt_us": 10_000}
    assert causes(path(**states), path(), window_us=900_000) == ["capacity"]
    # The sender was stopped while the queue existed, and now hardly sends.
    stopped = path(**states, segments_out=5, in_flight=10)
    assert causes(stopped, path(busy=0.1), window_us=900_000) == ["peer"]


def test_a_queue_ranks_before_the_slow_path_that_it_causes() -> None:
    assert causes(path(srtt_us=300_000, stalled_us=300_000, queued=1.0), path()) == [
        "queue",
        "slow-path",
    ]


def test_a_receiver_is_referred_to_the_sender() -> None:
    quiet = path(busy=0.1, bytes_sent=1000, received=2_500_000)
    assert causes(quiet, quiet) == ["receiving"]


def test_single_paths_and_backups_are_findings() -> None:
    assert causes(path()) == ["capacity", "one-path"]
    assert causes(path(backup=True), path(bytes_sent=0)) == ["backup-only"]
    assert causes(path(ended=True), endings=["it was reset"]) == ["ended"]


@given(
    st.lists(st.builds(path, retransmits=st.integers(0, 1000), srtt_us=st.integers(1, SECOND)),
             max_size=4),
    st.integers(0, SECOND),
)  # fmt: skip
def test_there_is_always_a_finding_and_weights_descend(
    paths: list[PathFigures], window_us: int
) -> None:
    findings = diagnose(Observation(lasted_us=SECOND, paths=paths, window_us=window_us))
    weights = [finding.weight for finding in findings]
    assert weights
    assert weights == sorted(weights, reverse=True)
    assert all(0 <= weight <= 1 for weight in weights)
    assert all(finding.evidence for finding in findings)


def test_a_path_that_the_daemon_keeps_away_is_a_finding_with_its_reason() -> None:
    kept = [
        KeptPath(name="fibre", state="away", reason="silent", for_s=9, probes="3 of 10 probes"),
        KeptPath(name="radio", state="standby", reason="slow", for_s=1),
    ]
    seen = Observation(lasted_us=SECOND, paths=[path()], kept=kept)
    away, standby = [each for each in diagnose(seen) if each.cause.startswith("path-")]
    assert "keeps fibre away" in away.words
    assert away.evidence == ["for 9.0 s: silent", "3 of 10 probes"]
    assert "keeps radio on standby" in standby.words
    assert standby.evidence == ["for 1.0 s: slow"]
