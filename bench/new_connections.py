# SPDX-License-Identifier: BSD-3-Clause
"""What `initial_path: steer` gives and costs new connections.

Given: an application starts a TCP connection every 50 ms; the default route's path is blackholed,
and heals.  The arms alternate: a daemon without steering, with it, and with it beside `adaptive`,
which has a connection with a request every 50 ms on both paths.

Costs: connect() over veth, each connection established and reset.  The arms alternate: no program,
programs attached while the default route works, and programs that choose the address.

The programs are attached to a cgroup of the measurement's own.
"""

import math
import selectors
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import NamedTuple

from bench._figures import Figure, median_interval, spread, table
from mptcpd_ebpf.kernel import rtnetlink
from mptcpd_ebpf.kernel.transport import NETLINK_ROUTE, Requester
from mptcpd_ebpf.lab import Lab, Path, RequestResponse
from mptcpd_ebpf.lab.kernel_path_manager import raise_limits
from mptcpd_ebpf.probes.start_steering import StartSteering
from tests.netns.daemon_host import daemon_in, until_carried_by
from tests.netns.own_cgroup import own_cgroup

NAME = "New connections, steered"

_DAEMONS = ("no steering", "steering", "steering beside adaptive")
_EVERY_S = 0.05
_RATIO_TARGET = 1.1
_ARMS = ("off", "attached", "steered")
_PORT = 4711
_ACCEPT = f"""
import socket
listener = socket.create_server(("", {_PORT}), backlog=4096)
mptcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
mptcp.bind(("", {_PORT + 1}))
mptcp.listen(4096)
import selectors
selector = selectors.DefaultSelector()
for each in (listener, mptcp):
    selector.register(each, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in selector.select():
        key.fileobj.accept()[0].close()
"""
_PROTOCOLS = {"TCP": (0, _PORT), "MPTCP": (socket.IPPROTO_MPTCP, _PORT + 1)}


def run(quick: bool) -> str:
    with own_cgroup() as cgroup:
        figures = [*_outages(cgroup, 1 if quick else 4), *_costs(cgroup, quick)]
    return table(figures)


# --- what it gives


class _Attempt(NamedTuple):
    started_s: float
    """After the path was blackholed."""
    took_s: float | None
    """Until it was established; None: never."""
    interface_ip: str


def _outages(cgroup: FilePath, repetitions: int) -> Iterator[Figure]:
    dead_s, healed_s = 3.0, 5.0
    works: dict[str, list[float]] = {arm: [] for arm in _DAEMONS}
    stuck: dict[str, list[float]] = {arm: [] for arm in _DAEMONS}
    back: dict[str, list[float]] = {arm: [] for arm in _DAEMONS}
    for _ in range(repetitions):
        for arm in _DAEMONS:
            with _two_paths(delay=True) as lab, _server(lab), _daemon(lab, cgroup, arm):
                fibre = lab.paths[0]
                fibre.blackhole()
                attempts = _attempts(lab, dead_s)
                fibre.heal()
                later = _attempts(lab, healed_s)
            good = [a.started_s for a in attempts if a.took_s is not None]
            works[arm].append(min(good, default=math.inf))
            stuck[arm].append(sum(a.took_s is None for a in attempts))
            home = [a.started_s for a in later if a.interface_ip == fibre.client_ip]
            back[arm].append(min(home, default=math.inf))
    for arm in _DAEMONS:
        ever = [at for at in works[arm] if at < math.inf]
        yield Figure(f"{arm}: blackhole → new connections work", spread(ever, "s", 2))
        yield Figure("…connections that did not", spread(stuck[arm], f"of {dead_s / _EVERY_S:.0f}"))
        if arm != _DAEMONS[0]:
            yield Figure("…path healed → they start on it again", spread(back[arm], "s", 2))


def _attempts(lab: Lab, seconds: float) -> list[_Attempt]:
    """Starts a connection every `_EVERY_S`, and watches them until a second after the last."""
    began = time.monotonic()
    opened: dict[socket.socket, float] = {}
    done: list[_Attempt] = []
    with selectors.DefaultSelector() as selector:
        while (now := time.monotonic() - began) < seconds + 1:
            if now < seconds and now >= len(done + list(opened)) * _EVERY_S:
                with lab.client.entered():
                    client = socket.socket()
                client.setblocking(False)
                client.connect_ex((lab.paths[0].server_ip, _PORT))
                opened[client] = now
                selector.register(client, selectors.EVENT_WRITE)
            for key, _ in selector.select(_EVERY_S / 10):
                assert isinstance(key.fileobj, socket.socket)
                done.append(_finish(key.fileobj, opened, time.monotonic() - began))
                selector.unregister(key.fileobj)
        done += [_finish(client, opened, None) for client in list(opened)]
    return sorted(done)


def _finish(
    client: socket.socket, opened: dict[socket.socket, float], now: float | None
) -> _Attempt:
    with client:
        started = opened.pop(client)
        took = None if now is None else now - started
        return _Attempt(started, took, client.getsockname()[0])


@contextmanager
def _two_paths(*, delay: bool = False) -> Iterator[Lab]:
    """Two paths; the client reaches the server by its default routes only."""
    paths = [Path(delay_ms=10), Path(delay_ms=30)] if delay else [Path(), Path()]
    with Lab(paths=paths) as lab:
        network = lab.paths[0].server_ip.rpartition(".")[0] + ".0/24"
        lab.client.run(["ip", "route", "del", network])
        raise_limits(lab.server)
        yield lab


@contextmanager
def _daemon(lab: Lab, cgroup: FilePath, arm: str) -> Iterator[None]:
    adaptive = arm == _DAEMONS[2]
    arguments = ["--path-manager=adaptive"] if adaptive else []
    with tempfile.TemporaryDirectory() as name:
        folder = FilePath(name)
        if arm != _DAEMONS[0]:
            config = folder / "steer.yaml"
            config.write_text(f"initial_path: steer\ninitial_path_cgroups: [{cgroup}]\n")
            arguments.append(f"--config={config}")
        with daemon_in(lab.client, folder, *arguments) as running:
            if not adaptive:
                yield
                return
            traffic = lab.start(RequestResponse(interval_ms=50))
            until_carried_by(running, traffic.token, *lab.paths)
            yield
            traffic.stop()


# --- what it costs


def _costs(cgroup: FilePath, quick: bool) -> list[Figure]:
    rounds, connections = (5, 100) if quick else (40, 300)
    figures: list[Figure] = []
    with _two_paths() as lab, _server(lab):
        for name, (protocol, port) in _PROTOCOLS.items():
            took: dict[str, list[float]] = {arm: [] for arm in _ARMS}
            for number in range(rounds):
                turn = number % len(_ARMS)
                for arm in _ARMS[turn:] + _ARMS[:turn]:
                    with _steering(lab, cgroup, arm):
                        took[arm].append(_connect(lab, protocol, port, connections))
            figures += _figures(name, took)
    return figures


@contextmanager
def _server(lab: Lab) -> Iterator[None]:
    server = lab.server.popen([sys.executable, "-c", _ACCEPT], stdout=subprocess.PIPE)
    with server:
        assert server.stdout is not None
        server.stdout.readline()
        try:
            yield
        finally:
            server.kill()


@contextmanager
def _steering(lab: Lab, cgroup: FilePath, arm: str) -> Iterator[None]:
    if arm == "off":
        yield
        return
    with lab.client.entered(), StartSteering.open([cgroup]) as steering:
        if arm == "steered":
            with Requester(NETLINK_ROUTE) as requester:
                steering.set_specific_routes(rtnetlink.specific_routes(requester, ipv6=False))
            second = lab.paths[1]
            steering.set_source(ipv6=False, ip=second.client_ip, interface=second.client_if)
        yield
        assert (steering.counters["steered"] > 0) == (arm == "steered")


def _connect(lab: Lab, protocol: int, port: int, count: int) -> float:
    """Median time of connect(), microseconds."""
    took = []
    with lab.client.entered():
        for _ in range(count):
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
                begun = time.perf_counter_ns()
                client.connect((lab.paths[0].server_ip, port))
                took.append((time.perf_counter_ns() - begun) / 1000)
    return statistics.median(took)


def _figures(name: str, took: dict[str, list[float]]) -> Iterator[Figure]:
    yield Figure(f"{name}: connect() without programs", spread(took["off"], "µs"))
    for arm, what in (("attached", "attached / without"), ("steered", "steered / without")):
        ratios = [with_ / off for with_, off in zip(took[arm], took["off"], strict=True)]
        low, high = median_interval(ratios)
        yield Figure(
            f"{name}: {what}",
            f"{spread(ratios, '', 3)}, 95 % interval of the median {low:.3f}…{high:.3f}",
            f"≤ {_RATIO_TARGET}" if arm == "attached" else "",
            statistics.median(ratios) <= _RATIO_TARGET if arm == "attached" else None,
        )
