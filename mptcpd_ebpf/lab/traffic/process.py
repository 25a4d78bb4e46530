# SPDX-License-Identifier: BSD-3-Clause
"""The two processes of a workload: ``python -m mptcpd_ebpf.lab.traffic.process TASK``.

The server prints ``{"port": …}`` once it listens and the client ``{"local": …, "token": …}``
once it is connected; each prints its records as the last line.  The end of standard input
ends a process early, with its records: `Running.stop` uses this, and no process outlives the
test that started it.
"""

import json
import signal
import socket
import sys
from typing import Any

import msgspec.json

from mptcpd_ebpf.lab.traffic.exchange import answer_all, make_requests, make_short_connections
from mptcpd_ebpf.lab.traffic.oneway import receive_all, send_all
from mptcpd_ebpf.lab.traffic.sockets import (
    StopRequested,
    local_token,
    open_socket,
    set_options,
    wait,
)
from mptcpd_ebpf.lab.traffic.workloads import Address, Bulk, EndTask, ShortConnections, Stream

_CONNECT_S = 20.0


def serve(task: EndTask) -> dict[str, Any]:
    workload = task.workload
    listener = open_socket(workload, task.local)
    listener.listen(1024)
    _print({"port": listener.getsockname()[1]})
    if isinstance(workload, Bulk | Stream):
        try:
            wait([listener], [], None)
        except StopRequested:
            return {"arrivals": [], "sent": [], "error": "no client connected"}
        connection, _ = listener.accept()
        set_options(connection, workload)
        return _one_way(connection, workload, sends=workload.direction == "down")
    answer_all(listener, workload)
    return {}


def connect(task: EndTask, remote: Address) -> dict[str, Any]:
    workload = task.workload
    if isinstance(workload, ShortConnections):
        _print({"local": task.local, "token": None})
        return make_short_connections(workload, task.local, remote)
    connection = open_socket(workload, task.local)
    connection.settimeout(_CONNECT_S)
    connection.connect(remote)
    connection.settimeout(None)
    _print({"local": connection.getsockname()[:2], "token": local_token(connection)})
    if isinstance(workload, Bulk | Stream):
        return _one_way(connection, workload, sends=workload.direction == "up")
    return make_requests(connection, workload)


def _one_way(connection: socket.socket, workload: Bulk | Stream, *, sends: bool) -> dict[str, Any]:
    if sends:
        return send_all(connection, workload)
    unit = workload.chunk if isinstance(workload, Bulk) else workload.size
    return receive_all(connection, unit)


def _print(record: dict[str, Any]) -> None:
    print(json.dumps(record), flush=True)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the test decides when this ends
    task = msgspec.json.decode(sys.argv[1], type=EndTask)
    try:
        _print(serve(task) if task.remote is None else connect(task, task.remote))
    except OSError as error:
        _print({"failed": f"{error.strerror or error}"})


if __name__ == "__main__":
    main()
