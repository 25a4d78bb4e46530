# SPDX-License-Identifier: BSD-3-Clause
"""Starts a workload between two hosts and collects its result."""

import json
import selectors
import subprocess
import sys
import time
from bisect import bisect_left
from typing import Any, Generic, TypeVar

import msgspec

from mptcpd_ebpf.lab.errors import LabError
from mptcpd_ebpf.lab.host import Host
from mptcpd_ebpf.lab.live import LivePath
from mptcpd_ebpf.lab.traffic.results import (
    AnyResult,
    BulkResult,
    Message,
    RequestResponseResult,
    ShortConnectionsResult,
    StreamResult,
)
from mptcpd_ebpf.lab.traffic.workloads import (
    AnyWorkload,
    Bulk,
    EndTask,
    RequestResponse,
    ShortConnections,
    Stream,
    check,
)

_START_S = 30.0
R = TypeVar("R", bound=AnyResult)


class _Process:
    """The process of one end; its output is lines of JSON."""

    def __init__(self, host: Host, task: EndTask) -> None:
        self.process = host.popen(
            [
                sys.executable,
                "-m",
                "mptcpd_ebpf.lab.traffic.process",
                msgspec.json.encode(task).decode(),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def line(self, timeout_s: float) -> dict[str, Any]:
        """The next line; raises LabError if there is none in time, or if it reports a failure."""
        stdout = self.process.stdout
        assert stdout is not None
        if stdout.closed:
            raise LabError("traffic: it was killed and has no result")
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            if not selector.select(timeout_s):
                raise LabError(f"traffic: no output of a process after {timeout_s:g} s")
        text = stdout.readline()
        if not text:
            raise LabError(f"traffic: a process ended with status {self.process.wait()}")
        record: dict[str, Any] = json.loads(text)
        if "failed" in record:
            raise LabError(f"traffic: {record['failed']}")
        return record

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class Running(Generic[R]):
    """A running workload."""

    def __init__(self, workload: AnyWorkload, client: Host, server: Host, path: LivePath) -> None:
        check(workload)
        self.workload = workload
        local, remote = _addresses(workload, path)
        # The destination of a join may be any address of the server, so it listens on all.
        wildcard = "::" if ":" in remote else "0.0.0.0"
        self._server = _Process(server, EndTask(workload=workload, local=(wildcard, 0)))
        try:
            self.server_address = (remote, int(self._server.line(_START_S)["port"]))
            """The destination of the first subflow."""
            task = EndTask(workload=workload, local=(local, 0), remote=self.server_address)
            self._client = _Process(client, task)
        except BaseException:
            self._server.end()
            raise
        try:
            hello = self._client.line(_START_S)
        except BaseException:
            self.kill()
            raise
        self.local: tuple[str, int] = tuple(hello["local"])
        """The client's address and port (port 0: many connections)."""
        self.token: int | None = hello["token"]
        """The client's local token, None for TCP."""
        self.started_at = time.monotonic_ns()
        self._result: R | None = None

    def stop(self, timeout_s: float = 60.0) -> R:
        """Stops sending, waits for data in flight (`drain_s`), and returns the result."""
        if self._result is None:
            # Only the sender is stopped: the other end reads until everything has arrived.
            down = isinstance(self.workload, Bulk | Stream) and self.workload.direction == "down"
            (self._server if down else self._client).stop()
        return self.result(timeout_s, allow_error=False)

    def result(self, timeout_s: float = 120.0, *, allow_error: bool = False) -> R:
        """Waits for the workload's own end and returns the result.

        Raises LabError if a connection ended early (unless `allow_error`: then the reason is in
        the result's `error`) or if the workload does not end within `timeout_s`.
        """
        if self._result is None:
            try:
                client = self._client.line(timeout_s)
                if not isinstance(self.workload, Bulk | Stream):
                    self._server.stop()
                server = self._server.line(_START_S)
            finally:
                self.kill()
            self._result = _merged(self.workload, self.token, client, server)  # type: ignore[assignment]
        assert self._result is not None
        if self._result.error is not None and not allow_error:
            raise LabError(f"traffic: {self._result.error}")
        return self._result

    @property
    def pid(self) -> int:
        """The client's process."""
        return self._client.process.pid

    def kill(self) -> None:
        """Ends both processes at once, without a result."""
        self._client.end()
        self._server.end()


def _addresses(workload: AnyWorkload, path: LivePath) -> tuple[str, str]:
    if workload.family == "6":
        if path.client_ip6 is None or path.server_ip6 is None:
            raise LabError('traffic: the lab has no IPv6: Lab(ip="both") or ip="6"')
        return path.client_ip6, path.server_ip6
    if workload.family == "4" and ":" in path.client_ip:
        raise LabError('traffic: the lab has no IPv4: Lab(ip="both") or ip="4"')
    return path.client_ip, path.server_ip


def _merged(
    workload: AnyWorkload, token: int | None, client: dict[str, Any], server: dict[str, Any]
) -> AnyResult:
    error = client["error"] or server.get("error")
    if isinstance(workload, RequestResponse | ShortConnections):
        messages = [Message(*row) for row in client["messages"]]
        kind = (
            RequestResponseResult
            if isinstance(workload, RequestResponse)
            else ShortConnectionsResult
        )
        return kind(token=token, error=error, messages=messages)
    sender, receiver = (client, server) if workload.direction == "up" else (server, client)
    arrivals = [(at, total) for at, total in receiver["arrivals"]]
    if isinstance(workload, Bulk):
        return BulkResult(
            token=token, error=error, started_at=sender["started_at"], arrivals=arrivals
        )
    # Message k has arrived when the first (k + 1) · size bytes have.
    totals = [total for _, total in arrivals]
    messages = []
    for number, sent_at in enumerate(sender["sent"]):
        row = bisect_left(totals, (number + 1) * workload.size)
        arrived = arrivals[row][0] if row < len(arrivals) else None
        messages.append(Message(sent_at, None if arrived is None else arrived - sent_at))
    return StreamResult(token=token, error=error, messages=messages)
