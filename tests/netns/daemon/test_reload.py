# SPDX-License-Identifier: BSD-3-Clause
"""A reload changes everything, or names what it cannot; it loses no event, connection or join."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from mptcpd_ebpf.lab import Lab, RequestResponse
from mptcpd_ebpf.lab import Path as LabPath
from mptcpd_ebpf.lab.kernel_path_manager import raise_limits
from tests.netns.daemon_host import (
    PATIENCE_S,
    adaptive_in,
    connections,
    daemon_in,
    decisions,
    newest,
    status,
    subflows,
    until_carried_by,
    until_decided,
)
from tests.netns.daemon_process import NEW_NAMESPACE, RunningDaemon, daemon
from tests.waiting import INTERVAL_MS, until

MakeLab = Callable[..., Lab]
TALK = RequestResponse(interval_ms=INTERVAL_MS)


def reloaded(running: RunningDaemon) -> None:
    """Sends SIGHUP and waits for the reload."""
    before = running.log.count("configuration reloaded")
    os.kill(running.process.pid, signal.SIGHUP)
    until(lambda: running.log.count("configuration reloaded") > before, "the reload", PATIENCE_S)


def test_what_only_a_restart_changes_is_named(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("probes: {backend: netlink}\n")
    with daemon(tmp_path, "--config", str(file)) as running:
        file.write_text("probes: {backend: auto}\nmetrics: {enabled: true}\nlog_level: debug\n")
        ended = running.ask("reload")
        assert (ended.returncode, ended.stdout) == (0, "reloaded\n")
        words = "changed, takes effect only after a restart: metrics, probes.backend"
        assert ended.stderr == f"mptcpd-ebpf: {words}\n"
        assert f"WARNING {words}" in running.log
        assert status(running)["pending_restart"] == ["metrics", "probes.backend"]
        assert "metrics, probes.backend" in running.ask("status").stdout
        file.write_text("probes: {backend: netlink}\n")
        ended = running.ask("reload")
        assert (ended.returncode, ended.stderr) == (0, "")
        assert status(running)["pending_restart"] == []


def test_a_reload_reads_the_file_that_a_restart_would(tmp_path: Path) -> None:
    """The default file counts if it exists at the time of the reload."""
    etc = tmp_path / "etc"
    etc.mkdir()
    staged = (*NEW_NAMESPACE, "unshare", "--mount", "--", "sh", "-ec")
    prefix = (*staged, f'mount --bind {etc} /etc; exec "$@"', "sh")
    with daemon(tmp_path, prefix=prefix) as running:
        assert status(running)["plugins"] == []
        (etc / "mptcpd-ebpf.yaml").write_text("path_manager: fullmesh\n")
        assert running.ask("reload").returncode == 0
        assert [plugin["name"] for plugin in status(running)["plugins"]] == ["fullmesh"]
        (etc / "mptcpd-ebpf.yaml").unlink()
        assert running.ask("reload").returncode == 0
        assert status(running)["plugins"] == []


def test_a_change_of_the_path_manager_is_logged(tmp_path: Path) -> None:
    """Once, and not at each reload."""
    file = tmp_path / "c.yaml"
    words = "new connections use the userspace path manager until the daemon stops (before: kernel)"
    file.write_text("path_manager: fullmesh\n")
    with daemon(tmp_path, "--config", str(file)) as running:
        assert running.ask("reload").returncode == 0
        assert running.log.count(words) == 1
        file.write_text("path_manager: addr_adv\n")
        assert running.ask("reload").returncode == 0
        file.write_text("path_manager: fullmesh\n")
        assert running.ask("reload").returncode == 0
        assert running.log.count(words) == 2


@pytest.mark.parametrize("plugin", ["fullmesh", "adaptive", "sspi", "backup"])
def test_a_pending_join_is_neither_lost_nor_repeated(
    make_mptcp_lab: MakeLab, tmp_path: Path, plugin: str
) -> None:
    lab = make_mptcp_lab([LabPath(), LabPath()])
    raise_limits(lab.server)
    first, second = lab.paths
    second.blackhole()
    with daemon_in(lab.client, tmp_path, f"--path-manager={plugin}") as running:
        traffic = lab.start(TALK)
        until(
            lambda: bool(decisions(running, "CreateSubflow", ip=second.client_ip)),
            "the join is pending",
            PATIENCE_S,
        )
        for _ in range(3):
            reloaded(running)
        second.heal()
        until(
            lambda: (
                {s["interface"] for s in subflows(running, traffic.token)}
                == {first.client_if, second.client_if}
            ),
            f"both are used\n{running.log}",
            PATIENCE_S,
        )
        until(
            lambda: [s["state"] for s in subflows(running, traffic.token)] == ["established"] * 2,
            f"one subflow on each\n{subflows(running, traffic.token)}\n{running.log}",
            PATIENCE_S,
        )
        assert len(connections(running)) == 1
        # Events still arrive: a new connection is managed too.
        another = lab.start(TALK)
        if plugin != "backup":
            until_carried_by(running, another.token, first, second)
        assert another.stop().unanswered == 0
        assert traffic.stop().unanswered == 0


def test_an_abandoned_path_stays_abandoned(make_mptcp_lab: MakeLab, tmp_path: Path) -> None:
    """A reload keeps what was learnt: a bad path carries no data before probes were answered."""
    lab = make_mptcp_lab([LabPath(delay_ms=5), LabPath(delay_ms=10)])
    raise_limits(lab.server)
    bad, good = lab.paths
    with adaptive_in(lab.client, tmp_path) as running:
        traffic = lab.start(TALK)
        until_carried_by(running, traffic.token, bad, good)
        bad.blackhole()
        until_decided(running, "DestroySubflow", bad.client_ip)
        until_carried_by(running, traffic.token, good)
        before = newest(running)
        reloaded(running)
        until_decided(running, "ProbePath", bad.client_ip, before)
        assert decisions(running, "CreateSubflow", ip=bad.client_ip) == []
        bad.heal()
        back = until_decided(running, "CreateSubflow", bad.client_ip, before)
        assert "probes answered" in back["reason"]
        until_carried_by(running, traffic.token, bad, good)
        assert traffic.stop().unanswered == 0
