# SPDX-License-Identifier: BSD-3-Clause
"""Many connections at once: all leave a path that died, and a plugin gone mad takes few."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.crowd import crowd
from mptcpd_ebpf.lab import Lab
from mptcpd_ebpf.lab import Path as LabPath
from mptcpd_ebpf.lab.kernel_path_manager import raise_limits
from tests.netns.daemon_host import (
    PATIENCE_S,
    adaptive_in,
    connections,
    daemon_in,
    decisions,
    status,
)
from tests.netns.daemon_process import RunningDaemon
from tests.netns.own_plugins import plugin_folder
from tests.waiting import until

MakeLab = Callable[..., Lab]

MAD = """
from mptcpd_ebpf.plugin import DestroySubflow, Plugin, WakeAt


class Mad(Plugin):
    name = "mad"
    mode = "userspace"

    def init(self, ctx):
        return [WakeAt(at=ctx.now, reason="rage")]

    def wake(self, ctx):
        for connection in ctx.served():
            for subflow in connection.subflows.values():
                yield DestroySubflow(
                    token=connection.token,
                    local=subflow.local,
                    remote=subflow.remote,
                    reason="rage",
                )
        yield WakeAt(at=ctx.now + 50_000_000, reason="rage")
"""


@pytest.fixture
def lab(make_mptcp_lab: MakeLab) -> Lab:
    lab = make_mptcp_lab([LabPath(), LabPath(delay_ms=5)])
    raise_limits(lab.server)
    return lab


def interfaces(running: RunningDaemon) -> Counter[tuple[str, ...]]:
    """How many connections have established subflows on which interfaces."""
    return Counter(
        tuple(
            sorted(
                each["interface"] or "?"
                for each in connection["subflows"]
                if each["state"] == "established"
            )
        )
        for connection in connections(running)
    )


def until_each_on(running: RunningDaemon, number: int, *names: str) -> None:
    until(
        lambda: interfaces(running) == {tuple(sorted(names)): number},
        lambda: f"{number} connections on {names}; there are {interfaces(running)}\n{running.log}",
        PATIENCE_S,
    )


def test_two_hundred_connections_leave_a_path_that_died(lab: Lab, tmp_path: Path) -> None:
    number = 200
    dead, other = lab.paths
    with adaptive_in(lab.client, tmp_path) as running, crowd(lab, number, 0.4):
        until_each_on(running, number, dead.client_if, other.client_if)
        before = len(running.log.splitlines())
        dead.blackhole()
        until(
            lambda: len(decisions(running, "DestroySubflow", ip=dead.client_ip)) >= number,
            lambda: f"{number} have left\n{running.log}",
            PATIENCE_S,
        )
        until_each_on(running, number, other.client_if)
        left = decisions(running, "DestroySubflow", ip=dead.client_ip)
        by_token = Counter(made["token"] for made in left if "probe" not in made["reason"])
        assert len(by_token) == number
        assert decisions(running, "DestroySubflow", "SetBackup", ip=other.client_ip) == []
        lines = running.log.splitlines()[before:]
        assert not any("held back" in line for line in lines)
        assert len([line for line in lines if " destroy " in line]) < number / 4


def test_a_mad_plugin_is_stopped(lab: Lab, tmp_path: Path) -> None:
    """It destroys subflows that work, again and again."""
    number, rate = 40, 5
    file = tmp_path / "c.yaml"
    folder = plugin_folder(tmp_path, mad=MAD)
    with adaptive_in(lab.client, tmp_path) as running, crowd(lab, number, 0.2):
        until_each_on(running, number, *(path.client_if for path in lab.paths))
        running.stop()
        file.write_text(
            f"path_manager: mad\nplugin_dir: {folder}\nlimits: {{destructive_per_second: {rate}}}\n"
        )
        mad = tmp_path / "mad"
        mad.mkdir()
        with daemon_in(lab.client, mad, "--config", str(file)) as angry:
            until(
                lambda: "commands on" in angry.log and "held back" in angry.log,
                lambda: angry.log,
                PATIENCE_S,
            )
            until(lambda: len(decisions(angry)) > 3 * rate, lambda: angry.log, PATIENCE_S)
            assert status(angry)["plugins"] == [{"name": "mad", "excluded": None}]
            sent = decisions(angry, "DestroySubflow")
            for path in lab.paths:
                times = [each["t"] for each in sent if path.client_ip in each["subflow"]]
                for at in times:
                    assert sum(at <= other < at + 1.0 for other in times) <= rate
            assert all(
                any(each["state"] == "established" for each in connection["subflows"])
                for connection in connections(angry)
            )
            assert re.search(r"mad: \d+ commands on \S+ \(.*\) held back: more than 5", angry.log)
