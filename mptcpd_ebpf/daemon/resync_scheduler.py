# SPDX-License-Identifier: BSD-3-Clause
"""When to read everything anew although no event was lost: the kernel does not tell all.

A connection that the peer ends with MP_FASTCLOSE (RFC 8684, 3.5; Linux sends it when a
program closes a socket with unread data) is gone without MPTCP_EVENT_CLOSED and without
MPTCP_EVENT_SUB_CLOSED, because its token is destroyed first (net/mptcp/protocol.c,
mptcp_check_fastclose).  The probes do see its subflows end.  So a connection that has lost
its last subflow is in doubt, and one reading of the sockets settles it; without probes
there is a reading now and then.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

from mptcpd_ebpf.core.model import Connection, State, Subflow, World

SOON_S = 1.0
"""After the first doubt, so that one reading settles many."""
NOW_AND_THEN_S = 60.0
SHARE = 0.05
"""Of the time, at most, that readings may take."""


class ResyncScheduler:
    """Calls `read_anew` from the running event loop.

    `sees_ends`: subflows' ends are heard, so that nothing needs to be read without a doubt.
    """

    def __init__(self, read_anew: Callable[[], None], *, sees_ends: bool) -> None:
        self._read_anew = read_anew
        self._sees_ends = sees_ends
        self._doubted: list[Connection] = []
        self._timer: asyncio.TimerHandle | None = None
        self._least_pause = 0.0

    def start(self) -> None:
        if not self._sees_ends:
            self._read_in(NOW_AND_THEN_S)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def look_at(self, finals: Sequence[Subflow], world: World) -> None:
        """Subflows that are gone for good: was one the last of a connection that still stands?"""
        for subflow in finals:
            connection = world.connections.get(subflow.token)
            if connection is not None and not connection.subflows:
                self._doubted.append(connection)
                self._read_in(SOON_S)

    def _read_in(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time() + max(seconds, self._least_pause)
        if self._timer is not None and not self._timer.cancelled():
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = loop.call_at(at, self._due)

    def _due(self) -> None:
        self._timer = None
        doubted, self._doubted = self._doubted, []
        if self._sees_ends and not any(map(_in_doubt, doubted)):
            return  # MPTCP_EVENT_CLOSED came meanwhile, as it does mostly, or a new subflow
        began = time.monotonic()
        try:
            self._read_anew()
        finally:
            self._least_pause = (time.monotonic() - began) / SHARE
            self.start()


def _in_doubt(connection: Connection) -> bool:
    return connection.state is not State.CLOSED and not connection.subflows
