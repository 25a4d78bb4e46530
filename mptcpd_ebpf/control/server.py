# SPDX-License-Identifier: BSD-3-Clause
"""The control socket of a running daemon: HTTP and JSON.

``curl --unix-socket PATH http://localhost/v1/status`` works; docs/control.md lists the requests.
The daemon provides the data through `ControlSource`, and events through `ControlServer.publish`.
"""

import asyncio
import logging
import time
from functools import partial
from http import HTTPStatus
from typing import Any, Protocol

import msgspec

from mptcpd_ebpf.config.settings import Metrics
from mptcpd_ebpf.control import views
from mptcpd_ebpf.control.host_header import names_this_host
from mptcpd_ebpf.control.http import (
    STREAM,
    HttpServer,
    Response,
    Routes,
    error_response,
    json_response,
    server_sent_event,
)
from mptcpd_ebpf.control.schema import (
    SCHEMA,
    CarriedOut,
    Connections,
    DecisionView,
    Endpoints,
    LimitsView,
    Paths,
    Status,
    Story,
)
from mptcpd_ebpf.control.scrapes import Scrapes
from mptcpd_ebpf.control.socket_file import SocketFile
from mptcpd_ebpf.core.commands import ReadEndpoints, RequestSample
from mptcpd_ebpf.core.recording import Record
from mptcpd_ebpf.kernel.errors import KernelError
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure

log = logging.getLogger(__name__)

MAX_SCRAPERS = 16
"""Clients of `metrics.listen`."""

_STATUS = {
    ExitCode.CONFIG: HTTPStatus.UNPROCESSABLE_ENTITY,
    ExitCode.PRIVILEGE: HTTPStatus.FORBIDDEN,
}
"""The status of the answer to a reload that failed."""


def epoch_ns() -> int:
    """What to add to CLOCK_MONOTONIC nanoseconds to get nanoseconds since 1970."""
    return time.time_ns() - time.monotonic_ns()


class ControlSource(Protocol):
    """The daemon's answers to the control socket."""

    async def connections(self) -> Connections:
        """Every connection, measured now (`views.connections`)."""

    async def paths(self) -> Paths:
        """Every path, measured now (`paths_view.paths`)."""

    def status(self) -> Status: ...

    def decisions(self) -> list[DecisionView]:
        """The newest decisions, oldest first, at most 1000 (`views.decision`)."""

    async def story(self) -> Story:
        """What was seen and done lately (`story.tell`)."""

    async def endpoints(self) -> Endpoints:
        """The table of the in-kernel path manager (`operator_commands.endpoints`)."""

    async def limits(self) -> LimitsView: ...

    async def carry_out(self, fields: dict[str, Any]) -> CarriedOut:
        """Carries out a manual command (`operator_commands`).

        Raises ValueError if the fields are wrong, or KernelError if a field that was left out
        cannot be read from the kernel.
        """

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...

    async def reload(self) -> None:
        """Reads the configuration again.  Raises `Failure`, and the old one stays in force."""


class ControlServer:
    """Serves one `ControlSource` until closed."""

    def __init__(self, source: ControlSource, metrics: Metrics) -> None:
        self._source = source
        self._metrics = metrics
        self._scrapes = Scrapes(source)
        self._listeners: list[asyncio.Server] = []
        self._file: SocketFile | None = None
        routes: Routes = {
            ("GET", "/v1/connections"): self._connections,
            ("GET", "/v1/paths"): self._paths,
            ("GET", "/v1/status"): self._status,
            ("GET", "/v1/decisions"): self._decisions,
            ("GET", "/v1/story"): self._story,
            ("GET", "/v1/events"): STREAM,
            ("GET", "/v1/endpoints"): self._endpoints,
            ("GET", "/v1/limits"): self._limits,
            ("POST", "/v1/command"): self._command,
            ("POST", "/v1/pause"): self._pause,
            ("POST", "/v1/resume"): self._resume,
            ("POST", "/v1/reload"): self._reload,
        }
        if metrics.enabled:
            routes["GET", "/metrics"] = self._scrapes.answer
        self._http = HttpServer(routes, greeting=server_sent_event("hello", {"schema": SCHEMA}))
        # Anyone who reaches the address may connect: a server, and bounds, of its own.
        self._exposed = HttpServer(
            {("GET", "/metrics"): self._scrapes.answer},
            accepts_host=partial(names_this_host, metrics.hosts),
            max_clients=MAX_SCRAPERS,
        )

    async def start(self, path: str) -> None:
        """Listens at `path`, and for metrics on TCP if configured.

        Raises `Failure`: HELD if a running daemon listens there, PRIVILEGE or CONFIG if the path
        cannot be used.
        """
        loop = asyncio.get_running_loop()
        self._file = SocketFile(path)
        self._listeners.append(
            await loop.create_unix_server(self._http.client, sock=self._file.socket)
        )
        if self._metrics.listen is not None:
            try:
                await self._listen_tcp(self._metrics.listen)
            except Failure:
                self.close()
                raise

    async def _listen_tcp(self, where: str) -> None:
        host, _, port = where.rpartition(":")
        try:
            server = await asyncio.get_running_loop().create_server(
                self._exposed.client, host.strip("[]"), int(port)
            )
        except (OSError, OverflowError) as error:
            raise Failure(
                f"metrics.listen: cannot listen on {where}: {error}", ExitCode.CONFIG
            ) from None
        self._listeners.append(server)

    def close(self) -> None:
        """Ends the streams, closes idle connections and removes the socket file."""
        for listener in self._listeners:
            listener.close()
        self._http.close()
        self._exposed.close()
        if self._file is not None:
            self._file.close()

    def publish(self, record: Record) -> None:
        """Sends an event and its decisions to all streams; never blocks."""
        if not self._http.has_streams:
            return
        self._http.broadcast(server_sent_event("event", views.event(record.event)))
        for decision in record.decisions:
            if not isinstance(decision.command, RequestSample | ReadEndpoints):
                shown = views.decision(decision, epoch_ns())
                self._http.broadcast(server_sent_event("decision", shown))

    # --- requests

    async def _connections(self, _body: bytes) -> Response:
        return json_response(await self._source.connections())

    async def _paths(self, _body: bytes) -> Response:
        return json_response(await self._source.paths())

    async def _status(self, _body: bytes) -> Response:
        return json_response(self._source.status())

    async def _decisions(self, _body: bytes) -> Response:
        return json_response({"schema": SCHEMA, "decisions": self._source.decisions()})

    async def _story(self, _body: bytes) -> Response:
        return json_response(await self._source.story())

    async def _endpoints(self, _body: bytes) -> Response:
        return json_response(await self._source.endpoints())

    async def _limits(self, _body: bytes) -> Response:
        return json_response(await self._source.limits())

    async def _command(self, body: bytes) -> Response:
        try:
            fields = msgspec.json.decode(body, type=dict[str, Any])
        except RecursionError:
            return error_response(HTTPStatus.BAD_REQUEST, "JSON is nested too deep")
        except (msgspec.DecodeError, ValueError) as error:
            return error_response(HTTPStatus.BAD_REQUEST, str(error))
        try:
            return json_response(await self._source.carry_out(fields))
        except ValueError as error:
            return error_response(HTTPStatus.BAD_REQUEST, str(error))
        except KernelError as error:
            return error_response(HTTPStatus.CONFLICT, str(error))

    async def _pause(self, _body: bytes) -> Response:
        await self._source.pause()
        return json_response(self._source.status())

    async def _resume(self, _body: bytes) -> Response:
        await self._source.resume()
        return json_response(self._source.status())

    async def _reload(self, _body: bytes) -> Response:
        try:
            await self._source.reload()
        except Failure as failure:
            return error_response(_STATUS[failure.exit_code], str(failure))
        return json_response(self._source.status())
