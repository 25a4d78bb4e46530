# SPDX-License-Identifier: BSD-3-Clause
"""reconnect on the real kernel: each way to lose a subflow is told apart, and has its answer."""

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
    """A connection over the first path, a subflow by hand over the second, and a daemon."""
    raise_limits(lab.server)
    make_room_behind_holes(lab)
    file = folder / "c.yaml"
    file.write_text("path_manager: reconnect\nplugins: {reconnect: {first_pause_ms: 100}}\n")
    with daemon_in(lab.client, folder, "--probes=core", "--config", str(file)) as running:
        traffic = lab.start(RequestResponse(interval_ms=INTERVAL_MS))
        until(lambda: len(established(running, traffic)) == 1, "the connection", PATIENCE_S)
        (first,) = subflows(running, traffic.token)
        arguments = [f"{traffic.token:08x}", lab.paths[1].client_ip, first["remote"]]
        order = ["subflow", "add", *arguments, *(["--backup"] if backup else [])]
        # Its first subflow stands before the connection is fully established.
        until(lambda: running.ask(*order).returncode == 0, "an order to join", PATIENCE_S)
        until(lambda: len(established(running, traffic)) == 2, "a subflow by hand", PATIENCE_S)
        yield running, traffic
        assert "is excluded" not in running.log
        assert "Traceback" not in running.log
        assert traffic.stop().unanswered == 0


def established(running: RunningDaemon, traffic: Traffic) -> list[str]:
    """The local addresses and ports of the subflows that stand."""
    return [s["local"] for s in subflows(running, traffic.token) if s["state"] == "established"]


def behind(path: LivePath, running: RunningDaemon, traffic: Traffic) -> list[str]:
    """Those of them that started from a path."""
    return [each for each in established(running, traffic) if each.startswith(f"{path.client_ip}:")]


def until_logged(running: RunningDaemon, words: str) -> None:
    until(lambda: words in running.log, words, PATIENCE_S)


def until_made_anew(
    path: LivePath, old: list[str], running: RunningDaemon, traffic: Traffic
) -> None:
    def done() -> bool:
        now = behind(path, running, traffic)
        return len(now) == 1 and now != old

    until(done, lambda: f"a new subflow in the place of {old}\n{running.log}", PATIENCE_S)


@pytest.fixture
def nat_lab(make_mptcp_lab: MakeLab) -> Lab:
    return make_mptcp_lab([LabPath(delay_ms=50), LabPath(delay_ms=1, nat=True)])


def test_a_nat_that_forgot_and_says_nothing(nat_lab: Lab, tmp_path: Path) -> None:
    second = nat_lab.paths[1]
    with two_subflows(nat_lab, tmp_path) as (running, traffic):
        old = behind(second, running, traffic)
        assert second.expire_nat() > 0
        until_made_anew(second, old, running, traffic)
        assert "is silent; is a new handshake answered?" in running.log
        assert "a NAT or firewall lost its state" in running.log
        # At the first try, unless data waits there out of order (Linux 6.1 and 6.12).
        assert "failed" not in running.log or "closed it at once" in running.log


def test_a_nat_that_forgot_and_makes_a_new_binding(nat_lab: Lab, tmp_path: Path) -> None:
    """The server knows nobody of that port, and resets him without a word."""
    second = nat_lab.paths[1]
    second.router.sysctl("netfilter.nf_conntrack_tcp_loose", 1)
    rule = "iptables -t nat -R POSTROUTING 1 -o far -j MASQUERADE --random-fully"
    second.router.run(rule.split())
    with two_subflows(nat_lab, tmp_path) as (running, traffic):
        old = behind(second, running, traffic)
        assert second.expire_nat() > 0
        until_made_anew(second, old, running, traffic)
        assert "a reset without a reason, perhaps by a NAT that lost its binding" in running.log


def test_a_path_that_is_down_is_tried_with_pauses(make_mptcp_lab: MakeLab, tmp_path: Path) -> None:
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


def test_the_kernel_gave_up(make_mptcp_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_mptcp_lab([LabPath(delay_ms=50), LabPath(delay_ms=1)])
    lab.client.sysctl("ipv4.tcp_retries2", 1)
    second = lab.paths[1]
    with two_subflows(lab, tmp_path) as (running, traffic):
        old = behind(second, running, traffic)
        second.blackhole()
        until(
            lambda: "nothing was acknowledged until the kernel gave up" in running.log,
            f"it is told\n{running.log}",
            PATIENCE_S,
        )
        second.heal()
        until_made_anew(second, old, running, traffic)


def test_a_backup_comes_back_as_one(make_mptcp_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_mptcp_lab([LabPath(), LabPath()])
    first, second = lab.paths
    with two_subflows(lab, tmp_path, backup=True) as (running, traffic):
        (old,) = behind(second, running, traffic)
        lab.server.run(["ss", "-K", "dst", second.client_ip])
        until_made_anew(second, [old], running, traffic)
        (backup,) = [
            s["backup"]
            for s in subflows(running, traffic.token)
            if s["local"].startswith(f"{second.client_ip}:")
        ]
        assert backup is True
        assert behind(first, running, traffic)


def test_what_the_peer_says_with_a_reset_decides(mptcp_lab: Lab, tmp_path: Path) -> None:
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
        # Administratively prohibited.  It would be joined again in the turn that hears of it.
        subflow.reset(3, transient=True)
        until(lambda: len(subflows(running, token)) == 1, "it is gone", PATIENCE_S)
        assert len(decisions(running, "CreateSubflow")) == before

        assert running.ask(*add).returncode == 0
        subflow = peer.accept_join()
        for reason, transient in (
            (2, True),  # lack of resources, for now: at once
            (5, False),  # unacceptable performance: after a pause
        ):
            subflow.reset(reason, transient=transient)
            subflow = peer.accept_join()
            until_logged(running, f"the peer reset it (reason {reason})")
