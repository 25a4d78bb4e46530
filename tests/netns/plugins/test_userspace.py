# SPDX-License-Identifier: BSD-3-Clause
"""The plugins of mode userspace, with real connections on the real kernel."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from mptcpd_ebpf.core.commands import AnnounceAddress
from mptcpd_ebpf.kernel import diag
from mptcpd_ebpf.kernel.pm_client import PmClient
from mptcpd_ebpf.lab import Lab, RequestResponse
from mptcpd_ebpf.lab import Path as LabPath
from mptcpd_ebpf.lab.kernel_path_manager import raise_limits
from mptcpd_ebpf.lab.wire import AddAddr, MPJoinSyn, RemoveAddr, Wire
from tests.core.scenario import TCP_ESTABLISHED
from tests.netns.daemon_process import RunningDaemon, daemon
from tests.waiting import INTERVAL_MS, SLOWNESS, until

Made = Callable[..., Lab]


@contextmanager
def managed(
    lab: Lab, folder: Path, plugin: str, *, on: str = "client", **options: Any
) -> Iterator[RunningDaemon]:
    """A daemon on one of the hosts, with one plugin and its options."""
    file = folder / "c.yaml"
    file.write_text(yaml.safe_dump({"path_manager": plugin, "plugins": {plugin: options}}))
    prefix = ("nsenter", f"--net=/run/netns/{lab.hosts[on].name}", "--")
    with daemon(folder, "--probes=netlink", "--config", str(file), prefix=prefix) as running:
        yield running
        assert "is excluded" not in running.log


def subflows(running: RunningDaemon) -> list[tuple[str, str, bool]]:
    """Local address, remote address and backup flag of each established subflow."""
    connections = json.loads(running.ask("ls", "--json").stdout)["connections"]
    return sorted(
        (s["local"].rpartition(":")[0], s["remote"].rpartition(":")[0], s["backup"])
        for connection in connections
        for s in connection["subflows"]
        if s["state"] == "established"
    )


def expect(running: RunningDaemon, *wanted: tuple[str, str, bool]) -> None:
    until(
        lambda: subflows(running) == sorted(wanted),
        f"subflows {sorted(wanted)}; there are {subflows(running)}",
        15,
    )


def test_fullmesh(make_mptcp_lab: Made, tmp_path: Path) -> None:
    lab = make_mptcp_lab([LabPath(), LabPath()])
    one, two = lab.paths
    lab.server.sysctl("mptcp.pm_type", 1)
    with managed(lab, tmp_path, "fullmesh") as running:
        traffic = lab.start(RequestResponse(interval_ms=INTERVAL_MS))
        first = [(one.client_ip, one.server_ip, False), (two.client_ip, one.server_ip, False)]
        expect(running, *first)
        with lab.server.entered(), PmClient() as pm:
            (connection,) = json.loads(running.ask("ls", "--json").stdout)["connections"]
            token = _server_token(lab, connection["local"])
            announce = AnnounceAddress(token=token, ip=two.server_ip, address_id=5, reason="test")
            assert pm.execute_now(announce).errno == 0
        until(
            lambda: {(a, b) for a, b, _ in subflows(running)} > {(a, b) for a, b, _ in first},
            "the announced address is joined",
        )
        assert (two.client_ip, two.server_ip, False) in subflows(running)
        traffic.stop()


def test_fullmesh_over_ipv6(make_mptcp_lab: Made, tmp_path: Path) -> None:
    """Two addresses on each side make four subflows; IPv4 is not used."""
    lab = make_mptcp_lab([LabPath(), LabPath()], ip="both")
    lab.server.sysctl("mptcp.pm_type", 1)
    ours = [f"[{path.client_ip6}]" for path in lab.paths]
    theirs = [f"[{path.server_ip6}]" for path in lab.paths]
    with managed(lab, tmp_path, "fullmesh") as running:
        traffic = lab.start(RequestResponse(interval_ms=INTERVAL_MS, family="6"))
        expect(running, *[(our, theirs[0], False) for our in ours])
        with lab.server.entered(), PmClient() as pm:
            (connection,) = json.loads(running.ask("ls", "--json").stdout)["connections"]
            token = _server_token(lab, connection["local"])
            second = lab.paths[1].server_ip6
            assert second is not None
            announce = AnnounceAddress(token=token, ip=second, address_id=5, reason="test")
            assert pm.execute_now(announce).errno == 0
        expect(running, *[(our, their, False) for our in ours for their in theirs])
        traffic.stop()


def _server_token(lab: Lab, client: str) -> int:
    with lab.server.entered():
        for found in diag.snapshot(with_owners=False).connections:
            if str(found.remote) == client:
                return found.token
    raise AssertionError(f"the server has no connection with {client}")


def test_ndiffports(make_mptcp_lab: Made, tmp_path: Path) -> None:
    lab = make_mptcp_lab([LabPath(), LabPath()])
    one = lab.paths[0]
    with managed(lab, tmp_path, "ndiffports", subflows=3) as running:
        traffic = lab.start(RequestResponse(interval_ms=INTERVAL_MS))
        expect(running, *[(one.client_ip, one.server_ip, False)] * 3)
        traffic.stop()


def test_sspi_keeps_one_subflow_per_interface(make_mptcp_lab: Made, tmp_path: Path) -> None:
    lab = make_mptcp_lab([LabPath(), LabPath()])
    one, two = lab.paths
    with managed(lab, tmp_path, "sspi") as running:
        traffic = lab.start(RequestResponse(interval_ms=INTERVAL_MS))
        both = [(one.client_ip, one.server_ip, False), (two.client_ip, one.server_ip, False)]
        expect(running, *both)
        (connection,) = json.loads(running.ask("ls", "--json").stdout)["connections"]
        second = running.ask(
            "subflow", "add", connection["token"], two.client_ip, connection["remote"]
        )
        assert second.returncode == 0, second.stderr
        until(lambda: "has a subflow already" in running.log, "the second one is closed")
        expect(running, *both)
        traffic.stop()


@pytest.mark.parametrize("loss", ["the address", "the carrier", "the configuration"])
def test_sspi_on_the_server_announces_withdraws_and_announces_again(
    make_mptcp_lab: Made, tmp_path: Path, loss: str
) -> None:
    """The peer, an in-kernel path manager, follows each time, as the wire shows."""
    lab = make_mptcp_lab([LabPath(), LabPath()])
    one, two = lab.paths
    lab.client.sysctl("mptcp.pm_type", 0)
    lab.client.run(["ip", "mptcp", "limits", "set", "subflows", "4", "add_addr_accepted", "4"])
    both = {one.server_ip, two.server_ip}

    def carried_by() -> set[str]:
        return {local for local, _, _ in subflows(running)}

    with managed(lab, tmp_path, "sspi", on="server") as running, Wire(lab.server.name) as wire:

        def lose(lost: bool) -> None:
            if loss == "the address":
                (two.remove_address if lost else two.restore_address)(end="server")
            elif loss == "the carrier":
                two.carrier(not lost, end="server")
            else:
                file = tmp_path / "c.yaml"
                kept = file.read_text().partition("interfaces")[0]
                file.write_text(kept + f"interfaces: {{deny: [{two.server_if}]}}\n" * lost)
                assert running.ask("reload").returncode == 0

        traffic = lab.start(RequestResponse(interval_ms=INTERVAL_MS))
        since = 0
        for _ in range(2):
            until(lambda: carried_by() == both, f"the client joins the address {running.log}")
            announced = wire.expect(
                AddAddr(echo=0, address=two.server_ip), direction="out", since=since
            )
            since = time.monotonic_ns()
            lose(True)
            withdrawn = wire.expect(
                RemoveAddr(address_ids=[announced.mptcp[0].address_id]),
                direction="out",
                interface=one.server_if,
                since=since,
            )
            assert withdrawn
            until(lambda: carried_by() == {one.server_ip}, f"the subflow is closed {running.log}")
            since = time.monotonic_ns()
            lose(False)
        until(lambda: carried_by() == both, f"the client joins again {running.log}")
        assert "EINVAL" not in running.log
        traffic.stop()


def test_backup_takes_over_and_returns_to_the_primary(make_mptcp_lab: Made, tmp_path: Path) -> None:
    lab = make_mptcp_lab([LabPath(), LabPath()])
    one, two = lab.paths
    primary = (one.client_ip, one.server_ip, False)
    standby = (two.client_ip, one.server_ip, True)
    with managed(lab, tmp_path, "backup") as running:
        traffic = lab.start(RequestResponse(interval_ms=INTERVAL_MS))
        expect(running, primary, standby)
        running.until_logged(f"create backup subflow {two.client_ip}")
        one.carrier(False)
        expect(running, standby)
        one.carrier(True)
        expect(running, primary, standby)
        traffic.stop()


def test_backup_moves_to_the_primary_that_the_options_name(
    make_mptcp_lab: Made, tmp_path: Path
) -> None:
    lab = make_mptcp_lab([LabPath(), LabPath()])
    one, two = lab.paths
    with managed(lab, tmp_path, "backup", primary=two.client_if) as running:
        traffic = lab.start(RequestResponse(interval_ms=INTERVAL_MS))
        expect(running, (one.client_ip, one.server_ip, True), (two.client_ip, one.server_ip, False))
        traffic.stop()


def test_reconnect_replaces_a_subflow_that_was_reset(make_mptcp_lab: Made, tmp_path: Path) -> None:
    lab = make_mptcp_lab([LabPath(), LabPath()])
    one, two = lab.paths
    both = [(one.client_ip, one.server_ip, False), (two.client_ip, one.server_ip, False)]
    with managed(lab, tmp_path, "reconnect", first_pause_ms=50) as running:
        traffic = lab.start(RequestResponse(interval_ms=INTERVAL_MS))
        until(lambda: len(subflows(running)) == 1, "the connection is established")
        (connection,) = json.loads(running.ask("ls", "--json").stdout)["connections"]
        added = running.ask(
            "subflow", "add", connection["token"], two.client_ip, connection["remote"]
        )
        assert added.returncode == 0, added.stderr
        expect(running, *both)
        assert one.inject_resets(within_s=SLOWNESS) > 0
        until(lambda: "a reset without a reason" in running.log, "the cause is logged")
        expect(running, *both)
        # A subflow that is closed regularly is not lost.
        removed = running.ask("subflow", "del", connection["token"], *_ends(running, two.client_ip))
        assert removed.returncode == 0, removed.stderr
        expect(running, both[0])
        traffic.stop()


def _ends(running: RunningDaemon, local_ip: str) -> tuple[str, str]:
    (connection,) = json.loads(running.ask("ls", "--json").stdout)["connections"]
    for subflow in connection["subflows"]:
        if subflow["local"].startswith(f"{local_ip}:"):
            return subflow["local"], subflow["remote"]
    raise AssertionError(f"no subflow from {local_ip}")


def test_refresh_replaces_the_slowest_subflow(make_mptcp_lab: Made, tmp_path: Path) -> None:
    lab = make_mptcp_lab([LabPath(delay_ms=5, rate_mbit=20, loss_percent=2)])
    raise_limits(lab.server)
    options: dict[str, Any] = {"subflows": 3, "interval_s": 1, "lag_percent": 100, "least_kib": 64}
    with managed(lab, tmp_path, "refresh", **options) as running:
        # Enough that all subflows carry data, but with pauses: Linux 6.1 and 6.12 accept no join
        # while lost data is missing.
        traffic = lab.start(RequestResponse(size=262_144, interval_ms=20 * INTERVAL_MS))
        until(lambda: "it is the slowest" in running.log, "one was replaced", 20)
        until(lambda: len(subflows(running)) == 3, "there are as many as wanted")
        traffic.stop()


@pytest.mark.parametrize("plugin", ["adaptive", "backup", "fullmesh", "ndiffports", "sspi"])
def test_connections_of_the_in_kernel_path_manager_are_left_to_it(
    make_mptcp_lab: Made, tmp_path: Path, plugin: str
) -> None:
    """One older than the daemon, and one that was created after the setting was changed."""
    lab = make_mptcp_lab([LabPath(), LabPath()])
    lab.client.sysctl("mptcp.pm_type", 0)
    older = lab.start(RequestResponse(interval_ms=INTERVAL_MS))
    lab.paths[0].wait_for_subflow()
    with managed(lab, tmp_path, plugin) as running:
        assert "1 of the connections use the in-kernel path manager" in running.log
        lab.client.sysctl("mptcp.pm_type", 0)
        second = lab.start(RequestResponse(interval_ms=INTERVAL_MS))
        refusal = "creating the subflow: EINVAL"
        until(lambda: refusal in running.log, "the kernel refuses the first join")
        lab.client.sysctl("mptcp.pm_type", 1)
        newer = lab.start(RequestResponse(interval_ms=INTERVAL_MS))
        until(lambda: len(subflows(running)) == 4, "the third one has two subflows")
        assert running.log.count(refusal) == 1
        for traffic in (newer, second, older):
            traffic.stop()


@pytest.mark.parametrize("plugin", ["adaptive", "fullmesh"])
@pytest.mark.parametrize("loss", ["the address", "the carrier", "the configuration"])
def test_a_lost_address_is_withdrawn_over_another_path(
    make_mptcp_lab: Made, tmp_path: Path, plugin: str, loss: str
) -> None:
    """So the peer at once leaves a path over which no FIN can reach it."""
    lab = make_mptcp_lab([LabPath(), LabPath()])
    one, two = lab.paths
    with managed(lab, tmp_path, plugin) as running, Wire(lab.client.name) as wire:
        traffic = lab.start(RequestResponse(interval_ms=INTERVAL_MS))
        two.wait_for_subflow()
        join = wire.expect(MPJoinSyn, interface=two.client_if, direction="out")
        if loss == "the address":
            two.remove_address()
        elif loss == "the carrier":
            two.carrier(False)
        else:
            with (tmp_path / "c.yaml").open("a") as file:
                file.write(f"interfaces: {{deny: [{two.client_if}]}}\n")
            assert running.ask("reload").returncode == 0
        wire.expect(
            RemoveAddr(address_ids=[join.mptcp[0].address_id]),
            direction="out",
            interface=one.client_if,
        )
        with lab.server.entered():
            until(
                lambda: [s.state for s in diag.subflows()].count(TCP_ESTABLISHED) == 1,
                "the server has one subflow left",
            )
        expect(running, (one.client_ip, one.server_ip, False))
        assert "EINVAL" not in running.log
        traffic.stop()


def test_a_subflow_that_the_operator_closes_is_not_created_again(
    make_mptcp_lab: Made, tmp_path: Path
) -> None:
    lab = make_mptcp_lab([LabPath(), LabPath()])
    one, two = lab.paths
    first = (one.client_ip, one.server_ip, False)
    with managed(lab, tmp_path, "fullmesh") as running:
        traffic = lab.start(RequestResponse(interval_ms=INTERVAL_MS))
        expect(running, first, (two.client_ip, one.server_ip, False))
        (connection,) = json.loads(running.ask("ls", "--json").stdout)["connections"]
        removed = running.ask("subflow", "del", connection["token"], *_ends(running, two.client_ip))
        assert removed.returncode == 0, removed.stderr
        expect(running, first)
        # On a new address the plugin checks all missing subflows.
        another = f"{one.client_ip.rpartition('.')[0]}.77"
        lab.client.run(["ip", "address", "add", f"{another}/24", "dev", one.client_if])
        expect(running, first, (another, one.server_ip, False))
        traffic.stop()
