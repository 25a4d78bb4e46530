# SPDX-License-Identifier: BSD-3-Clause
"""When everything is read anew: after a doubt, or now and then where ends are not heard."""

import asyncio

import pytest

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.model import Connection, State, Subflow, World
from mptcpd_ebpf.daemon import resync_scheduler
from mptcpd_ebpf.daemon.resync_scheduler import ResyncScheduler
from tests.waiting import until_async

TOKEN = 1
LOCAL, REMOTE = SockAddr("10.0.1.1", 1), SockAddr("10.0.2.1", 2)
GONE = Subflow(TOKEN, LOCAL, REMOTE)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resync_scheduler, "SOON_S", 0.01)
    monkeypatch.setattr(resync_scheduler, "NOW_AND_THEN_S", 0.01)


def world(*subflows: Subflow) -> World:
    found = World()
    found.connections[TOKEN] = Connection(TOKEN, LOCAL, REMOTE)
    found.connections[TOKEN].subflows = {each.key: each for each in subflows}
    return found


def readings(of: World, *, sees_ends: bool, until: int = 1, tell: int = 1) -> int:
    """How often all was read, once it was `until` times or nothing is planned any more."""

    async def main() -> int:
        count = 0
        done = asyncio.Event()

        def read_anew() -> None:
            nonlocal count
            count += 1
            if count == until:
                done.set()

        watching = ResyncScheduler(read_anew, sees_ends=sees_ends)
        watching.start()
        for _ in range(tell):
            watching.look_at([GONE], of)
        if watching._timer is not None:
            await asyncio.wait_for(done.wait(), 20)
        watching.stop()
        return count

    return asyncio.run(main())


def test_a_connection_without_subflows_is_looked_for_once() -> None:
    assert readings(world(), sees_ends=True, tell=5) == 1


def test_what_has_subflows_or_is_gone_raises_no_doubt() -> None:
    other = Subflow(TOKEN, LOCAL, SockAddr("10.0.2.1", 3))
    assert readings(world(other), sees_ends=True) == 0
    assert readings(World(), sees_ends=True) == 0


def test_what_is_settled_meanwhile_is_not_looked_for() -> None:
    closed, joined = world(), world()

    async def main() -> list[None]:
        readings: list[None] = []
        watching = ResyncScheduler(lambda: readings.append(None), sees_ends=True)
        for found in (closed, joined):
            watching.look_at([GONE], found)
        closed.connections[TOKEN].state = State.CLOSED
        joined.connections[TOKEN].subflows = {GONE.key: GONE}
        await until_async(lambda: watching._timer is None, "the timer ends")
        return readings

    assert asyncio.run(main()) == []


def test_where_ends_are_not_heard_it_is_read_again_and_again() -> None:
    assert readings(World(), sees_ends=False, until=3, tell=0) == 3
