# SPDX-License-Identifier: BSD-3-Clause
"""Connections survive every change of address.

The plugins that make a connection's subflows are tried alike; the kernel's own path manager
answers each of these situations with its endpoints set for the new addresses in time.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mptcpd_ebpf.lab import Lab, LivePath, RequestResponse
from mptcpd_ebpf.lab import Path as LabPath
from mptcpd_ebpf.lab.kernel_path_manager import raise_limits
from mptcpd_ebpf.lab.wire import DSS, Wire
from tests.netns.daemon_host import daemon_in, subflows
from tests.netns.daemon_process import RunningDaemon
from tests.netns.field.uplink import Uplink
from tests.waiting import INTERVAL_MS, until

MakeLab = Callable[..., Lab]
PLUGINS = ("adaptive", "fullmesh", "backup", "sspi")
TALK = RequestResponse(interval_ms=INTERVAL_MS)


@contextmanager
def managed(lab: Lab, folder: Path, plugin: str) -> Iterator[RunningDaemon]:
    raise_limits(lab.server)
    with daemon_in(lab.client, folder, f"--path-manager={plugin}") as running:
        yield running
        assert "is excluded" not in running.log
        assert "Traceback" not in running.log


def addresses(running: RunningDaemon, token: int | None) -> list[str]:
    """The local addresses of the established subflows, sorted."""
    return sorted(
        subflow["local"].rpartition(":")[0]
        for subflow in subflows(running, token)
        if subflow["state"] == "established"
    )


def until_from(running: RunningDaemon, token: int | None, *wanted: str) -> None:
    until(
        lambda: addresses(running, token) == sorted(wanted),
        lambda: f"from {wanted}; is from {addresses(running, token)}\n{running.log}",
        10,
    )


def carried(running: RunningDaemon, token: int | None, address: str) -> int:
    return sum(
        subflow["bytes_acked"] or 0
        for subflow in subflows(running, token)
        if subflow["local"].startswith(f"{address}:")
    )


def until_carries(running: RunningDaemon, token: int | None, address: str) -> None:
    """Waits for an acknowledged message more from an address."""
    before = carried(running, token, address)
    until(
        lambda: carried(running, token, address) > before + 100,
        lambda: f"data from {address}\n{running.log}",
        10,
    )


def until_both_carry(running: RunningDaemon, token: int | None, paths: list[LivePath]) -> None:
    """Waits until a plugin has made its subflows, and data was acknowledged."""
    until_from(running, token, *(path.client_ip for path in paths))
    until(lambda: sum(carried(running, token, path.client_ip) for path in paths) > 100, "data", 10)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_the_only_uplink_changes_its_network(
    make_mptcp_lab: MakeLab, tmp_path: Path, plugin: str
) -> None:
    lab = make_mptcp_lab([LabPath(delay_ms=5)])
    uplink = Uplink(lab, lab.paths[0])
    with managed(lab, tmp_path, plugin) as running:
        traffic = lab.start(TALK)
        until_carries(running, traffic.token, uplink.address(0))
        uplink.leave(0)
        until(lambda: uplink.address(0) not in lab.client.run(["ip", "a"]).stdout, "it is gone")
        uplink.enter(1)
        until_carries(running, traffic.token, uplink.address(1))
        until_from(running, traffic.token, uplink.address(1))
        assert traffic.stop().unanswered == 0


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_new_address_comes_before_the_old_one_goes(
    make_mptcp_lab: MakeLab, tmp_path: Path, plugin: str
) -> None:
    lab = make_mptcp_lab([LabPath(delay_ms=5)])
    uplink = Uplink(lab, lab.paths[0])
    with managed(lab, tmp_path, plugin) as running:
        traffic = lab.start(TALK)
        until_carries(running, traffic.token, uplink.address(0))
        uplink.enter(1)
        uplink.leave(0)
        until_carries(running, traffic.token, uplink.address(1))
        until_from(running, traffic.token, uplink.address(1))
        assert traffic.stop().unanswered == 0


@pytest.mark.parametrize("plugin", PLUGINS)
def test_the_address_of_the_initial_subflow_goes_and_returns(
    make_mptcp_lab: MakeLab, tmp_path: Path, plugin: str
) -> None:
    lab = make_mptcp_lab([LabPath(delay_ms=5), LabPath(delay_ms=10)])
    first, second = lab.paths
    with managed(lab, tmp_path, plugin) as running:
        traffic = lab.start(TALK)
        until_both_carry(running, traffic.token, lab.paths)
        for _ in range(2):
            first.remove_address()
            until_from(running, traffic.token, second.client_ip)
            first.restore_address()
            until_from(running, traffic.token, first.client_ip, second.client_ip)
        assert traffic.stop().unanswered == 0


@pytest.mark.parametrize("plugin", ["adaptive", "fullmesh", "sspi"])
def test_the_route_comes_after_the_address(
    make_mptcp_lab: MakeLab, tmp_path: Path, plugin: str
) -> None:
    lab = make_mptcp_lab([LabPath(delay_ms=5), LabPath(delay_ms=5)])
    second = Uplink(lab, lab.paths[1])
    lab.client.run(["ip", "rule", "del", "from", second.address(0)], check=False)
    second.leave(0)
    with managed(lab, tmp_path, plugin) as running:
        traffic = lab.start(TALK)
        until_from(running, traffic.token, lab.paths[0].client_ip)
        second.enter(1, route=False)
        until(lambda: second.address(1) in lab.client.run(["ip", "a"]).stdout, "the address")
        second.get_route(1)
        until_from(running, traffic.token, lab.paths[0].client_ip, second.address(1))
        assert traffic.stop().unanswered == 0


def test_all_paths_die_and_the_slower_returns_first(
    make_mptcp_lab: MakeLab, tmp_path: Path
) -> None:
    lab = make_mptcp_lab([LabPath(delay_ms=5), LabPath(delay_ms=40)])
    fast, slow = lab.paths
    with (
        Wire(lab.client.name, snap=200) as wire,
        managed(lab, tmp_path, "adaptive") as running,
    ):
        traffic = lab.start(TALK)
        until_both_carry(running, traffic.token, lab.paths)
        # The peer has confirmed the join: the subflow is used from now on.
        wire.expect(DSS, interface=slow.client_if, direction="in", within=10)
        for path in lab.paths:
            path.blackhole()
        until(lambda: running.log.count("create subflow") > 1, "a join beside the last", 10)
        slow.heal()
        until_carries(running, traffic.token, slow.client_ip)
        fast.heal()
        until_from(running, traffic.token, fast.client_ip, slow.client_ip)
        assert traffic.stop().unanswered == 0


def test_the_computer_sleeps_while_its_address_changes(
    make_mptcp_lab: MakeLab, tmp_path: Path
) -> None:
    lab = make_mptcp_lab([LabPath(delay_ms=5)])
    uplink = Uplink(lab, lab.paths[0])
    with managed(lab, tmp_path, "adaptive") as running:
        traffic = lab.start(TALK)
        until_carries(running, traffic.token, uplink.address(0))
        os.kill(running.process.pid, signal.SIGSTOP)
        try:
            uplink.leave(0)
            uplink.enter(1)
        finally:
            os.kill(running.process.pid, signal.SIGCONT)
        until_carries(running, traffic.token, uplink.address(1))
        until_from(running, traffic.token, uplink.address(1))
        assert traffic.stop().unanswered == 0
