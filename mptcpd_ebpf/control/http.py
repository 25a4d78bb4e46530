# SPDX-License-Identifier: BSD-3-Clause
"""A small HTTP/1.1 server on asyncio and h11 in which every resource has a limit.

h11 implements the protocol.  This module does the input and output, and enforces the limits:
connections, streams, the size of a request, the time to send it and to read its answer, the backlog
of a stream.  The server never waits for a client: one that does not read fills its own socket, and
the server closes the connection.  Pipelined requests are answered one in each turn of the loop, and
only while the client reads the answers.

The handler of a path returns a whole `Response`.  A path whose handler is `STREAM` answers with
server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html), which come from
`HttpServer.broadcast`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, NamedTuple

import h11
import msgspec

log = logging.getLogger(__name__)

MAX_CLIENTS = 64
"""Of one server.  Another client takes the place of the one that has waited longest without a
request."""
MAX_STREAMS = 32
"""Fewer than clients, so that streams leave room for requests."""
MAX_HEAD_BYTES = 16 * 1024
"""Of an incomplete request line with headers."""
MAX_BODY_BYTES = 64 * 1024
REQUEST_SECONDS = 10.0
"""To send a whole request; after an answer, to read it and to send the next request."""
MAX_BACKLOG_BYTES = 256 * 1024
"""Unread bytes of a stream, at most."""


class Response(NamedTuple):
    status: HTTPStatus
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


Handler = Callable[[bytes], Awaitable[Response]]
"""Called with the body of the request."""
STREAM = "stream"
"""In place of the handler of a path that streams."""

Routes = dict[tuple[str, str], Handler | str]
"""Handlers by method and path."""
AcceptsHost = Callable[[str], bool]
"""Whether a Host header may name this server (RFC 9110 section 7.4)."""


def json_response(data: Any, status: HTTPStatus = HTTPStatus.OK) -> Response:
    """`data` as JSON, with a newline at the end for terminals."""
    return Response(status, msgspec.json.encode(data) + b"\n")


def error_response(status: HTTPStatus, reason: str) -> Response:
    return json_response({"error": reason}, status)


def server_sent_event(name: str, data: Any) -> bytes:
    """One event of a stream: its name and its data as one line of JSON."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(data))


class HttpServer:
    """The clients of a listener; `client` is asyncio's protocol factory."""

    def __init__(
        self,
        routes: Routes,
        *,
        greeting: bytes = b"",
        accepts_host: AcceptsHost = lambda _host: True,
        max_clients: int = MAX_CLIENTS,
    ) -> None:
        """A stream begins with `greeting`."""
        self.routes = routes
        self.greeting = greeting
        self.accepts_host = accepts_host
        self.max_clients = max_clients
        self._clients: dict[_Client, None] = {}
        self._streams: dict[_Client, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def client(self) -> asyncio.Protocol:
        """A new client, which can request `routes`."""
        return _Client(self)

    @property
    def has_streams(self) -> bool:
        return bool(self._streams)

    def broadcast(self, chunk: bytes) -> None:
        """Sends bytes to every stream; closes streams whose backlog is too large."""
        for client in list(self._streams):
            client.send_chunk(chunk)

    def close(self) -> None:
        """Ends streams and connections; pending answers are still sent."""
        for client in list(self._clients):
            client.end()

    # --- called by the clients

    def admit(self, client: "_Client") -> bool:
        if len(self._clients) >= self.max_clients:
            idle = next((each for each in self._clients if each.idle), None)
            if idle is None:
                return False
            self.forget(idle)
            idle.abort()
        self._clients[client] = None
        return True

    def admit_stream(self, client: "_Client") -> bool:
        if len(self._streams) >= MAX_STREAMS:
            return False
        self._streams[client] = None
        return True

    def forget(self, client: "_Client") -> None:
        self._clients.pop(client, None)
        self._streams.pop(client, None)

    def run(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Client(asyncio.Protocol):
    """One connection: reads a request, answers it, reads the next."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._transport: asyncio.Transport
        self._deadline: asyncio.TimerHandle | None = None
        self._request: h11.Request | None = None
        self._body = bytearray()
        self._answering = False
        self._streaming = False
        self._unread = False
        """The client has left so many answers unread that it gets no more of them."""

    @property
    def idle(self) -> bool:
        """Whether the server waits for a request."""
        return not self._answering

    def abort(self) -> None:
        self._transport.abort()

    # --- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._server.admit(self):
            self._arm()
        else:
            self._send(
                error_response(
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    f"{self._server.max_clients} connections are open already",
                )
            )
            transport.close()

    def data_received(self, data: bytes) -> None:
        if self._streaming:
            return  # no request can follow one for a stream
        self._http.receive_data(data)
        self._advance()

    def pause_writing(self) -> None:
        self._unread = True

    def resume_writing(self) -> None:
        self._unread = False
        self._advance()

    def connection_lost(self, error: Exception | None) -> None:
        self._disarm()
        self._server.forget(self)

    # --- requests

    def _advance(self) -> None:
        """Handles at most one request.  Reading stops until the rest of what was read is handled,
        so that a client's unhandled bytes are bounded, and an end of file does not close the
        connection before the answer."""
        while not (self._answering or self._unread or self._transport.is_closing()):
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                status = HTTPStatus(error.error_status_hint)
                self._refuse(error_response(status, f"not HTTP: {error}"))
                return
            if isinstance(event, h11.Request):
                self._request = event
                self._body.clear()
                if self._http.they_are_waiting_for_100_continue:
                    self._write(h11.InformationalResponse(status_code=100, headers=[]))
            elif isinstance(event, h11.Data):
                self._body += event.data
                if len(self._body) > MAX_BODY_BYTES:
                    reason = f"the body of a request can have {MAX_BODY_BYTES} bytes"
                    self._refuse(error_response(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, reason))
                    return
            elif isinstance(event, h11.EndOfMessage):
                assert self._request is not None
                self._disarm()
                self._transport.pause_reading()
                self._dispatch(self._request)
                return
            elif isinstance(event, h11.ConnectionClosed):
                self._transport.close()
                return
            else:  # NEED_DATA, or PAUSED until the answer is sent
                self._transport.resume_reading()
                return

    def _dispatch(self, request: h11.Request) -> None:
        method = request.method.decode("ascii")
        path = request.target.decode("ascii", "replace").partition("?")[0]
        host = next((value for name, value in request.headers if name == b"host"), None)
        if host is not None and not self._server.accepts_host(host.decode("ascii", "replace")):
            reason = "the Host header does not name this host: see metrics.hosts"
            self._answer(error_response(HTTPStatus.MISDIRECTED_REQUEST, reason))
            return
        handler = self._server.routes.get((method, path))
        if isinstance(handler, str):
            self._begin_stream()
        elif handler is not None:
            self._answering = True
            self._server.run(self._respond(handler, bytes(self._body), f"{method} {path}"))
        else:
            self._answer(self._no_such(method, path))

    def _answer(self, response: Response) -> None:
        self._send(response)
        self._next()
        asyncio.get_running_loop().call_soon(self._advance)

    def _no_such(self, method: str, path: str) -> Response:
        allowed = sorted(known for known, at in self._server.routes if at == path)
        if allowed:
            reason = f"{path} allows {', '.join(allowed)}, not {method}"
            response = error_response(HTTPStatus.METHOD_NOT_ALLOWED, reason)
            return response._replace(headers=(("Allow", ", ".join(allowed)),))
        paths = ", ".join(sorted({at for _, at in self._server.routes}))
        return error_response(HTTPStatus.NOT_FOUND, f"no such path; the paths are {paths}")

    async def _respond(self, handler: Handler, body: bytes, what: str) -> None:
        try:
            response = await handler(body)
        except Exception:
            log.exception("control socket: %s failed, the client got status 500", what)
            response = error_response(
                HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; the daemon's log has the cause"
            )
        self._answering = False
        if self._transport.is_closing():
            return
        self._answer(response)

    def _next(self) -> None:
        """After an answer: waits for the client's next request, or closes the connection."""
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            self._arm()
        else:
            self._arm()  # a limit for reading the answer
            self._transport.close()

    def _refuse(self, response: Response) -> None:
        """Answers a request that is not read to its end, and closes the connection."""
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._send(response)
        self._transport.close()

    # --- answers

    def _send(self, response: Response) -> None:
        headers = [
            ("Content-Type", response.content_type),
            ("Content-Length", str(len(response.body))),
            *response.headers,
        ]
        self._write(h11.Response(status_code=response.status, headers=headers))
        if self._request is None or self._request.method != b"HEAD":
            self._write(h11.Data(data=response.body))
        self._write(h11.EndOfMessage())

    def _write(self, event: Any) -> None:
        data = self._http.send(event)
        if data:
            self._transport.write(data)

    # --- streams

    def _begin_stream(self) -> None:
        if not self._server.admit_stream(self):
            reason = f"{MAX_STREAMS} streams are open already"
            self._answer(error_response(HTTPStatus.SERVICE_UNAVAILABLE, reason))
            return
        self._answering = self._streaming = True
        self._transport.resume_reading()  # to see the end of the connection
        headers = [("Content-Type", "text/event-stream"), ("Cache-Control", "no-store")]
        self._write(h11.Response(status_code=HTTPStatus.OK, headers=headers))
        self.send_chunk(self._server.greeting)

    def send_chunk(self, chunk: bytes) -> None:
        """Sends a part of the stream, or closes it if its backlog is too large."""
        if self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() > MAX_BACKLOG_BYTES:
            log.warning(
                "control socket: closed a stream of events, because its client left %d KiB unread",
                MAX_BACKLOG_BYTES // 1024,
            )
            self._server.forget(self)
            self._transport.abort()
            return
        self._write(h11.Data(data=chunk))

    def end(self) -> None:
        """Ends a stream or an idle connection, when the server closes."""
        if self._streaming:
            self._write(h11.EndOfMessage())
        if self._streaming or not self._answering:
            self._transport.close()

    # --- the deadline

    def _arm(self) -> None:
        self._disarm()
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(REQUEST_SECONDS, self._transport.abort)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
