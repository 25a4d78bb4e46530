# SPDX-License-Identifier: BSD-3-Clause
"""Files of namespaces that do not exist any more are removed; all others stay.

A daemon of an ordinary user uses a folder of its own.
"""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from mptcpd_ebpf.control.client import default_path
from mptcpd_ebpf.lab import Lab
from mptcpd_ebpf.runtime import netns, run_folder
from tests.netns.daemon_process import PROGRAM, command
from tests.ordinary_user import AS_NOBODY, NOBODY
from tests.tree import ROOT
from tests.waiting import SLOWNESS, until

CAPABILITIES = "-all,+net_admin,+bpf,+perfmon"
WITH_CAPABILITIES = (
    *AS_NOBODY,
    f"--inh-caps={CAPABILITIES}",
    f"--ambient-caps={CAPABILITIES}",
    "--",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of /run/mptcpd-ebpf."""
    monkeypatch.setattr(run_folder, "SYSTEM", tmp_path / "run")
    run_folder.make()
    return tmp_path / "run"


def end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()


def test_only_files_of_removed_namespaces_are_removed(tmp_path: Path) -> None:
    python = str(Path(PROGRAM).parent / "python")
    own_view = ("unshare", "--pid", "--fork", "--mount-proc")
    ended = subprocess.run(
        [*own_view, python, "-m", "tests.netns.sweeping", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    assert json.loads(ended.stdout) == {
        "entered": [[], [".endpoints", ".sock"]],
        "opened": [[], [".endpoints"]],
        "mounted": [[], [".endpoints"]],
    }
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        f"{netns.inode()}.mine",
        "mounted",
        "others.txt",
    ]


@pytest.mark.parametrize(
    "prefix",
    [
        ("unshare", "--pid", "--fork", "--mount-proc"),
        pytest.param(WITH_CAPABILITIES, marks=pytest.mark.ordinary_user),
    ],
)
def test_a_process_that_does_not_see_all_others_removes_nothing(prefix: tuple[str, ...]) -> None:
    ask = "from mptcpd_ebpf.runtime import netns; print(netns.unused([1]))"
    python = str(Path(PROGRAM).parent / "python")
    done = subprocess.run([*prefix, python, "-c", ask], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.ordinary_user
def test_a_daemon_of_an_ordinary_user_needs_only_ambient_capabilities(
    tmp_path: Path, make_mptcp_lab: Callable[..., Lab]
) -> None:
    client = make_mptcp_lab().client
    inside = ("nsenter", f"--net=/run/netns/{client.name}", "--")
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    os.chown(tmp_path, NOBODY, NOBODY)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o011)
    log = tmp_path / "log"
    with ExitStack() as stack, log.open("w") as stderr:
        daemon = subprocess.Popen(
            [*inside, *WITH_CAPABILITIES, PROGRAM, "daemon", "--path-manager=adaptive"],
            env=environment,
            stderr=stderr,
        )
        stack.callback(end, daemon)
        until(
            lambda: "ready: plugins adaptive" in log.read_text(),
            lambda: f"the daemon is ready; its log: {log.read_text()}",
            30,
        )
        assert client.sysctl("mptcp.pm_type") == "1"
        mine = tmp_path / run_folder.SYSTEM.name
        files = [file for file in mine.iterdir() if "journal" not in file.name]
        assert sorted(file.suffix for file in files) == [".lock", ".path-manager", ".sock"]
        prefix = ("env", f"XDG_RUNTIME_DIR={tmp_path}", *inside, *WITH_CAPABILITIES)
        status = command("status", "--json", prefix=prefix)
        assert status.returncode == 0, status.stderr
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(30 * SLOWNESS) == 0, log.read_text()
    assert client.sysctl("mptcp.pm_type") == "0"
    assert [file for file in mine.iterdir() if "journal" not in file.name] == []


def test_a_command_finds_the_daemon_of_the_system_if_the_user_has_none(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    monkeypatch.setattr(os, "access", lambda *_args, **_more: False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "user"))
    name = f"{netns.inode()}.sock"
    mine = tmp_path / "user" / run_folder.SYSTEM.name / name
    assert default_path() == str(mine)
    (folder / name).touch()
    assert default_path() == str(folder / name)
    mine.parent.mkdir(parents=True)
    mine.touch()
    assert default_path() == str(mine)
