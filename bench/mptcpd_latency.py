# SPDX-License-Identifier: BSD-3-Clause
"""The latency between cause and effect, with Debian's mptcpd and with ours.

Causes are made here, in the daemon's namespace: an address is added, or a subflow is
created.  Effects are polled without a pause: the endpoint table is dumped repeatedly, and the
kernel's path-manager events are read as they arrive. The two alternate, one measurement each.
"""

import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from bench._figures import Figure, spread, table
from bench._mptcpd import NAMES, Side, both, on_own_processor
from mptcpd_ebpf.core.commands import CreateSubflow
from mptcpd_ebpf.core.events import (
    ConnectionClosed,
    ConnectionEstablished,
    Event,
    SubflowClosed,
    SubflowEstablished,
)
from mptcpd_ebpf.kernel import route_messages as rt
from mptcpd_ebpf.kernel.listeners import IPPROTO_MPTCP
from mptcpd_ebpf.kernel.netlink import Request, attribute
from mptcpd_ebpf.kernel.pm_client import PmClient
from mptcpd_ebpf.kernel.pm_events import PmEvents
from mptcpd_ebpf.kernel.transport import NETLINK_ROUTE, Requester, Subscription
from mptcpd_ebpf.lab import LabError, Path
from mptcpd_ebpf.lab.waiting import wait_until

NAME = "Latencies beside mptcpd's"

_DEADLINE_S = 20.0
_PAUSE_S = 0.08
"""Between two measurements: the kernel takes some milliseconds to remove an endpoint, and the
daemon's guard lets ten destructive commands a second pass."""
_ANCHOR = "169.254.77.77"
"""Of link scope, which neither manages: an interface without any address loses its routes."""

# include/uapi/linux/if_addr.h
_IFA_ADDRESS = 1
_IFA_LOCAL = 2
_NODAD = 0x02
"""IFA_F_NODAD: without duplicate address detection, which takes a second."""

E = TypeVar("E", bound=Event)
T = TypeVar("T")
Measure = Callable[[], float]
"""Triggers one cause; returns the microseconds until its effect."""


def run(quick: bool) -> str:
    count = 5 if quick else 101
    rows = []
    with tempfile.TemporaryDirectory() as folder, on_own_processor():
        paths = [Path(), Path()]
        with both("addr_adv", folder, paths, "both") as sides:
            for ip in ("10.2.1.9", "fd00:2:1::9"):
                version = "IPv6" if ":" in ip else "IPv4"
                rows.append(_row(f"RTM_NEWADDR → endpoint, {version}", count, sides, _endpoint(ip)))
        with both("addr_adv", folder, paths) as sides:
            rows.append(_row("address → new subflow on a live connection", count, sides, _joined))
        with both("sspi", folder, [Path()]) as sides:
            rows.append(_row("second subflow on an interface → closed", count, sides, _closed))
    return table(rows)


def _row(
    what: str, count: int, sides: list[Side], prepare: Callable[[Side, ExitStack], Measure]
) -> Figure:
    """Measures both in turn and compares the medians."""
    found: list[list[float]] = [[], []]
    with ExitStack() as stack:
        measures = [prepare(side, stack) for side in sides]
        for number in range(count + 1):
            for side, times, measure in zip(sides, found, measures, strict=True):
                try:
                    took = measure()
                except LabError as error:
                    raise LabError(f"{side.name}, measurement {number}: {error}") from None
                if number:  # the first one warms up
                    times.append(took)
                time.sleep(_PAUSE_S)
    theirs, ours = (statistics.median(times) for times in found)
    both_spreads = [f"{name} {spread(t, 'µs')}" for name, t in zip(NAMES, found, strict=True)]
    measured = f"{'; '.join(both_spreads)}; ratio {ours / theirs:.2f}"
    return Figure(what, measured, "≤ mptcpd's", ours <= theirs)


# --- an address is added


def _endpoint(ip: str) -> Callable[[Side, ExitStack], Measure]:
    def prepare(side: Side, stack: ExitStack) -> Measure:
        network = stack.enter_context(_Network.of(side))
        with side.lab.client.entered():
            pm = stack.enter_context(PmClient())

        def there() -> bool | None:
            return True if any(endpoint.ip == ip for endpoint in pm.endpoints()) else None

        def gone() -> bool | None:
            return None if there() else True

        def measure() -> float:
            network.add(ip)
            network.wait_for_message()
            begin = time.perf_counter_ns()
            _until(there, f"endpoint {ip}")
            took = _microseconds_since(begin)
            network.remove(ip)
            _until(gone, f"the end of endpoint {ip}")
            return took

        return measure

    return prepare


def _joined(side: Side, stack: ExitStack) -> Measure:
    second = side.lab.paths[1]
    ip = second.client_ip
    side.lab.client.run(["ip", "addr", "add", _ANCHOR, "dev", second.client_if, "scope", "link"])
    network = stack.enter_context(_Network.of(side))
    events = stack.enter_context(_events(side))
    stack.enter_context(_connection(side, events))

    def measure() -> float:
        network.remove(ip)
        time.sleep(_PAUSE_S)  # its joined subflow is closed
        events.read()
        begin = time.perf_counter_ns()
        network.add(ip)
        _until(lambda: _find(events, SubflowEstablished), f"subflow of {ip}")
        return _microseconds_since(begin)

    return measure


def _closed(side: Side, stack: ExitStack) -> Measure:
    path = side.lab.paths[0]
    second = f"{path.client_ip.rpartition('.')[0]}.9"
    side.lab.client.run(["ip", "addr", "add", f"{second}/24", "dev", path.client_if])
    events = stack.enter_context(_events(side))
    with side.lab.client.entered():
        pm = stack.enter_context(PmClient())

    def measure() -> float:
        # mptcpd loses the state of an interface with its second subflow: set it up each time.
        with _connection(side, events) as connection:
            time.sleep(_PAUSE_S)
            command = CreateSubflow(
                token=connection.token,
                local_ip=second,
                local_id=9,
                remote=connection.remote,
                reason="bench",
            )
            begin = time.perf_counter_ns()
            answer = pm.execute_now(command)
            if answer.errno:
                raise LabError(f"a second subflow: {answer.explanation}")
            _until(lambda: _find(events, SubflowClosed), "the end of a second subflow")
            return _microseconds_since(begin)

    return measure


@contextmanager
def _connection(side: Side, events: PmEvents) -> Iterator[ConnectionEstablished]:
    """An idle connection over the first path, and the kernel's events about it."""
    kind = socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP
    path = side.lab.paths[0]
    with ExitStack() as stack:
        with side.lab.server.entered():
            listener = stack.enter_context(socket.socket(*kind))
        with side.lab.client.entered():
            client = stack.enter_context(socket.socket(*kind))
        listener.bind((path.server_ip, 0))
        listener.listen()
        client.connect(listener.getsockname())
        server = stack.enter_context(listener.accept()[0])
        for sender, receiver in ((client, server), (server, client)):
            sender.sendall(b"x")
            receiver.recv(1)
        found = _until(lambda: _find(events, ConnectionEstablished), "an established connection")
        yield found
    _until(lambda: _find(events, ConnectionClosed), "the end of a connection")


def _until(look: Callable[[], T | None], what: str) -> T:
    """Polls without a pause until there is a result; raises LabError after a deadline."""
    found = wait_until(look, _DEADLINE_S, pause_s=0)
    if found is None:
        raise LabError(f"{what} did not come within {_DEADLINE_S:g} s")
    return found


def _find(events: PmEvents, kind: type[E]) -> E | None:
    """The first pending event of this kind; reads all."""
    return next((event for event in events.read() if isinstance(event, kind)), None)


def _microseconds_since(begin: int) -> float:
    return (time.perf_counter_ns() - begin) / 1e3


@contextmanager
def _events(side: Side) -> Iterator[PmEvents]:
    with side.lab.client.entered():
        events = PmEvents.open()
    with events:
        yield events


class _Network:
    """Adds and removes addresses of the second path's interface, and receives their events."""

    def __init__(self, if_index: int, requester: Requester, told: Subscription) -> None:
        self._if_index = if_index
        self._requester = requester
        self._told = told

    @classmethod
    @contextmanager
    def of(cls, side: Side) -> Iterator["_Network"]:
        groups = [rt.GROUPS["ipv4 address"], rt.GROUPS["ipv6 address"]]
        with side.lab.client.entered(), ExitStack() as stack:
            requester = stack.enter_context(Requester(NETLINK_ROUTE))
            told = Subscription.open(NETLINK_ROUTE, groups, receive_buffer=1 << 20)
            stack.callback(told.close)
            index = socket.if_nametoindex(side.lab.paths[1].client_if)
            closing = stack.pop_all()
        with closing:
            yield cls(index, requester, told)

    def add(self, ip: str) -> None:
        self._told.discard()
        self._ask(rt.RTM_NEWADDR, ip)

    def remove(self, ip: str) -> None:
        self._ask(rt.RTM_DELADDR, ip)

    def wait_for_message(self) -> None:
        _until(lambda: next(self._told.receive(1), None), "RTM_NEWADDR")

    def _ask(self, kind: int, ip: str) -> None:
        family, length = (socket.AF_INET6, 64) if ":" in ip else (socket.AF_INET, 24)
        raw = socket.inet_pton(family, ip)
        body = rt.IFADDRMSG.pack(family, length, _NODAD, 0, self._if_index)
        body += attribute(_IFA_LOCAL, raw) + attribute(_IFA_ADDRESS, raw)
        reply = self._requester.ask(Request(kind, body, fixed=rt.IFADDRMSG.size))
        if reply.errno:
            raise LabError(f"address {ip}: error {reply.errno} {reply.message}")
