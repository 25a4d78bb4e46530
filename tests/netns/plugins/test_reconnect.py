# SPDX-License-Identifier: BSD-3-Clause
"""reconnect on the real kernel: it distinguishes the causes of a loss, and reacts to each."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mptcpd_ebpf.lab import Lab, LivePath, RequestResponse
from mptcpd_ebpf.lab import Path as LabPath
from mptcpd_ebpf.lab.kernel_path_manager import raise_limits
from mptcpd_ebpf.lab.traffic.running import Running
from tests.netns.daemon_host import (
    PATIENCE_S,
    daemon_in,
    decisions,
    make_room_behind_holes,
    subflows,
)
from tests.netns.daemon_process import RunningDaemon
from tests.netns.scripted_peer import kernel_connected
from tests.waiting import INTERVAL_MS, until

MakeLab = Callable[..., Lab]
Traffic = Running[Any]


@contextmanager
def two_subflows(
    lab: Lab, folder: Path, *, backup: bool = False
) -> Iterator[tuple[RunningDaemon, Traffic]]:
    """A connection over the first path, a manual subflow over the second, and a daemon."""
    raise_limits(lab.server)
    make_room_behind_holes(lab)
    file = folder / "c.yaml"
    file.write_text("path_manager: reconnect\nplugins: {reconnect: {first_pause_ms: 100}}\n")
    with daemon_in(lab.client, folder, "--probes=core", "--config", str(file)) as running:
        traffic = lab.start(RequestResponse(interval_ms=INTERVAL_MS))
        until(lambda: len(established(running, traffic)) == 1, "the connection", PATIENCE_S)
        (first,) = subflows(running, traffic.token)
        arguments = [f"{traffic.token:08x}", lab.paths[1].client_ip, first["remote"]]
        add = ["subflow", "add", *arguments, *(["--backup"] if backup else [])]
        # The first subflow is established before the connection is.
        until(lambda: running.ask(*add).returncode == 0, "a manual join", PATIENCE_S)
        until(lambda: len(established(running, traffic)) == 2, "a manual subflow", PATIENCE_S)
        if not backup:
            # Before the peer has confirmed the join, it sends nothing that a fault could stop.
            until(lambda: carries_data(lab.paths[1], running, traffic), "data on it", PATIENCE_S)
        yield running, traffic
        assert "is excluded" not in running.log
        assert "Traceback" not in running.log
        assert traffic.stop().unanswered == 0


def established(running: RunningDaemon, traffic: Traffic) -> list[str]:
    """The local addresses and ports of the established subflows."""
    return [s["local"] for s in subflows(running, traffic.token) if s["state"] == "established"]


def subflows_from(path: LivePath, running: RunningDaemon, traffic: Traffic) -> list[str]:
    """Those of them with a path's local address."""
    return [each for each in established(running, traffic) if each.startswith(f"{path.client_ip}:")]


def carries_data(path: LivePath, running: RunningDaemon, traffic: Traffic) -> bool:
    """Whether more than the SYN was acknowledged on a path."""
    return any(
        (each["bytes_acked"] or 0) > 1
        for each in subflows(running, traffic.token)
        if each["local"].startswith(f"{path.client_ip}:")
    )


def until_replaced(
    path: LivePath, old: list[str], running: RunningDaemon, traffic: Traffic
) -> None:
    def done() -> bool:
        now = subflows_from(path, running, traffic)
        return len(now) == 1 and now != old

    until(done, lambda: f"a new subflow in place of {old}\n{running.log}", PATIENCE_S)


@pytest.fixture
def nat_lab(make_mptcp_lab: MakeLab) -> Lab:
    return make_mptcp_lab([LabPath(delay_ms=50), LabPath(delay_ms=1, nat=True)])


def test_a_nat_that_lost_its_state(nat_lab: Lab, tmp_path: Path) -> None:
    second = nat_lab.paths[1]
    with two_subflows(nat_lab, tmp_path) as (running, traffic):
        old = subflows_from(second, running, traffic)
        assert second.expire_nat() > 0
        until_replaced(second, old, running, traffic)
        # A line that exceeds those of its second is logged at the second's end.
        running.until_logged("is silent; is a new handshake answered?")
        running.until_logged("a NAT or firewall lost its state")
        # At the first attempt, unless out-of-order data waits there (Linux 6.1 and 6.12).
        assert "failed" not in running.log or "closed it at once" in running.log


def test_a_nat_that_lost_its_state_and_creates_a_new_binding(nat_lab: Lab, tmp_path: Path) -> None:
    """The server has no connection with that port, and resets it without a reason."""
    second = nat_lab.paths[1]
    second.router.sysctl("netfilter.nf_conntrack_tcp_loose", 1)
    rule = "iptables -t nat -R POSTROUTING 1 -o far -j MASQUERADE --random-fully"
    second.router.run(rule.split())
    with two_subflows(nat_lab, tmp_path) as (running, traffic):
        old = subflows_from(second, running, traffic)
        assert second.expire_nat() > 0
        until_replaced(second, old, running, traffic)
        running.until_logged("a reset without a reason, perhaps by a NAT that lost its binding")


def test_a_path_that_is_down_is_retried_with_pauses(
    make_mptcp_lab: MakeLab, tmp_path: Path
) -> None:
    lab = make_mptcp_lab([LabPath(delay_ms=50), LabPath(delay_ms=1)])
    second = lab.paths[1]
    with two_subflows(lab, tmp_path) as (running, traffic):
        second.blackhole()
        until(lambda: "(failed 1 time(s) before)" in running.log, "a second try", PATIENCE_S)
        second.heal()
        until(
            lambda: len(established(running, traffic)) == 2,
            f"both again\n{running.log}",
            PATIENCE_S,
        )
        assert "a reset without a reason" not in running.log


def test_a_subflow_that_the_kernel_gave_up_is_replaced(
    make_mptcp_lab: MakeLab, tmp_path: Path
) -> None:
    lab = make_mptcp_lab([LabPath(delay_ms=50), LabPath(delay_ms=1)])
    lab.client.sysctl("ipv4.tcp_retries2", 1)
    second = lab.paths[1]
    with two_subflows(lab, tmp_path) as (running, traffic):
        old = subflows_from(second, running, traffic)
        second.blackhole()
        until(
            lambda: "nothing was acknowledged until the kernel gave up" in running.log,
            f"it is logged\n{running.log}",
            PATIENCE_S,
        )
        second.heal()
        until_replaced(second, old, running, traffic)


def test_a_backup_subflow_is_replaced_by_a_backup_subflow(
    make_mptcp_lab: MakeLab, tmp_path: Path
) -> None:
    lab = make_mptcp_lab([LabPath(), LabPath()])
    first, second = lab.paths
    with two_subflows(lab, tmp_path, backup=True) as (running, traffic):
        (old,) = subflows_from(second, running, traffic)
        lab.server.run(["ss", "-K", "dst", second.client_ip])
        until_replaced(second, [old], running, traffic)
        (backup,) = [
            s["backup"]
            for s in subflows(running, traffic.token)
            if s["local"].startswith(f"{second.client_ip}:")
        ]
        assert backup is True
        assert subflows_from(first, running, traffic)


def test_the_reset_reason_of_the_peer_decides(mptcp_lab: Lab, tmp_path: Path) -> None:
    second = mptcp_lab.paths[1].client_ip
    file = tmp_path / "c.yaml"
    file.write_text("path_manager: reconnect\nplugins: {reconnect: {first_pause_ms: 100}}\n")

    with (
        daemon_in(mptcp_lab.client, tmp_path, "--probes=core", "--config", str(file)) as running,
        kernel_connected(mptcp_lab) as (_, peer, _),
    ):
        (known,) = json.loads(running.ask("ls", "--json").stdout)["connections"]
        add = ("subflow", "add", known["token"], second, known["remote"])
        assert running.ask(*add).returncode == 0
        subflow = peer.accept_join()

        token = int(known["token"], 16)
        until(lambda: len(subflows(running, token)) == 2, "the join is known", PATIENCE_S)
        before = len(decisions(running, "CreateSubflow"))
        # Administratively prohibited.  A join would be decided on the event of the reset.
        subflow.reset(3, transient=True)
        until(lambda: len(subflows(running, token)) == 1, "it is closed", PATIENCE_S)
        assert len(decisions(running, "CreateSubflow")) == before

        assert running.ask(*add).returncode == 0
        subflow = peer.accept_join()
        for reason, transient in (
            (2, True),  # lack of resources, for now: at once
            (5, False),  # unacceptable performance: after a pause
        ):
            subflow.reset(reason, transient=transient)
            subflow = peer.accept_join()
            running.until_logged(f"the peer reset it (reason {reason})")
