# SPDX-License-Identifier: BSD-3-Clause
"""A fault, its story, its replay, and what another configuration would have done."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mptcpd_ebpf.lab import Lab, RequestResponse
from mptcpd_ebpf.lab import Path as LabPath
from mptcpd_ebpf.lab.kernel_path_manager import allow_joins, raise_limits
from mptcpd_ebpf.runtime.exit_codes import ExitCode
from tests.netns.daemon_host import (
    EventStream,
    adaptive_in,
    decisions,
    make_room_behind_holes,
    status,
    subflows,
    until_carried_by,
    until_decided,
)
from tests.netns.daemon_process import command
from tests.waiting import INTERVAL_MS, until

SYSCTL = ["sysctl", "net.mptcp"]
ENDPOINTS = ["ip", "mptcp", "endpoint"]
MakeLab = Callable[..., Lab]


@pytest.fixture
def lab(make_mptcp_lab: MakeLab) -> Lab:
    lab = make_mptcp_lab([LabPath(delay_ms=10), LabPath(delay_ms=30)], seed=1)
    raise_limits(lab.server)
    make_room_behind_holes(lab)
    return lab


def run(*arguments: object, code: int = 0) -> str:
    done = command(*map(str, arguments))
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_fault_is_explained_and_rehearsed(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    bad, good = lab.paths
    with adaptive_in(lab.client, tmp_path, f"--record={file}") as running:
        traffic = lab.start(RequestResponse(interval_ms=INTERVAL_MS))
        until_carried_by(running, traffic.token, bad, good)
        bad.blackhole()
        until_decided(running, "DestroySubflow", bad.client_ip)
        until_carried_by(running, traffic.token, good)
        bad.heal()
        until_carried_by(running, traffic.token, bad, good)
        assert traffic.stop().unanswered == 0
        token = f"{traffic.token:08x}"
        told = run("explain", token[:6], "--control", running.control)
        by_path = run("explain", "--path", bad.client_if, "--control", running.control, "--json")
    order = [
        told.index(text)
        for text in (
            "established (client side)",
            "ms after the join was requested",
            "alarm ",
            "limit ",
            f"destroy {bad.client_ip}",
            f"{bad.client_if} is back after",
        )
    ]
    assert order == sorted(order), told
    assert "(adaptive, rule alarm)" in told
    entries: list[dict[str, Any]] = json.loads(by_path)["entries"]
    assert {entry["path"] for entry in entries} == {bad.client_if}
    destroyed = next(e for e in entries if e["data"].get("action") == "DestroySubflow")
    assert destroyed["outcome"].startswith("done")

    # The same from the recording, after the daemon has ended.
    assert f"destroy {bad.client_ip}" in run("explain", token, "--recording", file)
    assert "all as recorded" in run("replay", file)
    differing = run("replay", file, "--plugin=fullmesh")
    assert f"destroy {bad.client_ip}" in differing
    assert "- in the recorded run only: " in differing
    assert "+ in the replayed run only: none" in run("replay", file, "--preset=auto")
    refused = run("replay", file, "--set=presett=bulk", code=ExitCode.CONFIG)
    assert "did you mean 'preset'" in refused
    with file.open("a") as text:
        text.write('{"seq"')
    assert "ends halfway" in run("replay", file, code=ExitCode.CHECK_FAILED)


def test_a_dry_run_decides_and_changes_nothing(lab: Lab, tmp_path: Path) -> None:
    allow_joins(lab)
    before = lab.client.run(SYSCTL).stdout
    endpoints = lab.client.run(ENDPOINTS).stdout
    first, _ = lab.paths
    with adaptive_in(lab.client, tmp_path, "--dry-run") as running, EventStream(running) as story:
        assert status(running)["dry_run"] is True
        traffic = lab.start(RequestResponse(interval_ms=INTERVAL_MS))
        until(lambda: len(subflows(running, traffic.token)) == 2, "the kernel's join")
        first.blackhole()
        until(
            lambda: [
                made
                for made in story.told
                if made.get("action") == "DestroySubflow" and made["refused"] == "dry run"
            ],
            "a decision",
        )
        first.heal()
        assert len(subflows(running, traffic.token)) == 2
        assert traffic.stop().unanswered == 0
        assert lab.client.run(SYSCTL).stdout == before
        assert lab.client.run(ENDPOINTS).stdout == endpoints
        told = run("explain", f"{traffic.token:08x}", "--control", running.control)
        assert f"dry run: would destroy {first.client_ip}" in told
        running.until_logged(f"dry run: adaptive would destroy {first.client_ip}")
        # A plugin that repeats what was refused backs off.
        refused = [made for made in story.told if made.get("refused") == "dry run"]
        assert len(refused) < 60, refused
        assert decisions(running, "CreateSubflow", "DestroySubflow", "SetBackup") == []
