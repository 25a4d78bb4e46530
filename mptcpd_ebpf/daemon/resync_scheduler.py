# SPDX-License-Identifier: BSD-3-Clause
"""Resynchronisations although no event was lost, because the kernel does not report everything.

A connection that the peer closes with MP_FASTCLOSE (RFC 8684, 3.5; Linux sends it when a program
closes a socket with unread data) disappears without MPTCP_EVENT_CLOSED and without
MPTCP_EVENT_SUB_CLOSED, because its token is destroyed first (net/mptcp/protocol.c,
mptcp_check_fastclose).  The probes do report the end of its subflows.  So the daemon reads the
sockets once when a connection has lost its last subflow; without probes it reads them periodically.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

from mptcpd_ebpf.core.model import Connection, State, Subflow, World

SOON_S = 1.0
"""After the first connection without subflows, so that one reading serves several."""
PERIOD_S = 60.0
"""Between readings without probes."""
SHARE = 0.05
"""Largest share of the time that readings may take."""


class ResyncScheduler:
    """Calls `resynchronise` from the running event loop.

    `sees_ends`: the ends of subflows are reported, so that no periodic reading is needed.
    """

    def __init__(self, resynchronise: Callable[[], None], *, sees_ends: bool) -> None:
        self._resynchronise = resynchronise
        self._sees_ends = sees_ends
        self._suspects: list[Connection] = []
        """Connections that have lost their last subflow."""
        self._timer: asyncio.TimerHandle | None = None
        self._least_pause = 0.0

    def start(self) -> None:
        if not self._sees_ends:
            self._schedule(PERIOD_S)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def look_at(self, finals: Sequence[Subflow], world: World) -> None:
        """Schedules a reading if one of these closed subflows was the last of a live connection."""
        for subflow in finals:
            connection = world.connections.get(subflow.token)
            if connection is not None and not connection.subflows:
                self._suspects.append(connection)
                self._schedule(SOON_S)

    def _schedule(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time() + max(seconds, self._least_pause)
        if self._timer is not None and not self._timer.cancelled():
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = loop.call_at(at, self._due)

    def _due(self) -> None:
        self._timer = None
        suspects, self._suspects = self._suspects, []
        if self._sees_ends and not any(map(_is_suspect, suspects)):
            return  # as in most cases: MPTCP_EVENT_CLOSED or a new subflow arrived meanwhile
        began = time.monotonic()
        try:
            self._resynchronise()
        finally:
            self._least_pause = (time.monotonic() - began) / SHARE
            self.start()


def _is_suspect(connection: Connection) -> bool:
    return connection.state is not State.CLOSED and not connection.subflows
