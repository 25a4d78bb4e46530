# SPDX-License-Identifier: BSD-3-Clause
"""Requests and responses: on one connection by the clock, or on many short ones."""

import select
import socket
from typing import Any

from mptcpd_ebpf.lab.traffic.sockets import (
    READ,
    Stopped,
    now,
    open_socket,
    send_some,
    set_options,
    wait,
)
from mptcpd_ebpf.lab.traffic.workloads import Address, RequestResponse, ShortConnections

_LAST_LOOK_S = 0.01


class _Asking:
    """The client's side of one connection: what was sent, what came back."""

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
        """Set when nothing more is to be sent."""

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
        try:
            return bool(wait([self.connection], writes, due)[0])
        except Stopped:
            # Standard input stays at its end, so from now on it is not asked again.
            self._stop_sending()
            return bool(select.select([self.connection], (), (), _LAST_LOOK_S)[0])

    def _receive(self) -> None:
        data = self.connection.recv(READ)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        self.received += len(data)
        arrived = now()
        while (len(self.latencies) + 1) * self.workload.response_size <= self.received:
            self.latencies.append(arrived - self.sent[len(self.latencies)])


def ask(connection: socket.socket, workload: RequestResponse) -> dict[str, Any]:
    """Sends requests by the clock and notes when each response was there whole."""
    connection.setblocking(False)
    asking = _Asking(connection, workload)
    error = None
    try:
        asking.run()
    except OSError as failure:
        error = str(failure)
    missing: list[int | None] = [None] * (len(asking.sent) - len(asking.latencies))
    messages = list(zip(asking.sent, [*asking.latencies, *missing], strict=True))
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
        except Stopped:
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


def connect_often(workload: ShortConnections, local: Address, remote: Address) -> dict[str, Any]:
    """Opens, asks, reads and closes; `parallel` connections at a time."""
    messages: list[tuple[int, int | None]] = []
    live: dict[socket.socket, tuple[int, int]] = {}  # begun at, bytes received
    error = None
    begun = 0
    try:
        while begun < workload.count or live:
            while begun < workload.count and len(live) < workload.parallel:
                started = now()
                connection = open_socket(workload, local)
                connection.settimeout(workload.drain_s)
                connection.connect(remote)
                connection.sendall(bytes(workload.size))
                live[connection] = (started, 0)
                begun += 1
            deadline = now() + round(workload.drain_s * 1e9)
            readable, _ = wait(list(live), [], deadline)
            if not readable:
                error = f"no response in {workload.drain_s:g} s"
                break
            for connection in readable:
                started, got = live[connection]
                data = connection.recv(READ)
                got += len(data)
                live[connection] = (started, got)
                if got >= workload.response_size or not data:
                    messages.append((started, now() - started if data else None))
                    connection.close()
                    del live[connection]
    except Stopped:
        pass
    except OSError as failure:
        error = str(failure)
    messages += [(started, None) for started, _ in live.values()]
    return {"messages": sorted(messages, key=lambda row: row[0]), "error": error}
