# SPDX-License-Identifier: BSD-3-Clause
"""Waiting for answers: normally they are there at once, so here the first look is withheld."""

import asyncio
import errno
from collections.abc import Iterator

import pytest

from mptcpd_ebpf.core.commands import RemoveEndpoint, SetLimits
from mptcpd_ebpf.kernel import transport
from mptcpd_ebpf.kernel.pm_client import CommandAnswer, PmClient
from mptcpd_ebpf.kernel.transport import Requester
from mptcpd_ebpf.lab import Lab

LIMITS = SetLimits(subflows=3, add_addr_accepted=0, reason="test")
NO_SUCH = RemoveEndpoint(address_id=9, reason="test")


@pytest.fixture
def pm() -> Iterator[PmClient]:
    with Lab() as lab, lab.client.entered(), PmClient() as client:
        yield client


class Reluctant:
    """Lets a requester look for answers only after `skip` looks."""

    def __init__(self, skip: int) -> None:
        self.looks, self._skip, self._look = 0, skip, Requester._receive

    def __call__(self, requester: Requester) -> None:
        self.looks += 1
        if self.looks > self._skip:
            self._look(requester)


def withhold(monkeypatch: pytest.MonkeyPatch, skip: int) -> Reluctant:
    reluctant = Reluctant(skip)
    monkeypatch.setattr(Requester, "_receive", lambda self: reluctant(self))
    return reluctant


def test_late_answers_find_who_waits(pm: PmClient, monkeypatch: pytest.MonkeyPatch) -> None:
    reluctant = withhold(monkeypatch, skip=20)

    async def both_kinds() -> list[int]:
        commands = [NO_SUCH if n % 2 else LIMITS for n in range(20)]
        answers = await asyncio.gather(*map(pm.execute, commands))
        return [answer.errno for answer in answers]

    assert asyncio.run(both_kinds()) == [0, errno.EINVAL] * 10
    assert reluctant.looks > 20


def test_a_late_answer_is_waited_for_blocking(
    pm: PmClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    withhold(monkeypatch, skip=1)
    assert pm.execute_now(LIMITS) == (0, "")


@pytest.mark.parametrize("blocking", [True, False])
def test_a_lost_answer_is_no_hang(
    pm: PmClient, monkeypatch: pytest.MonkeyPatch, blocking: bool
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(transport, "ANSWER_TIMEOUT_S", 0.02)
        withhold(patch, skip=10**9)
        answer = pm.execute_now(LIMITS) if blocking else asyncio.run(pm.execute(LIMITS))
        assert answer.errno == errno.ETIMEDOUT
        assert "the kernel did not answer" in answer.explanation
    assert pm.execute_now(NO_SUCH).errno == errno.EINVAL, "the late answer is nobody else's"


def test_who_stops_waiting_takes_nothing_along(
    pm: PmClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    withhold(monkeypatch, skip=2)

    async def cancel_one() -> CommandAnswer:
        waiting = asyncio.ensure_future(pm.execute(NO_SUCH))
        other = asyncio.ensure_future(pm.execute(LIMITS))
        await asyncio.sleep(0)  # one turn of the event loop: both requests are sent
        waiting.cancel()
        return await other

    assert asyncio.run(cancel_one()) == (0, "")
