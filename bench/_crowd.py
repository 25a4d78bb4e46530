# SPDX-License-Identifier: BSD-3-Clause
"""Requests on many connections at once, each at a fixed pace: ``_crowd.py ROLE IP PORT …``.

``server IP PORT`` prints ``listening`` and answers what it gets.

``client IP PORT LOCAL NUMBER INTERVAL`` makes NUMBER connections from address LOCAL, sends one
request on each every INTERVAL seconds, spread over it, and prints ``open`` when all are open.  When
its standard input ends it prints, as JSON, the longest time that each connection waited for
something to come back, in seconds.
"""

import json
import select
import socket
import sys
import time
from collections import deque

SIZE = 64
AT_ONCE = 100
"""Connections that are opened at the same time."""


def serve(ip: str, port: int) -> None:
    listener = _mptcp()
    listener.bind((ip, port))
    listener.listen(4096)
    print("listening", flush=True)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    while True:
        for number, _ in poll.poll():
            if number == listener.fileno():
                made, _ = listener.accept()
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connections[made.fileno()] = made
                poll.register(made, select.EPOLLIN)
                continue
            try:
                data = connections[number].recv(65536)
                connections[number].send(data)
            except OSError:
                data = b""
            if not data:
                poll.unregister(number)
                connections.pop(number).close()


def ask(ip: str, port: int, local: str, number: int, interval: float) -> list[float]:
    poll = select.epoll()
    sockets: dict[int, socket.socket] = {}
    while len(sockets) < number:
        opening = [_mptcp() for _ in range(min(AT_ONCE, number - len(sockets)))]
        for made in opening:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.bind((local, 0))
            made.setblocking(False)
            made.connect_ex((ip, port))
        for made in opening:
            opened = select.poll()
            opened.register(made, select.POLLOUT)
            opened.poll(5000)
            sockets[made.fileno()] = made
            poll.register(made, select.EPOLLIN)
    print("open", flush=True)
    poll.register(sys.stdin.fileno(), select.EPOLLIN | select.EPOLLHUP)
    begin = time.monotonic()
    due = deque((begin + interval * n / number, key) for n, key in enumerate(sockets))
    waits_since: dict[int, float] = {}
    longest = dict.fromkeys(sockets, 0.0)
    while True:
        now = time.monotonic()
        while due[0][0] <= now:
            at, key = due.popleft()
            due.append((at + interval, key))
            waits_since.setdefault(key, now)
            try:
                sockets[key].send(bytes(SIZE))
            except OSError:
                continue
        for key, _ in poll.poll(max(0.0, due[0][0] - now)):
            if key == sys.stdin.fileno():
                end = time.monotonic()
                for waiting, since in waits_since.items():
                    longest[waiting] = max(longest[waiting], end - since)
                return list(longest.values())
            try:
                sockets[key].recv(65536)
            except OSError:
                continue
            if key in waits_since:
                longest[key] = max(longest[key], time.monotonic() - waits_since.pop(key))


def _mptcp() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["server", ip, port]:
            serve(ip, int(port))
        case ["client", ip, port, local, number, interval]:
            waits = ask(ip, int(port), local, int(number), float(interval))
            print(json.dumps([round(wait, 3) for wait in waits]), flush=True)
