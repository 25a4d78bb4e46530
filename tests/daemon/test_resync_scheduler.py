# SPDX-License-Identifier: BSD-3-Clause
"""When the daemon resynchronises without a lost event: after a suspicious end, or periodically."""

import asyncio

import pytest

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.model import Connection, State, Subflow, World
from mptcpd_ebpf.daemon import resync_scheduler
from mptcpd_ebpf.daemon.resync_scheduler import ResyncScheduler
from tests.waiting import until_async

TOKEN = 1
LOCAL, REMOTE = SockAddr("10.0.1.1", 1), SockAddr("10.0.2.1", 2)
CLOSED = Subflow(TOKEN, LOCAL, REMOTE)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resync_scheduler, "SOON_S", 0.01)
    monkeypatch.setattr(resync_scheduler, "PERIOD_S", 0.01)


def world(*subflows: Subflow) -> World:
    """One connection with these subflows."""
    found = World()
    found.connections[TOKEN] = Connection(TOKEN, LOCAL, REMOTE)
    found.connections[TOKEN].subflows = {each.key: each for each in subflows}
    return found


def readings(of: World, *, sees_ends: bool, until: int = 1, ends: int = 1) -> int:
    """How often everything was read, after `until` readings or when no more is scheduled.

    `ends`: how often the end of the subflow is reported.
    """

    async def main() -> int:
        count = 0
        done = asyncio.Event()

        def resynchronise() -> None:
            nonlocal count
            count += 1
            if count == until:
                done.set()

        scheduler = ResyncScheduler(resynchronise, sees_ends=sees_ends)
        scheduler.start()
        for _ in range(ends):
            scheduler.look_at([CLOSED], of)
        if scheduler._timer is not None:
            await asyncio.wait_for(done.wait(), 20)
        scheduler.stop()
        return count

    return asyncio.run(main())


def test_a_connection_without_subflows_causes_one_reading() -> None:
    assert readings(world(), sees_ends=True, ends=5) == 1


def test_a_connection_that_has_subflows_or_is_gone_causes_none() -> None:
    other = Subflow(TOKEN, LOCAL, SockAddr("10.0.2.1", 3))
    assert readings(world(other), sees_ends=True) == 0
    assert readings(World(), sees_ends=True) == 0


def test_a_connection_that_closes_or_is_joined_meanwhile_causes_none() -> None:
    closed, joined = world(), world()

    async def main() -> list[None]:
        readings: list[None] = []
        scheduler = ResyncScheduler(lambda: readings.append(None), sees_ends=True)
        for found in (closed, joined):
            scheduler.look_at([CLOSED], found)
        closed.connections[TOKEN].state = State.CLOSED
        joined.connections[TOKEN].subflows = {CLOSED.key: CLOSED}
        await until_async(lambda: scheduler._timer is None, "the timer ends")
        return readings

    assert asyncio.run(main()) == []


def test_without_reported_ends_it_reads_periodically() -> None:
    assert readings(World(), sees_ends=False, until=3, ends=0) == 3
