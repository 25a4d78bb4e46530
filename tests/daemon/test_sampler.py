# SPDX-License-Identifier: BSD-3-Clause
"""Samples that take long are taken with pauses, and one answers all requests of a pause."""

import asyncio

import pytest

from mptcpd_ebpf.daemon import sampler
from mptcpd_ebpf.daemon.sampler import CHEAP, PAUSE, Sampler
from tests.core.scenario import MS, START


class Clock:
    def __init__(self) -> None:
        self.now = START

    def monotonic_ns(self) -> int:
        return self.now


class Stage:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.taken: list[bool] = []
        self.handled = 0
        self.sampler = Sampler(self.taken.append, self._handle)

    def _handle(self) -> None:
        self.handled += 1

    def request(self, *, with_owners: bool = False) -> None:
        self.sampler.request(with_owners=with_owners)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    clock = Clock()
    monkeypatch.setattr(sampler, "time", clock)
    return Stage(clock)


def test_cheap_samples_are_taken_at_once(stage: Stage) -> None:
    for _ in range(3):
        stage.request()
        stage.sampler.spent(CHEAP)
    assert stage.taken == [False] * 3


def test_dear_ones_have_pauses(stage: Stage) -> None:
    async def play() -> None:
        stage.request()
        stage.sampler.spent(20 * MS)
        stage.sampler.spent(30 * MS)
        for _ in range(3):
            stage.request()
        assert stage.taken == [False]
        assert stage.sampler._timer is not None
        stage.sampler._due()
        assert stage.taken == [False] * 2
        assert stage.handled == 1
        stage.sampler.request(with_owners=False, urgent=True)
        assert stage.taken == [False] * 3
        stage.clock.now += PAUSE * 50 * MS
        stage.request()
        assert stage.taken == [False] * 4

    asyncio.run(play())


def test_one_with_owners_is_taken_at_once_and_answers_those_that_wait(stage: Stage) -> None:
    async def play() -> None:
        stage.sampler.spent(100 * MS)
        stage.request()
        stage.request(with_owners=True)
        assert stage.taken == [True]
        assert stage.sampler._timer is None

    asyncio.run(play())
