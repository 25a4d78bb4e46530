# SPDX-License-Identifier: BSD-3-Clause
"""The endpoint table with live connections: when the daemon stops, and with manual commands."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from mptcpd_ebpf.kernel import diag
from mptcpd_ebpf.lab import Lab, RequestResponse, ShortConnections
from mptcpd_ebpf.lab import Path as LabPath
from mptcpd_ebpf.lab.kernel_path_manager import raise_limits
from tests.netns.plugin_host import PluginHost
from tests.waiting import INTERVAL_MS, SLOWNESS, until

TALK = RequestResponse(interval_ms=INTERVAL_MS)
ADDR_ADV = "--path-manager=addr_adv"


@pytest.fixture
def lab(make_mptcp_lab: Callable[..., Lab]) -> Lab:
    """A client with the in-kernel path manager, and a server that accepts joins."""
    lab = make_mptcp_lab([LabPath(), LabPath()])
    lab.client.sysctl("mptcp.pm_type", 0)
    raise_limits(lab.server)
    return lab


@pytest.fixture
def host(lab: Lab) -> PluginHost:
    return PluginHost(f"/run/netns/{lab.client.name}")


def carried_by(lab: Lab) -> set[str]:
    """The local addresses of subflows."""
    with lab.client.entered():
        return {subflow.local.ip for subflow in diag.subflows()}


def test_a_stopping_daemon_adds_no_endpoint(lab: Lab, host: PluginHost, tmp_path: Path) -> None:
    first, second = lab.paths
    with host.daemon(tmp_path, ADDR_ADV) as running:
        host.expect(first.client_ip, second.client_ip)
        traffic = lab.start(TALK)
        until(lambda: len(carried_by(lab)) == 2, "both paths are used")
        host.ip("mptcp endpoint flush")
        added = running.log.count("add endpoint")
        assert running.stop() == 0
        assert running.log.count("add endpoint") == added == 2
        traffic.stop()
    assert host.table == set()


def test_a_stopping_daemon_handles_waiting_events_before_it_removes_endpoints(
    lab: Lab, host: PluginHost, tmp_path: Path
) -> None:
    """A connection that ended while the daemon was stopped (SIGSTOP) keeps no endpoint."""
    first, second = lab.paths
    with host.daemon(tmp_path, ADDR_ADV) as running:
        host.expect(first.client_ip, second.client_ip)
        traffic = lab.start(TALK)
        until(lambda: len(carried_by(lab)) == 2, "both paths are used")
        running.process.send_signal(signal.SIGSTOP)
        # More events than the daemon reads at once precede the end of the connection.
        lab.start(ShortConnections(count=150)).result()
        traffic.stop()
        until(lambda: not carried_by(lab), "the connection is gone")
        running.process.send_signal(signal.SIGTERM)
        running.process.send_signal(signal.SIGCONT)
        assert running.process.wait(20 * SLOWNESS) == 0
        assert "last usable" not in running.log
    assert host.table == set()


def test_a_flush_is_refused_only_for_addresses_in_the_table(
    lab: Lab, host: PluginHost, tmp_path: Path
) -> None:
    with host.daemon(tmp_path) as running:
        traffic = lab.start(TALK)
        until(lambda: carried_by(lab) == {lab.paths[0].client_ip}, "a connection")
        assert running.ask("endpoint", "flush").returncode == 0
        host.ip(f"mptcp endpoint add {lab.paths[0].client_ip} subflow")
        refused = running.ask("endpoint", "flush")
        assert refused.returncode == 1
        assert "has its last usable subflow on" in refused.stderr
        assert carried_by(lab)
        traffic.stop()


@pytest.mark.parametrize("words", [("flush",), ("del", "1"), ("change", "1", "backup")])
def test_the_table_does_not_affect_connections_of_the_userspace_path_manager(
    lab: Lab, host: PluginHost, tmp_path: Path, words: tuple[str, ...]
) -> None:
    lab.client.sysctl("mptcp.pm_type", 1)
    ip = lab.paths[0].client_ip
    host.ip(f"mptcp endpoint add {ip} subflow id 1")
    with host.daemon(tmp_path) as running:
        traffic = lab.start(TALK)
        until(lambda: carried_by(lab) == {ip}, "a connection")
        with lab.client.entered():
            before = [(subflow.cookie, subflow.backup) for subflow in diag.subflows()]
        done = running.ask("endpoint", *words)
        assert done.returncode == 0, done.stderr
        with lab.client.entered():
            after = [(subflow.cookie, subflow.backup) for subflow in diag.subflows()]
        assert after == before
        traffic.stop()
