# SPDX-License-Identifier: BSD-3-Clause
"""A plugin that raises, blocks or returns wrong values is excluded, and the daemon continues."""

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

# On a loaded machine a busy handler may reach the limit of wall-clock time first.
TOO_SLOW = "HandlerTooSlow: it "

BODIES = {
    "raises": ("raise RuntimeError('no idea')", "RuntimeError: no idea"),
    "exits": ("sys.exit(0)", "SystemExit: 0"),
    "recurses": ("return self.listener_created(ctx, address)", "RecursionError: "),
    "spins": ("while True: pass", TOO_SLOW),
    "catches and spins": (
        "while True:\n            try:\n                while True: pass\n"
        "            except Exception: pass",
        TOO_SLOW,
    ),
    "sleeps": ("time.sleep(3600)", "HandlerTooSlow: it did not return for 100"),
    "yields for ever": (
        "while True: yield WakeAt(at=1, reason='')",
        TOO_SLOW,
    ),
    "returns a number": ("return 42", "TypeError: 'int' object is not iterable"),
    "returns a list of numbers": ("return [42]", "TypeError: 42 is no command"),
    "returns a wrong command": (
        "return [CreateSubflow(token='x', local_ip=1, local_id=None, remote=(), reason='')]",
        "TypeError: CreateSubflow(",
    ),
}


REFUSED = """where = dict(local_ip="10.1.1.2", local_id=3, remote=SockAddr("10.1.2.2", 1))
        return [CreateSubflow(token=1, **where, reason="try")]"""
"""A correct body with a command that the kernel refuses, because no such token exists."""


@pytest.fixture
def lab(make_mptcp_lab: MakeLab) -> Lab:
    lab = make_mptcp_lab([LabPath(), LabPath()])
    raise_limits(lab.server)
    return lab


def why_excluded(running: RunningDaemon, name: str) -> str | None:
    """Why a plugin is excluded, None if it is not."""
    (found,) = [p["excluded"] for p in status(running)["plugins"] if p["name"] == name]
    return None if found is None else str(found)


@pytest.mark.parametrize("kind", BODIES)
def test_it_is_excluded_with_the_reason_and_the_others_continue(
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
        until(lambda: why_excluded(running, "bad") is not None, "it is excluded", PATIENCE_S)
        assert str(why_excluded(running, "bad")).startswith(f"listener_created() raised {reason}")
        assert "plugin bad is excluded: listener_created() raised" in running.log
        assert why_excluded(running, "adaptive") is None
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
            "the corrected plugin decides",
            PATIENCE_S,
        )
        assert why_excluded(running, "bad") is None
        assert running.stop() == 0


def test_a_command_that_the_kernel_refuses_is_explained(lab: Lab, tmp_path: Path) -> None:
    """It does not exclude the plugin."""
    need_listener_events(lab.client)
    folder = plugin_folder(tmp_path, bad=BAD.format(body=REFUSED))
    options = ("--path-manager=bad", "--plugin-dir", str(folder))
    with daemon_in(lab.client, tmp_path, *options) as running:
        listen(lab.client, "127.0.0.1").close()
        until(lambda: bool(decisions(running, "CreateSubflow")), "it decided", PATIENCE_S)
        start = "WARNING not done: create subflow"
        until(lambda: start in running.log, "the answer is logged", PATIENCE_S)
        (line,) = (line for line in running.log.splitlines() if start in line)
        assert "of 00000001: creating the subflow: EINVAL" in line
        assert "no connection of this namespace has that token" in line
        assert why_excluded(running, "bad") is None


def test_a_plugin_whose_constructor_raises_is_refused(tmp_path: Path) -> None:
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


def test_an_unknown_mode_is_refused(tmp_path: Path) -> None:
    source = BAD.format(body="return []").replace('"bad"', '"bad"\n    mode = "weird"')
    folder = plugin_folder(tmp_path, bad=source)
    options = ("--control", str(tmp_path / "c.sock"), "--plugin-dir", str(folder))
    code, message = refusal("daemon", *options, "--path-manager=bad", prefix=NEW_NAMESPACE)
    assert code == 78
    assert message == "plugin bad: its mode is 'weird'; there are kernel, userspace, any"


@pytest.mark.parametrize(
    ("plugins", "ready"),
    [("bad", "observing only, all plugins are excluded"), ("bad,fullmesh", "plugins fullmesh")],
)
def test_a_plugin_that_fails_in_init_is_not_listed_as_ready(
    tmp_path: Path, plugins: str, ready: str
) -> None:
    source = BAD.format(body="return []") + "\n    def init(self, ctx):\n        1 / 0\n"
    folder = plugin_folder(tmp_path, bad=source)
    with daemon(tmp_path, "--plugin-dir", str(folder), f"--path-manager={plugins}") as running:
        assert "plugin bad is excluded: init() raised Zero" in running.log
        assert f"INFO ready: {ready}; existing connections: 0" in running.log


def test_plugins_of_different_modes_are_refused_and_the_old_ones_stay(
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
        # The mode of a configuration is in force after its reload, and restored at the end.
        file.write_text(f"plugin_dir: {folder}\npath_manager: bad\n")
        assert running.ask("reload").returncode == 0
        assert lab.client.sysctl("mptcp.pm_type") == "0"
        assert traffic.stop().unanswered == 0
        assert running.stop() == 0
        assert lab.client.sysctl("mptcp.pm_type") == "0"


def test_a_reload_that_cannot_set_the_sysctl_leaves_the_old_plugins(
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


def test_adaptive_serves_live_connections_after_a_reload(lab: Lab, tmp_path: Path) -> None:
    with adaptive_in(lab.client, tmp_path) as running:
        traffic = lab.start(TALK)
        until_carried_by(running, traffic.token, *lab.paths)
        assert running.ask("reload").returncode == 0
        lab.paths[0].blackhole()
        until_carried_by(running, traffic.token, lab.paths[1])
        lab.paths[0].heal()
        until_carried_by(running, traffic.token, *lab.paths)
        assert traffic.stop().unanswered == 0
