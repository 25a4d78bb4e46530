# SPDX-License-Identifier: BSD-3-Clause
"""The control socket: its answers, and its limits against clients that misbehave.

The server runs in the event loop of this process on a real socket; blocking clients run in threads.
"""

import asyncio
import json
import os
import socket
import stat
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mptcpd_ebpf.config.settings import ConfigError, Metrics
from mptcpd_ebpf.config.yaml_document import Mistake
from mptcpd_ebpf.control import client, http, metrics, operator_commands, scrapes
from mptcpd_ebpf.control import server as server_module
from mptcpd_ebpf.control.schema import (
    CarriedOut,
    Connections,
    DecisionView,
    Endpoints,
    LimitsView,
    Paths,
    PathSummary,
    Status,
    Story,
)
from mptcpd_ebpf.control.server import ControlServer
from mptcpd_ebpf.control.socket_file import SocketFile
from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.commands import Cause, Decision, FlushEndpoints, SetBackup
from mptcpd_ebpf.core.endpoints import Endpoint, Limits
from mptcpd_ebpf.core.events import ConnectionClosed
from mptcpd_ebpf.core.recording import Record
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure
from tests.waiting import until_async

EVENTS = "/v1/events"
OFF = Metrics()
FLUSH = {"command": "FlushEndpoints"}
ON = Metrics(enabled=True)
DECISION = Decision(
    id=7,
    at=1,
    plugin="adaptive",
    cause=Cause(seq=9, event="AlarmRaised", rule="alarm"),
    command=SetBackup(
        reason="too slow",
        token=0x1A2B3C4D,
        local=SockAddr("10.0.0.1", 5),
        remote=SockAddr("2001:db8::1", 6),
        backup=True,
    ),
)


def record(event: ConnectionClosed, *decisions: Decision) -> Record:
    return Record(seq=1, now=1, event=event, decisions=list(decisions))


AWAY: PathSummary = {
    "interface": "fibre",
    "local_ip": "10.0.1.2",
    "remote_ip": "10.0.9.1",
    "state": "away",
    "reason": "silent",
    "since": 3.5,
    "plugin": "adaptive",
    "probes_answered": 3,
    "probes_needed": 10,
}


class Source:
    """The answers of a daemon; `asked` records the reads of connections."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.paused = False
        self.hold = asyncio.Event()
        self.hold.set()

    async def connections(self) -> Connections:
        self.asked.append("connections")
        await self.hold.wait()
        return {"schema": 1, "connections": []}

    async def paths(self) -> Paths:
        return {"schema": 1, "paths": []}

    def status(self) -> Status:
        return {
            "schema": 1,
            "version": "0",
            "pid": 1,
            "netns": 2,
            "started_at": 3.5,
            "paused": self.paused,
            "dry_run": False,
            "pending_restart": [],
            "path_manager": None,
            "plugins": [],
            "probes": {"backend": "netlink", "reason": "asked for", "lost": {"ring": 4}},
            "new_connections": {
                "steers": True,
                "reason": "attached",
                "steered": [
                    {
                        "family": "IPv4",
                        "interface": "lte",
                        "local": "10.2.1.2",
                        "since": 4.0,
                        "reason": "no route",
                    }
                ],
                "count": 7,
            },
            "connections": 0,
            "subflows": 0,
            "events_lost": {"mptcp_pm": 1},
            "decisions": 5,
            "decisions_refused": 1,
            "paths": [AWAY, {**AWAY, "remote_ip": "10.0.9.2"}],
            "journal": {"path": "/j.db", "bytes": 4096, "records_dropped": 6, "problem": None},
            "log_messages_dropped": 0,
        }

    def decisions(self) -> list[DecisionView]:
        return []

    async def story(self) -> Story:
        return {"schema": 1, "entries": []}

    async def endpoints(self) -> Endpoints:
        return operator_commands.endpoints([Endpoint(ip="10.0.0.1", address_id=3, if_index=1)])

    async def limits(self) -> LimitsView:
        return operator_commands.limits(Limits(subflows=2, add_addr_accepted=1))

    async def carry_out(self, fields: dict[str, Any]) -> CarriedOut:
        if fields != FLUSH:
            raise ValueError("fields are wrong")
        return operator_commands.carried_out(FlushEndpoints(reason="test"), "daemon", 0, "")

    async def pause(self) -> None:
        self.paused = True

    async def resume(self) -> None:
        self.paused = False

    async def reload(self) -> None:
        raise ConfigError([Mistake("F", 1, 2, "key", "is wrong")])


Served = Callable[[str, Source, ControlServer], Coroutine[Any, Any, None]]


def serve(path: Path, use: Served, settings: Metrics = OFF) -> None:
    """Runs `use` while a server listens on `path`."""

    async def run() -> None:
        source = Source()
        server = ControlServer(source, settings)
        await server.start(str(path))
        try:
            await use(str(path), source, server)
        finally:
            server.close()

    asyncio.run(run())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


async def ask(path: str, request: bytes) -> bytes:
    """Everything that the server answers to raw bytes until it closes the connection."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(request)
    writer.write_eof()
    try:
        return await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()


def head_and_json(answer: bytes) -> tuple[bytes, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.partition(b"\r\n")[0], json.loads(body)


# --- requests


def test_the_client_gets_the_answers_of_the_source(path: Path) -> None:
    async def use(path: str, source: Source, _server: ControlServer) -> None:
        get, post = client.get, client.post
        assert await asyncio.to_thread(get, path, "/v1/connections") == await source.connections()
        assert await asyncio.to_thread(get, path, "/v1/status") == source.status()
        assert await asyncio.to_thread(get, path, "/v1/decisions") == {
            "schema": 1,
            "decisions": [],
        }
        assert (await asyncio.to_thread(post, path, "/v1/pause"))["paused"] is True
        assert (await asyncio.to_thread(post, path, "/v1/resume"))["paused"] is False

    serve(path, use)


def test_an_operator_reads_the_table_and_changes_it(path: Path) -> None:
    async def use(path: str, source: Source, _server: ControlServer) -> None:
        get, post = client.get, client.post
        assert await asyncio.to_thread(get, path, "/v1/endpoints") == await source.endpoints()
        assert await asyncio.to_thread(get, path, "/v1/limits") == await source.limits()
        for _ in range(2):  # each request has a body of its own
            done = await asyncio.to_thread(post, path, "/v1/command", FLUSH)
            assert done == await source.carry_out(FLUSH)
        request = b"POST /v1/command HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
        two = request % (28, b'{"command":"FlushEndpoints"}') + request % (2, b"{}")
        good, _, bad = (await ask(path, two)).partition(b"HTTP/1.1 400")
        assert b'"action":"flush endpoints"' in good
        assert b"fields are wrong" in bad

    serve(path, use)


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[]", b"{}", b"\xff"])
def test_a_body_that_is_not_a_command_is_refused_and_exits_64(path: Path, body: bytes) -> None:
    async def use(path: str, _source: Source, _server: ControlServer) -> None:
        head = b"POST /v1/command HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        status, answer = head_and_json(await ask(path, head % len(body) + body))
        assert b"400" in status
        assert answer["error"]
        with pytest.raises(Failure, match="the daemon refused: ") as failure:
            await asyncio.to_thread(client.post, path, "/v1/command", {"command": "x"})
        assert failure.value.exit_code is ExitCode.USAGE

    serve(path, use)


def test_the_client_reads_the_stream_until_it_ends(path: Path) -> None:
    async def use(path: str, _source: Source, server: ControlServer) -> None:
        read = asyncio.create_task(asyncio.to_thread(lambda: [*client.stream(path, EVENTS)]))
        await until_async(lambda: server._http.has_streams, "the stream is open")
        server.publish(record(ConnectionClosed(token=5), DECISION))
        server.close()
        (hello, greeting), (event, closed), (decision, made) = await asyncio.wait_for(read, 20)
        assert (hello, event, decision) == ("hello", "event", "decision")
        assert greeting == {"schema": 1}
        assert closed == {"event": "ConnectionClosed", "token": "00000005"}
        assert made["id"] == DECISION.id

    serve(path, use)


def test_a_refused_reload_lists_every_mistake_and_exits_78(path: Path) -> None:
    async def use(path: str, _source: Source, _server: ControlServer) -> None:
        with pytest.raises(Failure, match="F:1:2: key: is wrong") as caught:
            await asyncio.to_thread(client.post, path, "/v1/reload")
        assert caught.value.exit_code is ExitCode.CONFIG

    serve(path, use)


def test_several_requests_on_one_connection(path: Path) -> None:
    async def use(path: str, source: Source, _server: ControlServer) -> None:
        two = b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n" * 2
        assert (await ask(path, two)).count(b"HTTP/1.1 200 ") == 2
        old = await ask(path, b"GET /v1/status HTTP/1.0\r\n\r\n")
        assert head_and_json(old) == (b"HTTP/1.1 200 ", source.status())

    serve(path, use)


def test_a_half_closed_client_still_gets_its_answer(path: Path) -> None:
    async def use(path: str, source: Source, _server: ControlServer) -> None:
        source.hold.clear()
        request = asyncio.create_task(ask(path, b"GET /v1/connections HTTP/1.1\r\nHost: x\r\n\r\n"))
        await until_async(lambda: source.asked, "the request is read")
        source.hold.set()
        assert head_and_json(await request)[0] == b"HTTP/1.1 200 "

    serve(path, use)


@pytest.mark.parametrize(
    ("request_line", "headers", "body", "status", "reason"),
    [
        (b"GET /nothing HTTP/1.1", b"", b"", b"404", "no such path; the paths are /v1/command"),
        (b"GET /metrics HTTP/1.1", b"", b"", b"404", "no such path"),
        (b"GET /v1/pause HTTP/1.1", b"", b"", b"405", "/v1/pause allows POST, not GET"),
        (b"POST /v1/status HTTP/1.1", b"", b"", b"405", "allows GET, not POST"),
        (b"nonsense", b"", b"", b"400", "not HTTP"),
        (b"POST /v1/pause HTTP/1.1", b"Content-Length: 70000", b"x" * 70_000, b"413", "65536"),
    ],
)
def test_a_bad_request_is_answered_with_the_reason(
    path: Path, request_line: bytes, headers: bytes, body: bytes, status: bytes, reason: str
) -> None:
    request = b"\r\n".join(filter(None, (request_line, b"Host: x", headers)))

    async def use(path: str, source: Source, _server: ControlServer) -> None:
        answer = await ask(path, request + b"\r\n\r\n" + body)
        line, refusal = head_and_json(answer)
        assert line.split(b" ")[1] == status
        assert reason in refusal["error"]
        assert not source.paused

    serve(path, use)


def test_a_head_without_end_is_refused(path: Path) -> None:
    async def use(path: str, _source: Source, _server: ControlServer) -> None:
        endless = b"GET /v1/status HTTP/1.1\r\nX: " + b"x" * http.MAX_HEAD_BYTES
        assert head_and_json(await ask(path, endless))[0].split(b" ")[1] == b"431"

    serve(path, use)


def test_a_source_that_raises_answers_500_and_the_server_continues(path: Path) -> None:
    async def use(path: str, source: Source, _server: ControlServer) -> None:
        async def broken() -> Connections:
            raise ZeroDivisionError

        source.connections = broken  # type: ignore[method-assign]
        with pytest.raises(Failure, match="the daemon's log has the cause"):
            await asyncio.to_thread(client.get, path, "/v1/connections")
        assert await asyncio.to_thread(client.get, path, "/v1/status") == source.status()

    serve(path, use)


# --- streams


async def stream(path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A stream of events after its greeting."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
    head = await asyncio.wait_for(reader.readuntil(b'event: hello\ndata: {"schema":1}\n\n'), 10)
    assert b"text/event-stream" in head
    return reader, writer


async def event(reader: asyncio.StreamReader, name: str) -> Any:
    await asyncio.wait_for(reader.readuntil(f"event: {name}\ndata: ".encode()), 10)
    return json.loads(await reader.readline())


def test_a_stream_sends_events_and_decisions_at_once(path: Path) -> None:
    async def use(path: str, _source: Source, server: ControlServer) -> None:
        reader, writer = await stream(path)
        server.publish(record(ConnectionClosed(token=0x1A2B3C4D), DECISION))
        assert await event(reader, "event") == {"event": "ConnectionClosed", "token": "1a2b3c4d"}
        sent = await event(reader, "decision")
        assert sent["action"] == "SetBackup"
        assert sent["subflow"] == "10.0.0.1:5 → [2001:db8::1]:6"
        assert sent["reason"] == "too slow"
        server.close()
        assert (await asyncio.wait_for(reader.read(), 10)).endswith(b"0\r\n\r\n")
        writer.close()

    serve(path, use)


def test_the_stream_of_a_slow_client_is_closed_and_the_others_are_not(path: Path) -> None:
    async def use(path: str, _source: Source, server: ControlServer) -> None:
        _, slow_writer = await stream(path)
        slow_writer.transport.pause_reading()  # type: ignore[attr-defined]
        quick, quick_writer = await stream(path)
        count = 0
        while server._http.has_streams and len(server._http._streams) == 2:
            server.publish(record(ConnectionClosed(token=2), DECISION))
            count += 1
            await event(quick, "decision")
            assert count < 100_000
        assert len(server._http._streams) == 1
        server.publish(record(ConnectionClosed(token=1)))
        assert await event(quick, "event") == {"event": "ConnectionClosed", "token": "00000001"}
        slow_writer.close()
        quick_writer.close()

    serve(path, use)


def test_streams_and_connections_are_bounded(path: Path) -> None:
    async def use(path: str, source: Source, _server: ControlServer) -> None:
        streams = [await stream(path) for _ in range(http.MAX_STREAMS)]
        refused = await ask(path, b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
        assert head_and_json(refused)[0].split()[1] == b"503"
        source.hold.clear()
        busy = [
            await asyncio.open_unix_connection(path)
            for _ in range(http.MAX_CLIENTS - http.MAX_STREAMS)
        ]
        for _, writer in busy:
            writer.write(b"GET /v1/connections HTTP/1.1\r\nHost: x\r\n\r\n")
        await until_async(lambda: len(source.asked) == len(busy), "all requests are read")
        reader, writer = await asyncio.open_unix_connection(path)
        answer = await asyncio.wait_for(reader.read(), 10)
        assert head_and_json(answer)[1] == {
            "error": f"{http.MAX_CLIENTS} connections are open already"
        }
        for _, each in [*streams, *busy, (reader, writer)]:
            each.close()

    serve(path, use)


def test_a_new_client_takes_the_place_of_the_one_that_has_waited_longest(path: Path) -> None:
    async def use(path: str, source: Source, _server: ControlServer) -> None:
        idle = [await asyncio.open_unix_connection(path) for _ in range(http.MAX_CLIENTS)]
        assert await asyncio.to_thread(client.get, path, "/v1/status") == source.status()
        assert await asyncio.wait_for(idle[0][0].read(), 10) == b""
        for _, writer in idle:
            writer.close()

    serve(path, use)


def test_pipelined_requests_wait_while_their_answers_are_not_read(path: Path) -> None:
    requests = 20_000

    async def use(path: str, _source: Source, server: ControlServer) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" * requests)
        await until_async(lambda: server._http._clients, "the client is connected")
        (served,) = server._http._clients
        await until_async(lambda: served._unread, "the answers fill the socket")
        buffered = served._transport.get_write_buffer_size()
        received = len(served._http.trailing_data[0])
        assert buffered + received < 1024 * 1024
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        for _ in range(requests):
            await asyncio.wait_for(reader.readuntil(b"HTTP/1.1 404"), 10)
        writer.close()

    serve(path, use)


def test_one_client_gets_one_answer_in_a_turn_of_the_loop(path: Path) -> None:
    """A loop that answers a thousand pipelined requests at once would do nothing else meanwhile."""

    async def use(path: str, _source: Source, server: ControlServer) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        await until_async(lambda: server._http._clients, "the client is connected")
        (served,) = server._http._clients
        sent: list[int] = []
        send = served._send
        turn = 0

        def count(response: http.Response) -> None:
            sent.append(turn)
            send(response)

        served._send = count  # type: ignore[method-assign]
        while len(sent) < 50:
            turn += 1
            await asyncio.sleep(0)
        assert len(set(sent)) == len(sent)
        writer.close()
        assert await asyncio.wait_for(reader.read(12), 10) == b"HTTP/1.1 404"

    serve(path, use)


def test_deeply_nested_json_is_refused(path: Path) -> None:
    async def use(path: str, _source: Source, _server: ControlServer) -> None:
        body = b'{"a":' + b"[" * 60_000
        head = b"POST /v1/command HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        status, answer = head_and_json(await ask(path, head % len(body) + body))
        assert b"400" in status
        assert answer["error"] == "JSON is nested too deep"

    serve(path, use)


def test_a_client_that_does_not_finish_its_request_is_disconnected(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "REQUEST_SECONDS", 0.05)

    async def use(path: str, _source: Source, _server: ControlServer) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET /v1/sta")
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()

    serve(path, use)


@given(st.binary(max_size=200) | st.lists(st.sampled_from(
    [b"GET ", b"POST ", b"/v1/pause", b" HTTP/1.1\r\n", b"Host: x\r\n", b"\r\n", b"\x00", b"a" * 50,
     b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n",
     b"HEAD ", b"/v1/status", b"ffffffffffffffff\r\n", b"Upgrade: x\r\n", b"CONNECT "]),
    max_size=12).map(b"".join))  # fmt: skip
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_after_any_bytes_the_server_answers_the_next_client(path: Path, data: bytes) -> None:
    async def use(path: str, source: Source, _server: ControlServer) -> None:
        await ask(path, data)
        answer = await ask(path, b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
        assert head_and_json(answer)[1] == source.status()

    serve(path, use)


# --- metrics


def test_metrics_are_served_when_enabled(path: Path) -> None:
    async def use(path: str, _source: Source, _server: ControlServer) -> None:
        answer = (await ask(path, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")).decode()
        assert metrics.CONTENT_TYPE in answer
        assert 'mptcpd_ebpf_event_overflows_total{source="mptcp_pm"} 1.0' in answer
        assert 'mptcpd_ebpf_probe_records_lost_total{cause="ring"} 4.0' in answer
        assert "mptcpd_ebpf_decisions_total 5.0" in answer
        assert 'mptcpd_ebpf_steering{family="IPv4",interface="lte"} 1.0' in answer
        assert "mptcpd_ebpf_connections_steered_total 7.0" in answer
        assert 'mptcpd_ebpf_paths_not_active{interface="fibre",state="away"} 2.0' in answer
        assert "mptcpd_ebpf_journal_size_bytes 4096.0" in answer
        assert "mptcpd_ebpf_journal_records_dropped_total 6.0" in answer

    serve(path, use, ON)


@pytest.fixture
def port() -> int:
    """A TCP port of 127.0.0.1 that is free."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        found: int = free.getsockname()[1]
        return found


def test_idle_clients_of_the_metrics_address_keep_nobody_from_the_control_socket(
    path: Path, port: int
) -> None:
    async def use(path: str, source: Source, server: ControlServer) -> None:
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(70)]
        assert await asyncio.to_thread(client.get, path, "/v1/status") == source.status()
        assert len(server._exposed._clients) <= server_module.MAX_SCRAPERS
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 200")
        for _, each in [*idle, (reader, writer)]:
            each.close()

    serve(path, use, Metrics(enabled=True, listen=f"127.0.0.1:{port}"))


def test_scrapes_of_one_second_are_one_measurement(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(path: str, source: Source, server: ControlServer) -> None:
        request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
        monkeypatch.setattr(scrapes, "MAX_AGE_SECONDS", 1e6)
        source.hold.clear()
        waiting = [asyncio.create_task(ask(path, request)) for _ in range(5)]
        await until_async(lambda: source.asked, "the first request is read")
        source.hold.set()
        answers = await asyncio.gather(*waiting)
        assert all(b"mptcpd_ebpf_decisions_total" in answer for answer in answers)
        await ask(path, request)
        assert source.asked == ["connections"]
        server._scrapes._until = 0  # as if the time had passed
        await ask(path, request)
        assert source.asked == ["connections"] * 2

    serve(path, use, ON)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("[::1]:9464", 200),
        ("::1", 200),
        (socket.gethostname().upper(), 200),
        ("Metrics.example:9464", 200),
        ("evil.example", 421),
        (f"{socket.gethostname()}.evil.example", 421),
        ("", 421),
    ],
)
def test_a_name_that_is_not_this_hosts_is_refused(
    path: Path, port: int, host: str, status: int
) -> None:
    async def use(_path: str, _source: Source, _server: ControlServer) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"GET /metrics HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        answer = await asyncio.wait_for(reader.read(), 10)
        assert int(answer.split()[1]) == status
        writer.close()

    listen = f"127.0.0.1:{port}"
    serve(path, use, Metrics(enabled=True, listen=listen, hosts=["metrics.EXAMPLE"]))


def test_over_tcp_only_metrics_are_served(path: Path, port: int) -> None:

    async def use(_path: str, source: Source, _server: ControlServer) -> None:
        for target, status in ((b"GET /metrics", b"200"), (b"POST /v1/pause", b"404")):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(target + b" HTTP/1.1\r\nHost: localhost:9\r\nConnection: close\r\n\r\n")
            answer = await asyncio.wait_for(reader.read(), 10)
            assert answer.split(b" ")[1] == status
            writer.close()
        assert not source.paused

    serve(path, use, Metrics(enabled=True, listen=f"127.0.0.1:{port}"))


def test_a_metrics_address_in_use_is_named_and_leaves_no_socket(path: Path) -> None:
    async def use(*_: Any) -> None:
        raise AssertionError("must not start")

    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(Failure, match=f"metrics.listen: cannot listen on {listen}"):
            serve(path, use, Metrics(enabled=True, listen=listen))
    assert not path.exists()


# --- the file of the socket


def test_only_the_owner_can_use_the_socket_and_the_server_removes_it(path: Path) -> None:
    async def use(path: str, _source: Source, _server: ControlServer) -> None:
        mode = os.stat(path).st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600

    before = os.umask(0)
    try:
        serve(path, use)
    finally:
        assert os.umask(before) == 0
    assert not path.exists()


def test_the_socket_of_a_killed_daemon_is_replaced_that_of_a_running_one_is_not(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    taken = SocketFile(str(path))
    with pytest.raises(Failure, match=f"in use by process {os.getpid()}") as caught:
        SocketFile(str(path))
    assert caught.value.exit_code is ExitCode.HELD
    assert path.exists()
    taken.close()
    assert not path.exists()


def test_a_socket_in_use_that_does_not_answer_is_kept(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as waiting:
        silent.bind(str(path))
        silent.listen(0)
        waiting.connect(str(path))  # fills the backlog
        with pytest.raises(Failure, match="in use by a process that does not answer") as caught:
            SocketFile(str(path))
        assert caught.value.exit_code is ExitCode.HELD
        assert path.exists()


def test_a_file_that_is_not_a_socket_is_left_as_it_is(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(Failure, match="the file exists and is not a socket"):
        SocketFile(str(path))
    assert path.read_text() == "precious"


def test_a_file_that_replaced_the_socket_is_not_removed(path: Path) -> None:
    ours = SocketFile(str(path))
    path.unlink()
    path.write_text("new")
    ours.close()
    assert path.read_text() == "new"


def test_unusable_paths_are_named_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="create its directory first"):
        SocketFile(str(tmp_path / "none" / "x.sock"))
    with pytest.raises(Failure, match="the path of a Unix socket can have 107") as caught:
        SocketFile(str(tmp_path / ("x" * 120)))
    assert caught.value.exit_code is ExitCode.CONFIG


# --- the client


def test_the_client_names_what_is_missing(path: Path) -> None:
    with pytest.raises(Failure, match="does not exist; start 'mptcpd-ebpf daemon'") as caught:
        client.get(str(path), "/v1/status")
    assert caught.value.exit_code is ExitCode.NO_DAEMON
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    with pytest.raises(Failure, match="nothing listens on") as caught:
        client.get(str(path), "/v1/status")
    assert caught.value.exit_code is ExitCode.NO_DAEMON


@pytest.mark.parametrize("answer", [b"", b"220 mail ready\r\n", b"HTTP/1.1 200 OK\r\n\r\n<html>"])
def test_the_client_names_a_program_that_is_not_the_daemon(path: Path, answer: bytes) -> None:
    async def run() -> None:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            writer.close()

        async with await asyncio.start_unix_server(talk, str(path)):
            with pytest.raises(Failure, match="does not answer like the daemon") as caught:
                await asyncio.to_thread(client.get, str(path), "/v1/status")
            assert caught.value.exit_code is ExitCode.NO_DAEMON

    asyncio.run(run())


def test_the_client_stops_waiting_for_a_daemon_that_does_not_answer(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "TIMEOUT_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        with pytest.raises(Failure, match="did not answer") as caught:
            client.get(str(path), "/v1/status")
    assert caught.value.exit_code is ExitCode.NO_DAEMON


def test_the_default_path_names_the_network_namespace() -> None:
    inode = os.stat("/proc/self/ns/net").st_ino
    assert client.default_path() == f"/run/mptcpd-ebpf/{inode}.sock"
