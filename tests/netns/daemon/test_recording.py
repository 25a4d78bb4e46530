# SPDX-License-Identifier: BSD-3-Clause
"""A recorded run, with every kind of event, decides the same in a new process."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.commands import MANUAL
from mptcpd_ebpf.core.recording import Record, read
from mptcpd_ebpf.lab import Lab, RequestResponse
from mptcpd_ebpf.lab import Path as LabPath
from mptcpd_ebpf.lab.kernel_path_manager import raise_limits
from tests.netns.daemon_host import (
    PATIENCE_S,
    daemon_in,
    make_room_behind_holes,
    subflows,
    until_carried_by,
    until_decided,
)
from tests.netns.daemon_process import refusal
from tests.netns.overflowing import change_addresses_until_dropped, stopped
from tests.netns.own_plugins import plugin_folder
from tests.tree import ROOT
from tests.waiting import INTERVAL_MS, until

MakeLab = Callable[..., Lab]

SLOW = """
from mptcpd_ebpf.plugin import Plugin

class Slow(Plugin):
    name = "slow"

    def new_interface(self, ctx, link):
        while True:
            ctx.random.random()
"""
"""It exceeds the time limit, which a replay of the events alone would not show."""

REPLAY = """
import sys
from pathlib import Path

import msgspec

from mptcpd_ebpf.config.recorded_plugin import recorded_plugin
from mptcpd_ebpf.core.recording import read, replay

with open(sys.argv[1], "rb") as file:
    _, records = read(file)
    for record, decided in replay(records, lambda spec: recorded_plugin(spec, Path(sys.argv[2]))):
        sys.stdout.buffer.write(msgspec.json.encode(decided) + b"\\n")
"""


def replayed(recording: Path, plugins: Path, hash_seed: str) -> bytes:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    return subprocess.run(
        [sys.executable, "-c", REPLAY, str(recording), str(plugins)],
        cwd=ROOT,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
    ).stdout


@pytest.fixture
def lab(make_mptcp_lab: MakeLab) -> Lab:
    lab = make_mptcp_lab([LabPath(delay_ms=10), LabPath(delay_ms=40)], seed=1)
    raise_limits(lab.server)
    make_room_behind_holes(lab)
    return lab


def test_a_replay_makes_the_same_decisions_byte_for_byte(lab: Lab, tmp_path: Path) -> None:
    folder = plugin_folder(tmp_path, slow=SLOW)
    recording, config = tmp_path / "run.jsonl", tmp_path / "c.yaml"
    config.write_text(
        f"path_manager: adaptive\nload_plugins: [slow]\nplugin_dir: {folder}\n"
        "plugins: {adaptive: {probe_pause_ms: 300}}\n"
    )
    arguments = ("--config", str(config), "--record", str(recording))
    first, second = lab.paths
    with daemon_in(lab.client, tmp_path, *arguments) as running:
        talk = lab.start(RequestResponse(interval_ms=2 * INTERVAL_MS))
        until_decided(running, "CreateSubflow", second.client_ip)
        first.blackhole()
        left = until_decided(running, "DestroySubflow", first.client_ip)
        assert running.ask("pause").returncode == 0
        assert running.ask("resume").returncode == 0
        first.heal()
        until_decided(running, "CreateSubflow", first.client_ip, after=left["id"])
        config.write_text(config.read_text().replace("300", "200"))
        assert running.ask("reload").returncode == 0
        until_carried_by(running, talk.token, first, second)
        assert second.inject_resets() == 1
        probed = until_decided(running, "ProbePath", second.client_ip, after=left["id"])
        until_decided(running, "CreateSubflow", second.client_ip, after=probed["id"])
        until_carried_by(running, talk.token, first, second)
        with stopped(running):
            change_addresses_until_dropped(lab, running)
        until(lambda: "events lost" in running.log, "the socket overflowed", PATIENCE_S)
        # While the daemon was stopped, a path may have seemed dead.
        until_carried_by(running, talk.token, first, second)
        (second_subflow,) = [
            each for each in subflows(running, talk.token) if each["interface"] == second.client_if
        ]
        token, ends = f"{talk.token:08x}", (second_subflow["local"], second_subflow["remote"])
        done = running.ask("subflow", "del", token, *ends)
        assert done.returncode == 0, done.stderr
        lab.client.run(["ip", "link", "add", "extra", "type", "veth", "peer", "other"])
        until(lambda: "plugin slow is excluded" in running.log, running.log)
        assert running.stop() == 0
        assert talk.stop().unanswered == 0
    with recording.open("rb") as file:
        head, lines = read(file)
        records = list(lines)
    assert head.netns
    kinds = {type(record.event) for record in records}
    wanted = {ev.Started, ev.Configured, ev.PluginExcluded, ev.Paused, ev.Resumed, ev.CommandAsked}
    assert (
        wanted
        | {ev.PathProbed, ev.AlarmRaised, ev.EventsLost, ev.Resynchronised, ev.Stopping, ev.Stopped}
        <= kinds
    )
    assert any(decision.plugin == MANUAL for each in records for decision in each.decisions)
    for hash_seed in ("1", "2"):
        assert replayed(recording, folder, hash_seed) == _lines(records)


def _lines(records: list[Record]) -> bytes:
    return b"".join(msgspec.json.encode(record.decisions) + b"\n" for record in records)


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "old"
    file.write_text("precious")
    code, message = refusal("daemon", "--record", str(file), prefix=("unshare", "--net", "--"))
    assert (code, message) == (64, f"--record {file}: the file exists already; name a new one")
    assert file.read_text() == "precious"
