# SPDX-License-Identifier: BSD-3-Clause
"""Bulk and stream: one end sends, the other notes arrivals with their times."""

import select
import socket
from typing import Any

from mptcpd_ebpf.lab.traffic.sockets import READ, StopRequested, now, send_some, wait
from mptcpd_ebpf.lab.traffic.workloads import Bulk, Stream


def send_all(connection: socket.socket, workload: Bulk | Stream) -> dict[str, Any]:
    """Sends until the workload ends or is stopped; then waits until the peer has everything."""
    connection.setblocking(False)
    started = now()
    end = None if workload.seconds is None else started + round(workload.seconds * 1e9)
    sent: list[int] = []
    error = None
    try:
        if isinstance(workload, Bulk):
            _send_bulk(connection, workload, end)
        else:
            _send_stream(connection, workload, started, end, sent)
    except StopRequested:
        pass
    except OSError as failure:
        error = str(failure)
    if error is None:
        error = _finish(connection, workload.drain_s)
    return {"started_at": started, "sent": sent, "error": error}


def _send_bulk(connection: socket.socket, workload: Bulk, end: int | None) -> None:
    block = memoryview(bytes(READ))
    left = workload.bytes
    while (left is None or left > 0) and (end is None or now() < end):
        if not wait([], [connection], end)[1]:
            return
        sent = connection.send(block if left is None else block[:left])
        if left is not None:
            left -= sent


def _send_stream(
    connection: socket.socket, workload: Stream, started: int, end: int | None, sent: list[int]
) -> None:
    """Sends each message at its time; bytes that the socket does not accept stay in `pending`."""
    interval = workload.size * 8e3 / workload.rate_mbit
    pending = bytearray()
    while True:
        due = started + round(len(sent) * interval)
        over = end is not None and due >= end
        if over and not pending:
            return
        wait([], [connection] if pending else [], None if over else due)
        if not over and now() >= due:
            sent.append(now())
            pending += bytes(workload.size)
        if pending:
            send_some(connection, pending)


def _finish(connection: socket.socket, drain_s: float) -> str | None:
    """Shuts down the sending side and waits for the peer's close."""
    deadline = now() + round(drain_s * 1e9)
    try:
        connection.shutdown(socket.SHUT_WR)
        while select.select([connection], (), (), max(0.0, (deadline - now()) / 1e9))[0]:
            if not connection.recv(READ):
                return None
    except OSError as error:
        return str(error)
    return f"the data sent has not all arrived after {drain_s:g} s"


def receive_all(connection: socket.socket, unit: int) -> dict[str, Any]:
    """Receives to the end of file and notes the arrival of every `unit` bytes."""
    arrivals: list[tuple[int, int]] = []
    total = noted = 0
    error = None
    try:
        while True:
            wait([connection], [], None)
            data = connection.recv(READ)
            if not data:
                break
            total += len(data)
            if total - noted >= unit:
                noted = total // unit * unit
                arrivals.append((now(), total))
        if not arrivals or total > arrivals[-1][1]:
            arrivals.append((now(), total))
    except StopRequested:
        pass
    except OSError as failure:
        error = str(failure)
    return {"arrivals": arrivals, "error": error}
