# SPDX-License-Identifier: BSD-3-Clause
"""A plugin that fails, blocks or talks nonsense is kept out, and the daemon goes on."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mptcpd_ebpf.lab import Lab, RequestResponse
from mptcpd_ebpf.lab import Path as LabPath
from mptcpd_ebpf.lab.kernel_path_manager import raise_limits
from tests.netns.daemon_host import (
    PATIENCE_S,
    adaptive_in,
    daemon_in,
    decisions,
    status,
    until_carried_by,
)
from tests.netns.daemon_process import NEW_NAMESPACE, RunningDaemon, daemon, refusal
from tests.netns.mptcp_peers import need_listener_events
from tests.netns.mptcp_sockets import listen
from tests.netns.own_plugins import plugin_folder
from tests.waiting import INTERVAL_MS, until

MakeLab = Callable[..., Lab]
TALK = RequestResponse(interval_ms=INTERVAL_MS)

BAD = """
import sys
import time

from mptcpd_ebpf.plugin import CreateSubflow, Plugin, SockAddr, WakeAt


class Bad(Plugin):
    name = "bad"

    def listener_created(self, ctx, address):
        {body}
"""

# On a loaded machine a handler that runs may be out of time before it has had its share of it.
TOO_SLOW = "HandlerTooSlow: it "

BODIES = {
    "raises": ("raise RuntimeError('no idea')", "RuntimeError: no idea"),
    "exits": ("sys.exit(0)", "SystemExit: 0"),
    "recurses": ("return self.listener_created(ctx, address)", "RecursionError: "),
    "spins": ("while True: pass", TOO_SLOW),
    "spins on": (
        "while True:\n            try:\n                while True: pass\n"
        "            except Exception: pass",
        TOO_SLOW,
    ),
    "sleeps": ("time.sleep(3600)", "HandlerTooSlow: it did not return for 1000 ms"),
    "yields for ever": (
        "while True: yield WakeAt(at=1, reason='')",
        TOO_SLOW,
    ),
    "answers a number": ("return 42", "TypeError: 'int' object is not iterable"),
    "commands a number": ("return [42]", "TypeError: 42 is no command"),
    "commands nonsense": (
        "return [CreateSubflow(token='x', local_ip=1, local_id=None, remote=(), reason='')]",
        "TypeError: CreateSubflow(",
    ),
}


REFUSED = """where = dict(local_ip="10.1.1.2", local_id=3, remote=SockAddr("10.1.2.2", 1))
        return [CreateSubflow(token=1, **where, reason="try")]"""
"""A body that is right, with a command that the kernel refuses: there is no such token."""


@pytest.fixture
def lab(make_mptcp_lab: MakeLab) -> Lab:
    lab = make_mptcp_lab([LabPath(), LabPath()])
    raise_limits(lab.server)
    return lab


def verdict(running: RunningDaemon, name: str) -> str | None:
    """Why a plugin is kept out, None if it is not."""
    (found,) = [p["excluded"] for p in status(running)["plugins"] if p["name"] == name]
    return None if found is None else str(found)


@pytest.mark.parametrize("kind", BODIES)
def test_it_is_kept_out_with_the_reason_and_the_others_go_on(
    lab: Lab, tmp_path: Path, kind: str
) -> None:
    need_listener_events(lab.client)
    body, reason = BODIES[kind]
    folder = plugin_folder(tmp_path, bad=BAD.format(body=body))
    options = ("--path-manager=adaptive,bad", "--plugin-dir", str(folder))
    with daemon_in(lab.client, tmp_path, *options) as running:
        before = lab.start(TALK)
        until_carried_by(running, before.token, *lab.paths)
        listen(lab.client, "127.0.0.1").close()
        until(lambda: verdict(running, "bad") is not None, "it is kept out", PATIENCE_S)
        assert str(verdict(running, "bad")).startswith(f"its listener_created raised {reason}")
        assert "plugin bad is excluded from now on: its listener_created raised" in running.log
        assert verdict(running, "adaptive") is None
        after = lab.start(TALK)
        until_carried_by(running, before.token, *lab.paths)
        until_carried_by(running, after.token, *lab.paths)
        assert before.stop().unanswered == 0
        assert after.stop().unanswered == 0

        plugin_folder(tmp_path, bad=BAD.format(body=REFUSED))
        assert running.ask("reload").returncode == 0
        listen(lab.client, "127.0.0.1").close()
        until(
            lambda: "bad" in {made["plugin"] for made in decisions(running)},
            "the mended plugin decides",
            PATIENCE_S,
        )
        assert verdict(running, "bad") is None
        assert running.stop() == 0


def test_a_command_that_the_kernel_refuses_is_explained(lab: Lab, tmp_path: Path) -> None:
    """And is no reason to keep a plugin out."""
    need_listener_events(lab.client)
    folder = plugin_folder(tmp_path, bad=BAD.format(body=REFUSED))
    options = ("--path-manager=bad", "--plugin-dir", str(folder))
    with daemon_in(lab.client, tmp_path, *options) as running:
        listen(lab.client, "127.0.0.1").close()
        until(lambda: bool(decisions(running, "CreateSubflow")), "it decided", PATIENCE_S)
        until(lambda: "WARNING create subflow" in running.log, "the answer is told", PATIENCE_S)
        (told,) = (line for line in running.log.splitlines() if line.startswith("WARNING create"))
        assert "of 00000001: creating the subflow: EINVAL" in told
        assert "no connection of this namespace has that token" in told
        assert verdict(running, "bad") is None


def test_a_plugin_that_cannot_be_made(tmp_path: Path) -> None:
    source = BAD.format(body="return []") + "\n    def __init__(self, options):\n        1 / 0\n"
    folder = plugin_folder(tmp_path, bad=source)
    code, message = refusal(
        "daemon",
        "--control",
        str(tmp_path / "c.sock"),
        "--plugin-dir",
        str(folder),
        "--path-manager=bad",
        prefix=NEW_NAMESPACE,
    )
    assert code == 78
    assert message == "plugin bad: making it raised ZeroDivisionError: division by zero"


def test_a_mode_that_there_is_not(tmp_path: Path) -> None:
    source = BAD.format(body="return []").replace('"bad"', '"bad"\n    mode = "weird"')
    folder = plugin_folder(tmp_path, bad=source)
    options = ("--control", str(tmp_path / "c.sock"), "--plugin-dir", str(folder))
    code, message = refusal("daemon", *options, "--path-manager=bad", prefix=NEW_NAMESPACE)
    assert code == 78
    assert message == "plugin bad: its mode is 'weird'; there are kernel, userspace, any"


@pytest.mark.parametrize(
    ("plugins", "ready"),
    [("bad", "no plugin is left, nothing is managed"), ("bad,fullmesh", "plugins fullmesh")],
)
def test_a_plugin_that_fails_at_its_start_is_not_said_to_be_at_work(
    tmp_path: Path, plugins: str, ready: str
) -> None:
    source = BAD.format(body="return []") + "\n    def init(self, ctx):\n        1 / 0\n"
    folder = plugin_folder(tmp_path, bad=source)
    with daemon(tmp_path, "--plugin-dir", str(folder), f"--path-manager={plugins}") as running:
        assert "plugin bad is excluded from now on: its init raised Zero" in running.log
        assert f"INFO ready: {ready}; 0 connections" in running.log


def test_plugins_whose_modes_clash_are_refused_and_the_old_ones_stay(
    lab: Lab, tmp_path: Path
) -> None:
    source = BAD.format(body="return []").replace(
        'name = "bad"', 'name = "bad"\n    mode = "kernel"'
    )
    folder = plugin_folder(tmp_path, bad=source)
    file = tmp_path / "c.yaml"
    file.write_text(f"plugin_dir: {folder}\npath_manager: adaptive\n")
    with daemon_in(lab.client, tmp_path, "--config", str(file)) as running:
        file.write_text(f"plugin_dir: {folder}\npath_manager: [adaptive, bad]\n")
        refused = running.ask("reload")
        assert refused.returncode == 78
        assert "bad needs the in-kernel path manager and adaptive the userspace one" in (
            refused.stderr
        )
        assert [plugin["name"] for plugin in status(running)["plugins"]] == ["adaptive"]
        traffic = lab.start(TALK)
        until_carried_by(running, traffic.token, *lab.paths)
        # The mode that a configuration asks for holds from its reload on, and is put back.
        file.write_text(f"plugin_dir: {folder}\npath_manager: bad\n")
        assert running.ask("reload").returncode == 0
        assert lab.client.sysctl("mptcp.pm_type") == "0"
        assert traffic.stop().unanswered == 0
        assert running.stop() == 0
        assert lab.client.sysctl("mptcp.pm_type") == "0"


def test_a_sysctl_that_cannot_be_set_at_a_reload_leaves_the_old_ones(
    lab: Lab, tmp_path: Path
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("log_level: info\n")
    fixed = "mount --bind /proc/sys /proc/sys; mount -o remount,ro,bind /proc/sys"
    with daemon_in(lab.client, tmp_path, "--config", str(file), staged=fixed) as running:
        file.write_text("path_manager: adaptive\n")
        refused = running.ask("reload")
        assert refused.returncode == 77
        assert "read-only" in refused.stderr
        assert "Traceback" not in running.log
        assert status(running)["plugins"] == []
        assert lab.client.sysctl("mptcp.pm_type") == "0"
        assert running.stop() == 0


def test_adaptive_survives_a_reload_over_live_connections(lab: Lab, tmp_path: Path) -> None:
    with adaptive_in(lab.client, tmp_path) as running:
        traffic = lab.start(TALK)
        until_carried_by(running, traffic.token, *lab.paths)
        assert running.ask("reload").returncode == 0
        lab.paths[0].blackhole()
        until_carried_by(running, traffic.token, lab.paths[1])
        lab.paths[0].heal()
        until_carried_by(running, traffic.token, *lab.paths)
        assert traffic.stop().unanswered == 0
