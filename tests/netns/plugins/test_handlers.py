# SPDX-License-Identifier: BSD-3-Clause
"""Every handler of the plugin API is called for real events, with correct arguments.

The daemon's kernel is real.  Events that only the other end can cause come from a scripted peer.
"""

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.plugin import Plugin
from mptcpd_ebpf.lab import Lab
from mptcpd_ebpf.lab.wire import Peer, PeerConnection
from tests.netns.daemon_host import daemon_in
from tests.netns.daemon_process import RunningDaemon
from tests.netns.mptcp_peers import need_listener_events
from tests.netns.mptcp_sockets import listen, mptcp_socket
from tests.netns.plugin_host import plugin_host
from tests.netns.scripted_peer import PORT, kernel_connected
from tests.netns.witness import HandlerLog
from tests.waiting import until


@pytest.fixture
def handler_log(tmp_path: Path) -> HandlerLog:
    return HandlerLog(tmp_path)


@contextmanager
def client_side(
    lab: Lab, folder: Path, handler_log: HandlerLog
) -> Iterator[tuple[RunningDaemon, PeerConnection, socket.socket]]:
    """A recording plugin serves the client, whose socket is opened last; the server is a scripted
    peer."""
    options = ("--plugin-dir", str(handler_log.plugins(witness=0)), "--path-manager=witness")
    with (
        daemon_in(lab.client, folder, "--probes=netlink", *options) as running,
        kernel_connected(lab) as (_, connection, near),
    ):
        connection.send(b"y")
        connection.wait_acked()
        handler_log.until("connection_established")
        yield running, connection, near


def test_handlers_of_a_client_connection(
    mptcp_lab: Lab, tmp_path: Path, handler_log: HandlerLog
) -> None:
    first, second = mptcp_lab.paths
    with client_side(mptcp_lab, tmp_path, handler_log) as (running, peer, near):
        (new,) = handler_log.until("new_connection")
        assert (new["server_side"], new["deny_join_id0"]) == (False, False)
        assert new["remote"] == f"{first.server_ip}:{PORT}"
        assert new["token"] == peer.remote_token
        token = f"{new['token']:08x}"

        peer.announce(second.server_ip, address_id=7)
        _, address_id, address = handler_log.until("new_address")
        assert (address_id, second.server_ip in address) == (7, True)
        peer.remove(7)
        _, address_id, removed = handler_log.until("address_removed")
        assert (address_id, removed) == (7, address)

        add = ("subflow", "add", token, second.client_ip, new["remote"])
        assert running.ask(*add).returncode == 0
        (command,) = handler_log.until("manual_command")
        assert command.startswith("CreateSubflow(")
        subflow = peer.accept_join()
        _, seen = handler_log.until("new_subflow")
        assert seen["local"].startswith(f"{second.client_ip}:")
        assert seen["remote"] == new["remote"]
        assert (seen["backup"], seen["backup_by_peer"]) == (False, False)

        for backup in (True, False):
            subflow.prio(backup=backup)
            _, seen = handler_log.until(
                "subflow_priority", lambda _, s, wanted=backup: s["backup_by_peer"] is wanted
            )
            assert seen["local"].startswith(f"{second.client_ip}:")

        subflow.reset(3, transient=True)
        _, seen = handler_log.until("subflow_closed")
        assert seen["error"] == errno.ECONNRESET
        assert (seen["reset_reason"], seen["reset_flags"]) == (3, 1)

        assert running.ask(*add, "--backup").returncode == 0
        ours = peer.accept_join()
        _, seen = handler_log.until("new_subflow", lambda _, s: s["backup"])
        assert seen["backup_by_peer"] is False
        ours.reset()
        _, seen = handler_log.until("subflow_closed", lambda _, s: s["backup"])
        assert (seen["error"], seen["reset_reason"]) == (errno.ECONNRESET, None)

        near.close()
        (closed,) = handler_log.until("connection_closed")
        assert closed["token"] == new["token"]
        assert running.stop() == 0
    assert len(handler_log.calls("init")) == len(handler_log.calls("exit")) == 1
    assert handler_log.rows[0]["handler"] == "init"
    assert handler_log.rows[-1]["handler"] == "exit"


def test_handlers_of_a_server_connection(
    mptcp_lab: Lab, tmp_path: Path, handler_log: HandlerLog
) -> None:
    need_listener_events(mptcp_lab.server)
    first, second = mptcp_lab.paths
    options = ("--plugin-dir", str(handler_log.plugins(witness=0)), "--path-manager=witness")
    with daemon_in(mptcp_lab.server, tmp_path, "--probes=netlink", *options) as running:
        with listen(mptcp_lab.server, first.server_ip) as listener:
            address = SockAddr(first.server_ip, listener.getsockname()[1])
            assert handler_log.until("listener_created") == [str(address)]
            with Peer(mptcp_lab.client.name) as peer:
                connection = peer.connect(first.client_ip, address, deny_join_id0=True)
                connection.send(b"hello")
                connection.wait_acked()
                accepted = listener.accept()[0]
                (new,) = handler_log.until("connection_established")
                assert (new["server_side"], new["deny_join_id0"]) == (True, True)
                assert new["local"] == str(address)

                connection.join(second.client_ip, address_id=4, backup=True)
                _, seen = handler_log.until("new_subflow")
                assert (seen["remote_id"], seen["backup_by_peer"]) == (4, True)
                assert seen["backup"] is False, "the peer set the flag, not we"
                assert seen["remote"].startswith(f"{second.client_ip}:")

                # A subflow that we close has no error.
                ends = (seen["local"], seen["remote"])
                deleted = running.ask("subflow", "del", f"{new['token']:08x}", *ends)
                assert deleted.returncode == 0, deleted.stderr
                _, seen = handler_log.until("subflow_closed")
                assert (seen["error"], seen["reset_reason"]) == (0, None)
                accepted.close()
        assert handler_log.until("listener_closed") == [str(address)]


def test_handlers_of_the_local_network(tmp_path: Path, handler_log: HandlerLog) -> None:
    options = ("--plugin-dir", str(handler_log.plugins(witness=0)), "--path-manager=witness")
    with plugin_host() as host, host.daemon(tmp_path, *options):
        host.veth("a", up=False)
        (link,) = handler_log.until("new_interface", lambda link: link["name"] == "a")
        assert (link["up"], link["running"], link["loopback"]) == (False, False, False)
        host.ip("link set dev a up")
        (link,) = handler_log.until(
            "update_interface", lambda link: link["running"] and link["name"] == "a"
        )
        assert (link["name"], link["up"]) == ("a", True)
        host.ip("addr add 10.0.1.1/24 dev a")
        (address,) = handler_log.until("new_local_address", lambda a: a["ip"] == "10.0.1.1")
        assert (address["if_index"], address["prefix_len"]) == (link["if_index"], 24)
        host.ip("route add default via 10.0.1.2 dev a metric 7")
        (route,) = handler_log.until("new_default_route")
        assert (route["gateway"], route["metric"], route["ipv6"]) == ("10.0.1.2", 7, False)
        host.ip("route del default")
        assert handler_log.until("delete_default_route") == [route]
        host.ip("addr add fd00:1::1/64 dev a")
        handler_log.until("new_local_address", lambda a: a["ip"] == "fd00:1::1" and a["tentative"])
        handler_log.until(
            "new_local_address", lambda a: a["ip"] == "fd00:1::1" and not a["tentative"]
        )
        host.ip("addr del 10.0.1.1/24 dev a")
        assert handler_log.until("delete_local_address") == [address]
        host.ip("link del dev a")
        handler_log.until(
            "delete_interface", lambda removed: removed["if_index"] == link["if_index"]
        )


def test_connections_go_to_one_plugin_and_the_network_to_all_by_priority(
    mptcp_lab: Lab, tmp_path: Path, handler_log: HandlerLog
) -> None:
    need_listener_events(mptcp_lab.server)
    folder = handler_log.plugins(low=-5, middle=0, high=9)
    options = ("--plugin-dir", str(folder), "--path-manager=middle", "--load-plugins=low,high")
    with (
        daemon_in(mptcp_lab.server, tmp_path, "--probes=netlink", *options) as running,
        listen(mptcp_lab.server, mptcp_lab.paths[0].server_ip) as listener,
    ):
        with mptcp_socket(mptcp_lab.client) as near:
            near.connect(listener.getsockname())
            near.send(b"x")
            (new,) = handler_log.until("connection_established")
            with listener.accept()[0]:
                assert running.ask("reload").returncode == 0
                until(lambda: len(handler_log.calls("reloaded")) == 3, "all are kept")
                for file in folder.glob("*.py"):
                    file.write_text(f"{file.read_text()}# edited\n")
                assert running.ask("reload").returncode == 0
                until(lambda: len(handler_log.calls("init")) == 6, "all are new")
        handler_log.until("connection_closed")

    def plugins(handler: str) -> list[str]:
        return [row["plugin"] for row in handler_log.rows if row["handler"] == handler]

    assert plugins("init") == ["high", "middle", "low"] * 2
    assert plugins("reloaded") == ["high", "middle", "low"]
    assert plugins("exit") == ["high", "middle", "low"] * 2
    assert plugins("listener_created") == ["high", "middle", "low"]
    for handler in ("new_connection", "connection_established", "connection_closed"):
        assert plugins(handler) == ["middle"]
    for handler in ("reloaded", "init"):
        served = {
            row["plugin"]: row["served"] for row in handler_log.rows if row["handler"] == handler
        }
        assert served == {"high": [], "middle": [new["token"]], "low": []}
    # `keep` is true for plugins that stay configured.
    assert [row["keep"] for row in handler_log.rows if row["handler"] == "exit"] == [True] * 3 + [
        False
    ] * 3


def test_every_handler_is_tested() -> None:
    """Those in `own` follow a plugin's own commands; the tests of the shipped plugins call them."""
    text = Path(__file__).read_text()
    own = {
        "alarm", "sampled", "wake", "wake_connection", "answered", "refused", "endpoints_read",
        "path_probed",
    }  # fmt: skip
    handlers = {
        name
        for name, value in vars(Plugin).items()
        if callable(value) and not name.startswith("_") and name != "Options"
    }
    assert {name for name in handlers if f'"{name}"' not in text} == set()
    assert own < handlers
