# SPDX-License-Identifier: BSD-3-Clause
"""The endpoint table, the daemon, and connections that live on it: at the end, and by hand."""

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
    """A client whose new connections the in-kernel path manager has, and a server to join."""
    lab = make_mptcp_lab([LabPath(), LabPath()])
    lab.client.sysctl("mptcp.pm_type", 0)
    raise_limits(lab.server)
    return lab


@pytest.fixture
def host(lab: Lab) -> PluginHost:
    return PluginHost(f"/run/netns/{lab.client.name}")


def carried_by(lab: Lab) -> set[str]:
    """Our addresses that subflows are on."""
    with lab.client.entered():
        return {subflow.local.ip for subflow in diag.subflows()}


def test_at_the_end_nothing_new_is_begun(lab: Lab, host: PluginHost, tmp_path: Path) -> None:
    first, second = lab.paths
    with host.daemon(tmp_path, ADDR_ADV) as running:
        host.expect(first.client_ip, second.client_ip)
        traffic = lab.start(TALK)
        until(lambda: len(carried_by(lab)) == 2, "both paths are used")
        host.ip("mptcp endpoint flush")
        begun = running.log.count("add endpoint")
        assert running.stop() == 0
        assert running.log.count("add endpoint") == begun == 2
        traffic.stop()
    assert host.table == set()


def test_a_last_word_is_judged_by_what_has_happened_before_it(
    lab: Lab, host: PluginHost, tmp_path: Path
) -> None:
    """A connection that ended unheard keeps no endpoint."""
    first, second = lab.paths
    with host.daemon(tmp_path, ADDR_ADV) as running:
        host.expect(first.client_ip, second.client_ip)
        traffic = lab.start(TALK)
        until(lambda: len(carried_by(lab)) == 2, "both paths are used")
        running.process.send_signal(signal.SIGSTOP)
        # More than the daemon reads at once comes before the end that matters.
        lab.start(ShortConnections(count=150)).result()
        traffic.stop()
        until(lambda: not carried_by(lab), "the connection is gone")
        running.process.send_signal(signal.SIGTERM)
        running.process.send_signal(signal.SIGCONT)
        assert running.process.wait(20 * SLOWNESS) == 0
        assert "last usable" not in running.log
    assert host.table == set()


def test_a_flush_concerns_only_what_is_in_the_table(
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


@pytest.mark.parametrize("order", [("flush",), ("del", "1"), ("change", "1", "backup")])
def test_the_table_is_nothing_to_connections_of_the_userspace_path_manager(
    lab: Lab, host: PluginHost, tmp_path: Path, order: tuple[str, ...]
) -> None:
    lab.client.sysctl("mptcp.pm_type", 1)
    ip = lab.paths[0].client_ip
    host.ip(f"mptcp endpoint add {ip} subflow id 1")
    with host.daemon(tmp_path) as running:
        traffic = lab.start(TALK)
        until(lambda: carried_by(lab) == {ip}, "a connection")
        with lab.client.entered():
            before = [(subflow.cookie, subflow.backup) for subflow in diag.subflows()]
        done = running.ask("endpoint", *order)
        assert done.returncode == 0, done.stderr
        with lab.client.entered():
            after = [(subflow.cookie, subflow.backup) for subflow in diag.subflows()]
        assert after == before
        traffic.stop()
