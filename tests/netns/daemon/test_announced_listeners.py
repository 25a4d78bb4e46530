# SPDX-License-Identifier: BSD-3-Clause
"""The daemon listens on the port of an announced address for as long as it is announced.

The peer is a kernel that joins the announced address and port on command.
"""

import json
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.commands import CreateSubflow
from mptcpd_ebpf.core.events import AddressAnnounced, AddressWithdrawn, SubflowEstablished
from mptcpd_ebpf.kernel import diag
from mptcpd_ebpf.lab import Host, Lab
from tests.netns.daemon_process import RunningDaemon, command, daemon
from tests.netns.mptcp_peers import Pair, Peer, connected, peer
from tests.netns.mptcp_sockets import listen
from tests.tree import ROOT
from tests.waiting import SLOWNESS, until


def inside(host: Host) -> tuple[str, ...]:
    return ("nsenter", f"--net=/run/netns/{host.name}", "--")


@contextmanager
def served(lab: Lab, folder: Path, *through: str) -> Iterator[tuple[RunningDaemon, Peer, Pair]]:
    """A daemon on the server, a kernel as the client, and a connection between them.

    `through` is a command through which the daemon is started.
    """
    with (
        peer(lab.client) as client,
        peer(lab.server) as server,
        connected(client, server, lab.paths[0].server_ip) as pair,
        daemon(folder, "--probes=netlink", prefix=(*inside(lab.server), *through)) as running,
    ):
        yield running, client, pair


def announce(running: RunningDaemon, pair: Pair, *arguments: str) -> dict[str, Any]:
    ended = running.ask("announce", f"{pair.at_server.token:08x}", *arguments, "--json")
    assert ended.returncode == 0, ended.stderr
    sent: dict[str, Any] = json.loads(ended.stdout)["command"]
    return sent


def listening_ports(lab: Lab, ip: str) -> set[int]:
    """The ports on which a program listens at an address of the server."""
    with lab.server.entered():
        return {local.port for local in diag.listeners() if local.ip == ip}


def join(client: Peer, pair: Pair, local_ip: str, remote: SockAddr) -> None:
    """The client joins the announced address, and the server accepts."""
    command = CreateSubflow(
        token=pair.at_client.token, local_ip=local_ip, local_id=7, remote=remote, reason="test"
    )
    assert client.pm.execute_now(command) == (0, "")
    client.log.wait(SubflowEstablished, lambda e: e.remote == remote)


def test_an_announced_port_has_a_listener_until_the_address_is_withdrawn(
    mptcp_lab: Lab, tmp_path: Path
) -> None:
    ip = mptcp_lab.paths[1].server_ip
    with served(mptcp_lab, tmp_path) as (running, client, pair):
        sent = announce(running, pair, ip, "--port", "any")
        assert listening_ports(mptcp_lab, ip) == {sent["port"]}
        running.until_logged(f"manual command: announce {ip} as id")
        running.until_logged(f"announce {ip}: listening on port {sent['port']}")
        assert (sent["listen"], sent["port"] > 1023) == (True, True)
        heard = client.log.wait(AddressAnnounced)
        assert (heard.ip, heard.port) == (ip, sent["port"])
        join(client, pair, mptcp_lab.paths[1].client_ip, SockAddr(ip, sent["port"]))
        pair.exchange()

        with mptcp_lab.client.entered():
            other = socket.create_connection((ip, sent["port"]), timeout=20 * SLOWNESS)
        with other:
            assert other.recv(1) == b"", "a connection that is no join is closed"

        withdrawn = running.ask("withdraw", f"{pair.at_server.token:08x}", str(sent["address_id"]))
        assert withdrawn.returncode == 0, withdrawn.stderr
        assert client.log.wait(AddressWithdrawn).address_id == sent["address_id"]
        assert listening_ports(mptcp_lab, ip) == set()
        pair.exchange()


def test_a_listener_is_shared_and_closed_when_its_last_connection_ends(
    mptcp_lab: Lab, tmp_path: Path
) -> None:
    ip = mptcp_lab.paths[1].server_ip
    with served(mptcp_lab, tmp_path) as (running, client, first):
        sent = announce(running, first, ip, "--port", "any")
        port = str(sent["port"])
        with peer(mptcp_lab.server) as server:
            with connected(client, server, mptcp_lab.paths[0].server_ip) as second:
                assert str(announce(running, second, ip, "--port", port)["port"]) == port
                assert str(announce(running, first, ip, "--port", port)["port"]) == port, "again"
                token, id_ = f"{first.at_server.token:08x}", str(sent["address_id"])
                assert running.ask("withdraw", token, id_).returncode == 0
                assert listening_ports(mptcp_lab, ip) == {sent["port"]}, (
                    "the second connection uses it"
                )
            until(
                lambda: listening_ports(mptcp_lab, ip) == set(), "the second connection has ended"
            )
        other = announce(running, first, ip, "--port", "any")["port"]
        assert listening_ports(mptcp_lab, ip) == {other}
        assert running.stop() == 0
    assert listening_ports(mptcp_lab, ip) == set()


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_the_next_daemon_opens_the_listeners_again(
    mptcp_lab: Lab, tmp_path: Path, ending: signal.Signals
) -> None:
    ip = mptcp_lab.paths[1].server_ip
    with served(mptcp_lab, tmp_path) as (running, client, pair):
        with (
            peer(mptcp_lab.server) as server,
            connected(client, server, mptcp_lab.paths[0].server_ip) as second,
        ):
            kept = announce(running, pair, ip, "--port", "any")["port"]
            ended = announce(running, second, ip, "--port", "any")["port"]
            assert listening_ports(mptcp_lab, ip) == {kept, ended}
            running.process.send_signal(ending)
            running.process.wait()
            assert listening_ports(mptcp_lab, ip) == set()
        with daemon(tmp_path, "--probes=netlink", prefix=inside(mptcp_lab.server)) as again:
            assert listening_ports(mptcp_lab, ip) == {kept}, "the second connection has ended"
            join(client, pair, mptcp_lab.paths[1].client_ip, SockAddr(ip, kept))
            pair.exchange()
            again.process.send_signal(ending)
            again.process.wait()
        with mptcp_lab.server.entered():
            occupier = socket.create_server((ip, kept))
        with (
            occupier,
            daemon(tmp_path, "--probes=netlink", prefix=inside(mptcp_lab.server)) as third,
        ):
            words = (
                "can no longer join an address that an earlier daemon announced: cannot listen on"
            )
            assert f"{words} {ip}:{kept}: something listens there" in third.log


def test_a_refused_announcement_leaves_no_listener(mptcp_lab: Lab, tmp_path: Path) -> None:
    ip = mptcp_lab.paths[1].server_ip
    with served(mptcp_lab, tmp_path) as (running, _, pair):
        refused = running.ask("announce", "00000001", ip, "--id", "3", "--port", "any")
        assert refused.returncode == 1
        assert "no connection of this namespace has that token" in refused.stderr
        assert listening_ports(mptcp_lab, ip) == set()

        with listen(mptcp_lab.server, ip) as own:
            port = str(own.getsockname()[1])
            token = f"{pair.at_server.token:08x}"
            taken = running.ask("announce", token, ip, "--port", port)
            assert taken.returncode == 1
            assert f"cannot listen on {ip}:{port}: something listens there" in taken.stderr
            sent = announce(running, pair, ip, "--port", port, "--no-listener")
            assert (sent["listen"], str(sent["port"])) == (False, port)


def test_a_listener_needs_a_daemon(mptcp_lab: Lab) -> None:
    prefix, ip = inside(mptcp_lab.server), mptcp_lab.paths[1].server_ip
    for arguments, code, words in (
        (["--port", "any"], 69, "no daemon runs that could listen"),
        (["--no-listener"], 64, "--no-listener needs a --port"),
        (["--port", "70000"], 64, "70000"),
    ):
        ended = command("announce", "12345678", ip, *arguments, prefix=prefix)
        assert ended.returncode == code, ended
        assert words in ended.stderr


def test_the_unit_s_capabilities_are_enough_for_every_port(mptcp_lab: Lab, tmp_path: Path) -> None:
    unit = ROOT / "systemd" / "mptcpd-ebpf.service"
    (names,) = re.findall("^CapabilityBoundingSet=(.*)", unit.read_text(), re.MULTILINE)
    kept = "".join(f",+{name.removeprefix('CAP_').lower()}" for name in names.split())
    ip = mptcp_lab.paths[1].server_ip
    bounded = ("setpriv", f"--bounding-set=-all{kept}", "--")
    with served(mptcp_lab, tmp_path, *bounded) as (running, _client, pair):
        assert announce(running, pair, ip, "--port", "80")["port"] == 80
        assert listening_ports(mptcp_lab, ip) == {80}
