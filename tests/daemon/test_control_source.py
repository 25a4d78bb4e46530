# SPDX-License-Identifier: BSD-3-Clause
"""What the control socket asks of the daemon: reads change nothing, commands go to the loop."""

import os
from collections.abc import Callable, Coroutine
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from mptcpd_ebpf import __version__
from mptcpd_ebpf.config.settings import Settings
from mptcpd_ebpf.control import metrics
from mptcpd_ebpf.core.commands import FlushEndpoints
from mptcpd_ebpf.core.plugin import Commands
from mptcpd_ebpf.daemon.control_source import DaemonControl
from mptcpd_ebpf.daemon.observers import Memory, Statistics
from mptcpd_ebpf.daemon.reload import Reloader
from tests.core.scenario import FIBRE, TOKEN, created, established, joined, measured
from tests.daemon.fakes import FakePm, FakeProbes, Host, Scripted

DEMOTE = {
    "command": "SetBackup",
    "token": f"{TOKEN:08x}",
    "local": "10.0.2.2:40002",
    "remote": "10.0.9.1:443",
    "backup": True,
}
DESTROY = {
    "command": "DestroySubflow",
    "token": f"{TOKEN:08x}",
    "local": str(FIBRE[0]),
    "remote": str(FIBRE[1]),
}


class Controlled:
    """A daemon that is asked through its `DaemonControl`."""

    def __init__(self, folder: Path, *plugins: Scripted, probes: FakeProbes | None = None) -> None:
        self.host = Host(folder, *plugins, probes=probes)
        self.pm = FakePm()
        self.statistics = Statistics()
        self.host.observers.add(self.statistics)
        self.memory = Memory()
        self.host.observers.add(self.memory)
        reloader = Reloader(Settings(), self.host.config, self.host.loop, self.host.path_manager)
        self.control = DaemonControl(
            self.host.loop,
            reloader,
            self.host.sources,
            self.pm,
            self.statistics,
            self.memory,
            self.host.setting,
        )

    def run(self, use: Callable[["Controlled"], Coroutine[Any, Any, None]]) -> None:
        async def main(host: Host) -> None:
            host.loop.dispatch([created(), established()])
            await use(self)

        self.host.run(main)


def fails(*_: object) -> Commands:
    raise KeyError("by the test")


def test_reads_change_no_model_and_reach_no_plugin(tmp_path: Path) -> None:
    plugin = Scripted()
    probes = FakeProbes(measured(srtt_us=7000))
    daemon = Controlled(tmp_path, plugin, probes=probes)

    async def use(daemon: Controlled) -> None:
        world, calls = deepcopy(daemon.host.loop.engine.world), list(plugin.calls)
        records = len(daemon.host.records)
        for _ in range(3):
            shown = await daemon.control.connections()
            metrics.exposition(daemon.control.status(), shown)
            daemon.control.decisions()
            await daemon.control.endpoints()
            await daemon.control.limits()
        (connection,) = shown["connections"]
        assert connection["subflows"][0]["srtt_us"] == 7000  # yet the newest value is shown
        assert daemon.host.loop.engine.world == world
        assert plugin.calls == calls
        assert len(daemon.host.records) == records
        assert daemon.pm.executed == []

    daemon.run(use)


def test_the_status_says_what_the_daemon_does(tmp_path: Path) -> None:
    async def use(daemon: Controlled) -> None:
        found = daemon.control.status()
        assert (found["version"], found["pid"], found["netns"]) == (__version__, os.getpid(), 1)
        assert found["plugins"] == [{"name": "scripted", "excluded": None}]
        assert (found["connections"], found["subflows"]) == (1, 1)
        assert (found["paused"], found["path_manager"]) == (False, "kernel")
        assert found["events_lost"] == {}
        daemon.host.loop.dispatch([joined()])
        (plugin,) = daemon.control.status()["plugins"]
        assert plugin["excluded"] == "new_subflow() raised KeyError: 'by the test'"
        await daemon.control.pause()
        assert daemon.control.status()["paused"]
        await daemon.control.resume()
        assert not daemon.control.status()["paused"]

    Controlled(tmp_path, Scripted(new_subflow=fails)).run(use)


def test_a_command_returns_what_became_of_it(tmp_path: Path) -> None:
    async def use(daemon: Controlled) -> None:
        daemon.host.loop.dispatch([joined()])
        done = await daemon.control.carry_out(DEMOTE)
        assert (done["through"], done["errno"], done["explanation"]) == ("daemon", 0, None)
        assert [manual for _, manual in daemon.host.executor.executed] == [True]
        (decision,) = daemon.control.decisions()
        assert (decision["plugin"], decision["action"]) == ("manual command", "SetBackup")

    Controlled(tmp_path, Scripted()).run(use)


def test_a_command_that_the_guard_refuses_has_no_errno(tmp_path: Path) -> None:
    async def use(daemon: Controlled) -> None:
        done = await daemon.control.carry_out(DESTROY)
        assert done["errno"] is None
        assert done["explanation"]
        assert daemon.host.executor.executed == []

    Controlled(tmp_path, Scripted()).run(use)


def test_a_command_is_carried_out_while_paused(tmp_path: Path) -> None:
    async def use(daemon: Controlled) -> None:
        daemon.host.loop.dispatch([joined()])
        await daemon.control.pause()
        assert (await daemon.control.carry_out(DEMOTE))["errno"] == 0

    Controlled(tmp_path, Scripted()).run(use)


def test_the_table_is_read_before_and_after_a_command_that_changes_it(tmp_path: Path) -> None:
    """The guard needs it, and plugins shall see the change."""

    async def use(daemon: Controlled) -> None:
        daemon.host.steps.clear()
        await daemon.control.carry_out({"command": "FlushEndpoints"})
        (command, _), *_ = daemon.host.executor.executed
        assert isinstance(command, FlushEndpoints)
        order = [
            step
            for step in daemon.host.steps
            if step in ("publish EndpointsRead", "execute FlushEndpoints")
        ]
        assert order == [
            "publish EndpointsRead", "execute FlushEndpoints", "publish EndpointsRead"
        ]  # fmt: skip

    Controlled(tmp_path, Scripted()).run(use)


def test_what_is_no_command_is_an_error_and_reaches_nothing(tmp_path: Path) -> None:
    async def use(daemon: Controlled) -> None:
        with pytest.raises(ValueError, match="token"):
            await daemon.control.carry_out({**DEMOTE, "token": "x"})
        assert daemon.host.executor.executed == []

    Controlled(tmp_path, Scripted()).run(use)
