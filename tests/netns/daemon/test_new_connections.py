# SPDX-License-Identifier: BSD-3-Clause
"""`initial_path: steer`: new connections avoid a default route whose path does not work.

The daemon's programs are attached to a cgroup of the test's own, which holds the clients.
"""

import ctypes
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_interface
from pathlib import Path

import pytest

from mptcpd_ebpf.lab import Host, Lab, LivePath, RequestResponse
from mptcpd_ebpf.lab import Path as LabPath
from mptcpd_ebpf.lab.kernel_path_manager import raise_limits
from mptcpd_ebpf.probes.libbpf import LIBRARY
from mptcpd_ebpf.probes.start_steering import StartSteering
from tests.netns.daemon_host import PATIENCE_S, daemon_in, decisions, status, until_carried_by
from tests.netns.daemon_process import RunningDaemon
from tests.netns.mptcp_sockets import listen
from tests.netns.own_cgroup import own_cgroup
from tests.waiting import SLOWNESS, until

MakeLab = Callable[..., Lab]

PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "mptcp": socket.IPPROTO_MPTCP}
SOCK_OPS, INET4_CONNECT, INET6_CONNECT = 3, 10, 11  # include/uapi/linux/bpf.h: bpf_attach_type
IP_BIND_ADDRESS_NO_PORT = 24
HANGS_S = 1.5
"""How long a connection that must not be established is given."""


@pytest.fixture
def cgroup() -> Iterator[Path]:
    with own_cgroup() as folder:
        yield folder


@pytest.fixture
def lab(cgroup: Path, make_mptcp_lab: MakeLab) -> Lab:  # noqa: ARG001
    """Two paths, IPv4 and IPv6; the client reaches the server by its default routes only.

    It is taken down before the cgroup, whose end kills the processes in it.
    """
    made = make_mptcp_lab([LabPath(name="fibre"), LabPath(name="lte")], ip="both")
    for path in made.paths:
        for ip in server_ips(path):
            network = ip_interface(f"{ip}/{64 if ':' in ip else 24}").network
            made.client.run(["ip", "route", "del", str(network)])
    return made


@contextmanager
def steering(lab: Lab, folder: Path, cgroup: Path, *arguments: str) -> Iterator[RunningDaemon]:
    config = folder / "steer.yaml"
    config.write_text(f"initial_path: steer\ninitial_path_cgroups: [{cgroup}]\n")
    with daemon_in(lab.client, folder, "--config", str(config), *arguments) as running:
        yield running


def client_socket(host: Host, ip: str, protocol: str = "tcp") -> socket.socket:
    with host.entered():
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        return socket.socket(family, socket.SOCK_STREAM, PROTOCOLS[protocol])


def start(host: Host, ip: str, port: int, protocol: str = "tcp") -> str:
    """Connects, and returns the address from which the connection started."""
    with client_socket(host, ip, protocol) as client:
        client.settimeout(PATIENCE_S * SLOWNESS)
        client.connect((ip, port))
        return str(client.getsockname()[0])


def hangs(client: socket.socket, ip: str, port: int, within_s: float = HANGS_S) -> bool:
    client.settimeout(within_s)
    try:
        client.connect((ip, port))
    except TimeoutError:
        return True
    return False


def begins(
    host: Host,
    destination: tuple[str, int],
    prepare: Callable[[socket.socket], object] = lambda _: None,
) -> str:
    """The address from which the SYN of a new connection is sent, answered or not."""
    with client_socket(host, destination[0]) as client:
        prepare(client)
        client.setblocking(False)
        client.connect_ex(destination)
        return str(client.getsockname()[0])


def bound_without_port(ip: str) -> Callable[[socket.socket], None]:
    """Binds a socket to an address, so that connect() chooses the port."""

    def bind(client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        client.bind((ip, 0))

    return bind


def server_ips(path: LivePath) -> tuple[str, str]:
    """The server's addresses on a path, IPv4 and IPv6."""
    assert path.server_ip6 is not None
    return path.server_ip, path.server_ip6


def steered(running: RunningDaemon) -> dict[str, str]:
    """By family: the local address of new connections, where they are steered."""
    found = status(running)["new_connections"]["steered"]
    return {each["family"]: each["local"] for each in found}


def until_steered(running: RunningDaemon, path: LivePath | None) -> None:
    """Waits until new connections of both families start on a path, None: the default route."""
    wanted = {} if path is None else {"IPv4": path.client_ip, "IPv6": path.client_ip6}
    until(
        lambda: steered(running) == wanted,
        lambda: f"{wanted}; there is {steered(running)}\n{running.log}",
        PATIENCE_S,
    )


def attached(cgroup: Path) -> int:
    """How many programs are attached to a cgroup itself."""
    libbpf, found = ctypes.CDLL(LIBRARY), 0
    folder = os.open(cgroup, os.O_RDONLY)
    for kind in (SOCK_OPS, INET4_CONNECT, INET6_CONNECT):
        count = ctypes.c_uint32(0)
        assert libbpf.bpf_prog_query(folder, kind, 0, None, None, ctypes.byref(count)) == 0
        found += count.value
    os.close(folder)
    return found


def test_a_dead_default_route_does_not_stop_new_connections(
    lab: Lab, cgroup: Path, tmp_path: Path
) -> None:
    fibre, lte = lab.paths
    with listen(lab.server, "::") as listener:
        port = listener.getsockname()[1]
        for family in ("-4", "-6"):  # as on a laptop, where no rule selects a route by source
            lab.client.run(["ip", family, "rule", "del", "pref", "102"])
        fibre.blackhole()
        with steering(lab, tmp_path, cgroup) as running:
            for ip in server_ips(fibre):
                with client_socket(lab.client, ip) as client:
                    assert hangs(client, ip, port), "the evidence"
            until_steered(running, lte)
            for protocol in PROTOCOLS:
                for ip, local in zip(
                    server_ips(fibre), (lte.client_ip, lte.client_ip6), strict=True
                ):
                    assert start(lab.client, ip, port, protocol) == local
            assert fibre.client_ip6 is not None
            bound = bound_without_port(fibre.client_ip6)
            assert begins(lab.client, (server_ips(fibre)[1], port), bound) == fibre.client_ip6
            mapped = f"::ffff:{fibre.server_ip}"
            assert start(lab.client, mapped, port) == f"::ffff:{lte.client_ip}"
            assert re.search(
                rf"IPv4 start on lte \({lte.client_ip}\) since .*: the default route's path over "
                "fibre does not work",
                running.ask("status").stdout,
            )
            fibre.heal()
            until_steered(running, None)
            assert start(lab.client, fibre.server_ip, port) == fibre.client_ip


def test_a_path_that_adaptive_abandoned_is_avoided_at_once(
    lab: Lab, cgroup: Path, tmp_path: Path
) -> None:
    fibre, lte = lab.paths
    raise_limits(lab.server)
    with steering(lab, tmp_path, cgroup, "--path-manager=adaptive") as running:
        traffic = lab.start(RequestResponse(interval_ms=50, count=600))
        until_carried_by(running, traffic.token, fibre, lte)
        fibre.blackhole()
        until(lambda: "IPv4" in steered(running), lambda: running.log, PATIENCE_S)
        made = decisions(running, "SteerNewConnections")[-1]
        assert made["plugin"] == "new connections"
        assert made["cause"]["event"] != "StartUnanswered"
        traffic.stop()


def test_a_link_without_carrier_is_avoided(lab: Lab, cgroup: Path, tmp_path: Path) -> None:
    fibre, lte = lab.paths
    with (
        listen(lab.server, "::") as listener,
        steering(lab, tmp_path, cgroup) as running,
    ):
        fibre.carrier(False)
        until(lambda: "IPv4" in steered(running), lambda: running.log, PATIENCE_S)
        assert start(lab.client, fibre.server_ip, listener.getsockname()[1]) == lte.client_ip
        fibre.carrier(True)
        until_steered(running, None)


def test_without_steering_they_hang(lab: Lab, tmp_path: Path) -> None:
    fibre, _ = lab.paths
    with listen(lab.server, "::") as listener, daemon_in(lab.client, tmp_path):
        fibre.blackhole()
        for ip in server_ips(fibre):
            for protocol in PROTOCOLS:
                with client_socket(lab.client, ip, protocol) as client:
                    assert hangs(client, ip, listener.getsockname()[1], HANGS_S / 3)


def test_what_the_application_or_a_route_chose_is_left_alone(
    lab: Lab, cgroup: Path, tmp_path: Path
) -> None:
    fibre, lte = lab.paths
    with (
        listen(lab.server, "0.0.0.0") as listener,
        steering(lab, tmp_path, cgroup) as running,
    ):
        destination = (fibre.server_ip, listener.getsockname()[1])
        fibre.blackhole()
        with client_socket(lab.client, fibre.server_ip) as client:
            assert hangs(client, *destination)
        until(lambda: "IPv4" in steered(running), "steering")
        assert begins(lab.client, destination) == lte.client_ip
        assert begins(lab.client, destination, lambda s: s.bind((fibre.client_ip, 0))) == (
            fibre.client_ip
        ), "a bound address"
        assert begins(lab.client, destination, bound_without_port(fibre.client_ip)) == (
            fibre.client_ip
        ), "a bound address without a port"
        assert begins(lab.client, destination, lambda s: s.bind(("", 4711))) == fibre.client_ip, (
            "a bound port"
        )
        assert (
            begins(
                lab.client,
                destination,
                lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"fibre"),
            )
            == fibre.client_ip
        ), "a bound interface"
        assert (
            begins(
                lab.client,
                destination,
                lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 7),
            )
            == fibre.client_ip
        ), "a mark"
        router = ip_interface(f"{fibre.client_ip}/24").network[1]
        assert begins(lab.client, (str(router), 9)) == fibre.client_ip, "a neighbour"
        assert begins(lab.client, ("127.0.0.1", 9)) == "127.0.0.1", "loopback"
        # In another namespace the address is there as well, on an interface of the same name.
        lab.server.run(["ip", "address", "add", f"{lte.client_ip}/32", "dev", "lte"])
        assert begins(lab.server, destination) == fibre.server_ip, "another namespace"
        # A new route is respected at once.
        lab.client.run(
            ["ip", "route", "add", f"{fibre.server_ip}/32", "via", str(router), "dev", "fibre"]
        )
        until(lambda: begins(lab.client, destination) == fibre.client_ip, "the new route's path")


def test_nothing_is_left_when_the_daemon_ends(lab: Lab, cgroup: Path, tmp_path: Path) -> None:
    assert attached(cgroup) == 0
    with steering(lab, tmp_path, cgroup) as running:
        assert attached(cgroup) == 3
        assert running.stop() == 0
        assert attached(cgroup) == 0
    with steering(lab, tmp_path, cgroup) as running:
        assert attached(cgroup) == 3
        running.process.kill()
        running.process.wait()
        until(lambda: attached(cgroup) == 0, "the kernel detaches the programs of the killed")


def test_a_program_that_allows_none_beside_it_stays(lab: Lab, cgroup: Path, tmp_path: Path) -> None:
    libbpf = ctypes.CDLL(LIBRARY)
    folder = os.open(cgroup, os.O_RDONLY)
    with lab.client.entered(), StartSteering.open([cgroup]) as other:
        program = other.programs()["cgroup/connect4"]
        copy = os.dup(program)
    try:
        assert libbpf.bpf_prog_attach(copy, folder, INET4_CONNECT, 0) == 0
        with steering(lab, tmp_path, cgroup) as running:
            assert "allows none beside it" in running.log
            assert not status(running)["new_connections"]["steers"]
            assert attached(cgroup) == 1
    finally:
        libbpf.bpf_prog_detach2(copy, folder, INET4_CONNECT)
        os.close(copy)
        os.close(folder)


def test_where_it_cannot_attach_a_warning_names_the_reason(lab: Lab, tmp_path: Path) -> None:
    with steering(lab, tmp_path, tmp_path) as running:
        (warning,) = [line for line in running.log.splitlines() if "initial_path" in line]
        assert f"{tmp_path} is not a folder of cgroup v2" in warning
        assert status(running)["new_connections"] == {
            "steers": False,
            "reason": f"not steered: {tmp_path} is not a folder of cgroup v2",
            "steered": [],
            "count": None,
        }
