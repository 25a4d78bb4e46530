# SPDX-License-Identifier: BSD-3-Clause
"""Requests and responses: on one connection at fixed times, or on many short connections."""

import socket
from typing import Any

from mptcpd_ebpf.lab.traffic.sockets import (
    READ,
    StopRequested,
    now,
    open_socket,
    send_some,
    set_options,
    wait,
)
from mptcpd_ebpf.lab.traffic.workloads import Address, RequestResponse, ShortConnections


class _RequestClient:
    """The client's side of one connection: the requests and their responses."""

    def __init__(self, connection: socket.socket, workload: RequestResponse) -> None:
        self.connection = connection
        self.workload = workload
        self.started = now()
        self.interval = round(workload.interval_ms * 1e6)
        self.sent: list[int] = []
        self.latencies: list[int] = []
        self.received = 0
        self.pending = bytearray()
        self.give_up_at: int | None = None
        """Set once no more requests are to be sent."""

    def run(self) -> None:
        while not self._finished():
            due = self.give_up_at or self.started + len(self.sent) * self.interval
            readable = self._wait(due)
            if self.give_up_at is not None and now() >= self.give_up_at:
                return
            if self.give_up_at is None and now() >= due:
                self.sent.append(now())
                self.pending += bytes(self.workload.size)
            if self.pending:
                send_some(self.connection, self.pending)
            if readable:
                self._receive()

    def _finished(self) -> bool:
        if self.give_up_at is None and len(self.sent) == self.workload.count:
            self._stop_sending()
        return self.give_up_at is not None and len(self.latencies) == len(self.sent)

    def _stop_sending(self) -> None:
        if self.give_up_at is None:
            self.give_up_at = now() + round(self.workload.drain_s * 1e9)

    def _wait(self, due: int) -> bool:
        writes = [self.connection] if self.pending else []
        stoppable = self.give_up_at is None
        try:
            return bool(wait([self.connection], writes, due, stoppable=stoppable)[0])
        except StopRequested:
            self._stop_sending()
            return False

    def _receive(self) -> None:
        data = self.connection.recv(READ)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        self.received += len(data)
        arrived = now()
        while (len(self.latencies) + 1) * self.workload.response_size <= self.received:
            self.latencies.append(arrived - self.sent[len(self.latencies)])


def make_requests(connection: socket.socket, workload: RequestResponse) -> dict[str, Any]:
    """Sends requests at fixed times and notes when each response was complete."""
    connection.setblocking(False)
    client = _RequestClient(connection, workload)
    error = None
    try:
        client.run()
    except OSError as failure:
        error = str(failure)
    missing: list[int | None] = [None] * (len(client.sent) - len(client.latencies))
    messages = list(zip(client.sent, [*client.latencies, *missing], strict=True))
    return {"messages": messages, "error": error}


def answer_all(listener: socket.socket, workload: RequestResponse | ShortConnections) -> None:
    """Answers requests on any number of connections until stopped."""
    received: dict[socket.socket, int] = {}
    owed: dict[socket.socket, int] = {}
    listener.setblocking(False)
    while True:
        writes = [connection for connection, left in owed.items() if left]
        try:
            readable, writable = wait([listener, *received], writes, None)
        except StopRequested:
            return
        if listener in readable:
            readable.remove(listener)
            accepted, _ = listener.accept()
            set_options(accepted, workload)
            accepted.setblocking(False)
            received[accepted] = owed[accepted] = 0
        for connection in dict.fromkeys([*readable, *writable]):
            try:
                if connection in readable:
                    data = connection.recv(READ)
                    if not data:
                        raise ConnectionResetError
                    before = received[connection] // workload.size
                    received[connection] += len(data)
                    whole = received[connection] // workload.size - before
                    owed[connection] += whole * workload.response_size
                if owed[connection]:
                    owed[connection] -= connection.send(bytes(min(owed[connection], READ)))
            except BlockingIOError:
                continue
            except OSError:
                del received[connection], owed[connection]
                connection.close()


class _ShortConnection:
    """One short connection, from its start to the complete response."""

    def __init__(self, workload: ShortConnections, local: Address, remote: Address) -> None:
        """Starts to connect.  Raises OSError if that fails."""
        self.give_up_at = now() + round(workload.drain_s * 1e9)
        self.pending = bytearray(workload.size)
        self.missing = workload.response_size
        self.connection = open_socket(workload, local)
        try:
            self.connection.setblocking(False)
            self.connection.connect(remote)
        except BlockingIOError:
            return
        except OSError:
            self.connection.close()
            raise

    def go_on(self, *, readable: bool, writable: bool) -> bool:
        """Sends and reads what it can; True once the response is complete.  Raises OSError."""
        if writable and self.pending:
            send_some(self.connection, self.pending)
        if readable:
            data = self.connection.recv(READ)
            if not data:
                raise ConnectionResetError("the server closed the connection")
            self.missing -= len(data)
        return self.missing <= 0


class _ShortConnectionsClient:
    """Many short connections, `parallel` at a time; one that fails is an unanswered message."""

    def __init__(self, workload: ShortConnections, local: Address, remote: Address) -> None:
        self.workload = workload
        self.ends = (local, remote)
        self.messages: list[tuple[int, int | None]] = []
        self.live: dict[socket.socket, tuple[int, _ShortConnection]] = {}  # started at
        self.left = workload.count

    def run(self) -> None:
        stopped = False
        while self.left or self.live:
            while self.left and len(self.live) < self.workload.parallel:
                self._begin()
            until = min((short.give_up_at for _, short in self.live.values()), default=now())
            sending = [one for one, (_, short) in self.live.items() if short.pending]
            try:
                readable, writable = wait(self.live, sending, until, stoppable=not stopped)
            except StopRequested:
                stopped, self.left = True, 0
                continue
            for connection in dict.fromkeys([*readable, *writable]):
                self._go_on(connection, connection in readable, connection in writable)
            late = [one for one, (_, short) in self.live.items() if short.give_up_at <= now()]
            for connection in late:
                self._end(connection, answered=False)

    def _begin(self) -> None:
        self.left -= 1
        started = now()
        try:
            short = _ShortConnection(self.workload, *self.ends)
        except OSError:
            self.messages.append((started, None))
        else:
            self.live[short.connection] = (started, short)

    def _go_on(self, connection: socket.socket, readable: bool, writable: bool) -> None:
        try:
            whole = self.live[connection][1].go_on(readable=readable, writable=writable)
        except BlockingIOError:
            return
        except OSError:
            self._end(connection, answered=False)
        else:
            if whole:
                self._end(connection, answered=True)

    def _end(self, connection: socket.socket, *, answered: bool) -> None:
        started, _ = self.live.pop(connection)
        self.messages.append((started, now() - started if answered else None))
        connection.close()


def make_short_connections(
    workload: ShortConnections, local: Address, remote: Address
) -> dict[str, Any]:
    """Makes connections, each with one request and its response."""
    client = _ShortConnectionsClient(workload, local, remote)
    client.run()
    return {"messages": sorted(client.messages, key=lambda row: row[0]), "error": None}
