# SPDX-License-Identifier: BSD-3-Clause
"""Every reason for which the daemon cannot start has one clear message and an exit code."""

import json
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.netns.daemon_process import NEW_NAMESPACE, command, daemon, refusal
from tests.ordinary_user import AS_NOBODY
from tests.waiting import until


def staged(script: str) -> tuple[str, ...]:
    """Prefix: new network and mount namespaces, which a line of shell changes first."""
    return ("unshare", "--net", "--mount", "--", "sh", "-ec", f'{script}; exec "$@"', "sh")


def bounded(*capabilities: str) -> tuple[str, ...]:
    """Prefix: root in a new network namespace, with only these capabilities."""
    kept = "".join(f",+{name}" for name in capabilities)
    return (*NEW_NAMESPACE, "setpriv", f"--bounding-set=-all{kept}", "--")


def started(
    tmp_path: Path, *arguments: str, prefix: Sequence[str] = NEW_NAMESPACE
) -> tuple[int, str]:
    """Exit code and message of a daemon that must not start."""
    return refusal("daemon", "--control", str(tmp_path / "c.sock"), *arguments, prefix=prefix)


def test_a_kernel_without_mptcp(tmp_path: Path) -> None:
    hidden = staged("mount -t tmpfs none /proc/sys/net/mptcp")
    code, message = started(tmp_path, "--path-manager=adaptive", prefix=hidden)
    assert code == 71
    assert "/proc/sys/net/mptcp" in message


@pytest.mark.ordinary_user
def test_without_cap_net_admin(tmp_path: Path) -> None:
    code, message = started(tmp_path, prefix=(*NEW_NAMESPACE, *AS_NOBODY))
    assert code == 77
    assert "CAP_NET_ADMIN" in message
    code, message = started(tmp_path, prefix=bounded("bpf", "perfmon"))
    assert code == 77
    assert "CAP_NET_ADMIN" in message


def test_read_only_sysctls(tmp_path: Path) -> None:
    fixed = staged("mount --bind /proc/sys /proc/sys; mount -o remount,ro,bind /proc/sys")
    code, message = started(tmp_path, "--path-manager=adaptive", prefix=fixed)
    assert code == 77
    assert "read-only" in message
    assert "sysctl -w net.mptcp." in message


@pytest.mark.parametrize(
    ("prefix", "reason"),
    [
        (staged("mount -t tmpfs none /sys/kernel/btf"), "BTF"),
        (bounded("net_admin"), "CAP_BPF"),
    ],
    ids=["BTF", "CAP_BPF"],
)
def test_without_probes_it_runs_and_names_the_reason(
    tmp_path: Path, prefix: tuple[str, ...], reason: str
) -> None:
    code, message = started(tmp_path, "--probes=core", prefix=prefix)
    assert code == 1
    assert reason in message
    with daemon(tmp_path, prefix=prefix) as running:
        assert reason in running.log
        status = running.ask("status").stdout
        assert "netlink" in status
        assert reason in status
        assert running.stop() == 0


def test_without_cap_net_raw_it_runs_and_says_once_what_is_lost(tmp_path: Path) -> None:
    prefix = bounded("net_admin", "bpf", "perfmon")
    with daemon(tmp_path, "--path-manager=adaptive", prefix=prefix) as running:
        assert running.log.count("CAP_NET_RAW is missing") == 1
        assert running.stop() == 0


def test_a_second_daemon_in_the_namespace(tmp_path: Path) -> None:
    with daemon(tmp_path) as first:
        code, message = refusal(
            "daemon", "--control", str(tmp_path / "other.sock"), prefix=first.inside
        )
        assert code == 75
        assert str(first.process.pid) in message


def test_a_control_path_in_use(tmp_path: Path) -> None:
    with daemon(tmp_path) as first:
        code, message = refusal("daemon", "--control", str(first.control), prefix=NEW_NAMESPACE)
        assert code == 75
        assert f"in use by process {first.process.pid}" in message
        assert first.ask("status").returncode == 0


def test_a_control_path_that_cannot_be_used(tmp_path: Path) -> None:
    code, message = refusal("daemon", "--control", "/x" * 60, prefix=NEW_NAMESPACE)
    assert code == 78
    assert "107" in message
    code, message = refusal(
        "daemon", "--control", str(tmp_path / "none" / "c.sock"), prefix=NEW_NAMESPACE
    )
    assert code == 78
    assert "create its directory first" in message


def test_the_control_socket_of_a_killed_daemon_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(tmp_path / "control.sock"))
    with daemon(tmp_path) as running:
        assert running.ask("status").returncode == 0


def test_a_broken_configuration(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("log_level: loud\nmetrics: {lisen: 1}\npath_manager: nobody\n")
    code, message = started(tmp_path, "--config", str(file))
    assert code == 78
    for place in ("c.yaml:1:1: log_level", "c.yaml:2:11: metrics.lisen", "c.yaml:3:1: path_man"):
        assert place in message


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import nothing_of_that_name\n", "own.py:1 does not load: ModuleNotFoundError"),
        ("def (:\n", "SyntaxError"),
        ("x = 1\n", "defines no Plugin class"),
        ("raise SystemExit(0)\n", "does not load: SystemExit"),
    ],
)
def test_a_plugin_that_does_not_load(tmp_path: Path, source: str, reason: str) -> None:
    folder = tmp_path / "plugins"
    folder.mkdir(mode=0o755)
    (folder / "own.py").write_text(source)
    (folder / "own.py").chmod(0o644)
    code, message = started(tmp_path, "--plugin-dir", str(folder), "--path-manager=own")
    assert code == 78
    assert reason in message


def test_a_plugin_that_does_not_exist(tmp_path: Path) -> None:
    code, message = started(tmp_path, "--path-manager=nobody")
    assert code == 78
    assert "adaptive" in message


def test_a_wrong_command_line(tmp_path: Path) -> None:
    assert started(tmp_path, "--probes=magic")[0] == 64
    assert started(tmp_path, "--nonsense")[0] == 64
    assert refusal("dæmon")[0] == 64


def test_the_control_socket_is_removed_and_the_sysctl_restored(tmp_path: Path) -> None:
    with daemon(tmp_path, "--path-manager=adaptive") as running:
        # Keeps the namespace after the daemon has stopped.
        holder = subprocess.Popen([*running.inside, "sleep", "60"])
        namespace = Path(f"/proc/{holder.pid}/ns/net")
        read = ["nsenter", f"--net={namespace}", "--", "cat", "/proc/sys/net/mptcp/pm_type"]
        try:
            until(
                lambda: namespace.samefile(f"/proc/{running.process.pid}/ns/net"),
                "the holder is in the daemon's namespace",
            )
            assert subprocess.check_output(read, text=True).strip() == "1"
            assert running.stop() == 0
            assert subprocess.check_output(read, text=True).strip() == "0"
        finally:
            holder.kill()
            holder.wait()
        assert not running.control.exists()


@pytest.mark.ordinary_user
def test_only_the_owner_can_use_the_control_socket() -> None:
    with tempfile.TemporaryDirectory() as open_to_all:
        Path(open_to_all).chmod(0o755)
        with daemon(Path(open_to_all)) as running:
            control = ("--control", str(running.control))
            for command_name in ("ls", "status", "pause"):
                code, message = refusal(command_name, *control, prefix=AS_NOBODY)
                assert code == 77
                assert "as that user or as root" in message


def test_commands_without_a_daemon(tmp_path: Path) -> None:
    for command_name in ("ls", "status", "pause", "resume", "reload"):
        code, message = refusal(command_name, "--control", str(tmp_path / "c.sock"))
        assert code == 69
        assert "start 'mptcpd-ebpf daemon'" in message


@pytest.mark.ordinary_user
def test_doctor_names_what_is_missing_and_what_it_cannot_check() -> None:
    def checks(prefix: tuple[str, ...]) -> tuple[int, dict[str, set[str]]]:
        ended = command("doctor", "--json", prefix=prefix)
        answer = json.loads(ended.stdout)
        assert answer["schema"] == 1
        found: dict[str, set[str]] = {}
        for check in answer["checks"]:
            found.setdefault(check["name"], set()).add(check["status"])
            if check["status"] in ("warn", "fail"):
                assert check["way_out"]
        return ended.returncode, found

    code, whole = checks(NEW_NAMESPACE)
    assert code == 0
    assert whole["mptcp"] == whole["capabilities"] == whole["netlink"] == {"ok"}
    assert whole["paths"] == {"warn"}
    code, unseen = checks((*NEW_NAMESPACE, *AS_NOBODY))
    assert code == 1
    assert unseen["capabilities"] == {"fail", "warn"}
    assert unseen["netlink"] == unseen["probes"] == unseen["other managers"] == {"unknown"}
    code, off = checks(staged("echo 0 > /proc/sys/net/mptcp/enabled"))
    assert (code, off["mptcp"]) == (1, {"fail"})
    code, missing = checks(staged("mount -t tmpfs none /proc/sys/net/mptcp"))
    assert (code, missing["mptcp"]) == (1, {"fail"})
    _, without_btf = checks(staged("mount -t tmpfs none /sys/kernel/btf"))
    assert without_btf["btf"] == without_btf["probes"] == {"warn"}
    _, fixed = checks(
        staged("mount --bind /proc/sys /proc/sys; mount -o remount,ro,bind /proc/sys")
    )
    assert "fail" in fixed["sysctls"]


@pytest.mark.ordinary_user
def test_doctor_names_a_daemon_and_another_subscriber(tmp_path: Path) -> None:
    with daemon(tmp_path) as running:
        ended = command("doctor", prefix=running.inside)
        assert f"process {running.process.pid} serves this network namespace" in ended.stdout
        assert "other managers  none" in ended.stdout
        unseen = command("doctor", prefix=(*running.inside, *AS_NOBODY)).stdout
        assert f"process {running.process.pid} serves this network namespace" in unseen
        assert "a process (pid unknown)" not in unseen, "it is that daemon"
        other = subprocess.Popen(
            [*running.inside, "ip", "mptcp", "monitor"], stdout=subprocess.DEVNULL
        )
        try:
            subscribed = f"(pid {other.pid}) is subscribed to"
            until(
                lambda: subscribed in command("doctor", prefix=running.inside).stdout,
                "doctor names the subscriber",
            )
        finally:
            other.kill()
            other.wait()
