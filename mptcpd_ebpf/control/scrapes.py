# SPDX-License-Identifier: BSD-3-Clause
"""Answers to ``GET /metrics``, one measurement a second however many clients ask."""

import asyncio
from http import HTTPStatus
from typing import Protocol

from mptcpd_ebpf.control.http import Response
from mptcpd_ebpf.control.schema import Connections, Status

MAX_AGE_SECONDS = 1.0


class Measured(Protocol):
    """What a scrape shows (`control.server.ControlSource`)."""

    async def connections(self) -> Connections: ...

    def status(self) -> Status: ...


class Scrapes:
    """Keeps the newest answer for `MAX_AGE_SECONDS`."""

    def __init__(self, source: Measured) -> None:
        self._source = source
        self._answer: asyncio.Task[Response] | None = None
        self._until = 0.0

    async def answer(self, _body: bytes) -> Response:
        """The newest answer; requests that come while it is made wait for it."""
        now = asyncio.get_running_loop().time()
        pending = self._answer is not None and not self._answer.done()
        if self._answer is None or (not pending and now >= self._until):
            self._answer = asyncio.ensure_future(self._measure())
        # A client that goes away must not cancel what the others wait for.
        return await asyncio.shield(self._answer)

    async def _measure(self) -> Response:
        from mptcpd_ebpf.control import metrics  # prometheus_client is slow to import

        try:
            body = metrics.exposition(self._source.status(), await self._source.connections())
        finally:
            self._until = asyncio.get_running_loop().time() + MAX_AGE_SECONDS
        return Response(HTTPStatus.OK, body, metrics.CONTENT_TYPE)
