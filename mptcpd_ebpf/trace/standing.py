# SPDX-License-Identifier: BSD-3-Clause
"""States of connections and their joined subflows at a past time.

The kernel refuses a join when its connection is closing and when the subflows have reached the
limit, and counts both as MPJoinRejected (mptcp_can_accept_new_subflow in net/mptcp/subflow.c).
The state changes of MPTCP and TCP sockets with their times (inet_sock_set_state) tell the two
apart.
"""

from dataclasses import dataclass, field

from mptcpd_ebpf.core.measurement import Measurement
from mptcpd_ebpf.trace.scope import MOST_KNOWN, bound
from mptcpd_ebpf.trace.trace_programs import Record

_ESTABLISHED, _SYN_SENT, _SYN_RECV, _CLOSE = 1, 2, 3, 7  # include/net/tcp_states.h


@dataclass
class _Span:
    began: int | None = None
    """Nanoseconds; None: not established yet."""
    ended: int | None = None
    """Nanoseconds; None: still open."""


@dataclass
class ConnectionStates:
    """The states of connections and of their joined subflows; keeps the newest `MOST_KNOWN`.

    Times are CLOCK_MONOTONIC nanoseconds.
    """

    _closing: dict[int, int] = field(default_factory=dict)
    """By token: when the connection left ESTABLISHED."""
    _joined: dict[int, dict[int, _Span]] = field(default_factory=dict)
    """By token and cookie."""

    def begin(self, present: list[Measurement]) -> None:
        """Adds the subflows that are older than the trace."""
        for each in present:
            if each.cookie and not each.initial:
                self._span(each.token, each.cookie).began = 0

    def connection(self, record: Record) -> None:
        """An MPTCP socket's state changed (TRACE_CONNECTION)."""
        token = record["token"]
        if record["state"] == _ESTABLISHED:
            self._closing.pop(token, None)  # from an earlier connection with this token
        elif record["state"] not in (_SYN_SENT, _SYN_RECV):
            self._closing.setdefault(token, record["at"])
            bound(self._closing)

    def subflow(self, record: Record) -> None:
        """A subflow's state changed (TRACE_STATE)."""
        token, cookie = record["token"], record["cookie"]
        if not token or not record["joined"]:
            return
        span = self._span(token, cookie)
        if record["state"] == _ESTABLISHED:
            span.began = record["at"]
        elif record["state"] == _CLOSE:
            span.ended = record["at"]

    def _span(self, token: int, cookie: int) -> _Span:
        spans = self._joined.setdefault(token, {})
        bound(self._joined)
        if len(spans) > MOST_KNOWN:
            del spans[next(iter(spans))]
        return spans.setdefault(cookie, _Span())

    def closing_for(self, token: int | None, at: int) -> int | None:
        """How long a connection had been closing at `at`, nanoseconds; None: not known to be."""
        since = self._closing.get(token or 0)
        return None if since is None or since > at else at - since

    def up_for(self, token: int | None, cookie: int | None, at: int) -> int | None:
        """How long a joined subflow had been established at `at`, nanoseconds; None: it was not."""
        span = self._joined.get(token or 0, {}).get(cookie or 0)
        if span is None or span.began is None or span.began > at:
            return None
        return at - span.began

    def additional(self, token: int | None, at: int) -> int:
        """Number of joined subflows of a connection at `at`, with those in their handshake."""
        spans = self._joined.get(token or 0, {}).values()
        return sum(
            (span.began is None or span.began <= at) and (span.ended is None or span.ended > at)
            for span in spans
        )
