# SPDX-License-Identifier: BSD-3-Clause
"""The command line as a whole: exit codes, messages, and what a command pays for."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mptcpd_ebpf import __version__
from mptcpd_ebpf.cli import group

PROGRAM = str(Path(sys.executable).parent / "mptcpd-ebpf")


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, check=False)


def test_the_version() -> None:
    ended = run("--version")
    assert (ended.returncode, ended.stdout) == (0, f"mptcpd-ebpf {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nonsense",), "No such command 'nonsense'. (see 'mptcpd-ebpf --help')"),
        (("--nonsense",), "No such option '--nonsense'. (see 'mptcpd-ebpf --help')"),
        (("ls", "--nonsense"), "No such option '--nonsense'. (see 'mptcpd-ebpf ls --help')"),
        (("daemon", "-l"), "Option '-l' requires an argument. (see 'mptcpd-ebpf daemon --help')"),
        (("ls", "extra"), "Got unexpected extra argument (extra) (see 'mptcpd-ebpf ls --help')"),
        (("ls", "--control"), "Option '--control' requires an argument. (see 'mptcpd-ebpf ls "),
        (("daemon", "--probes=magic"), "Invalid value for '--probes': 'magic' is not one of"),
        (("daemon", "--prob=magic"), "Invalid value for '--probes': 'magic' is not one of"),
        (("daemon", "--prob=magic", "--probes=auto"), "Invalid value for '--probes': 'magic'"),
        (("daemon", "--l=null"), "Option '--l' could be --load-plugins, --log, --log-level. (see"),
        (
            ("endpoint", "change", "1"),
            "Missing argument 'FLAG...'. Choose from: backup, nobackup, f",
        ),
        (("limits", "--subflows", "x"), "Invalid value for '--subflows': 'x' is not a valid whole"),
        (("announce", "0x1_0", "10.0.0.1"), "Invalid value for 'TOKEN': '0x1_0' is no token: give"),
        (("withdraw", "123456789", "1"), "Invalid value for 'TOKEN': '123456789' is no token"),
        (("daemon", "--de=1"), "Option '--debug' does not take a value."),
    ],
)
def test_a_usage_error_is_one_line_and_exits_64(arguments: tuple[str, ...], message: str) -> None:
    ended = run(*arguments)
    assert ended.returncode == 64
    assert ended.stdout == ""
    assert ended.stderr.startswith(f"mptcpd-ebpf: {message}")
    assert ended.stderr.count("\n") == 1


def test_the_daemons_usage_names_every_option() -> None:
    ended = run("daemon", "--usage")
    assert ended.returncode == 0
    context = group.make_context("mptcpd-ebpf", ["ls"])
    command = group.get_command(context, "daemon")
    assert command is not None
    words = " ".join(ended.stdout.split())
    for parameter in command.params:
        assert parameter.opts[-1] in words, parameter
    assert "[-l, --log [stderr|syslog|journal|null]]" in words


@pytest.mark.parametrize("group_name", [(), ("endpoint",), ("subflow",), ("config",)])
def test_no_command_explains_itself(group_name: tuple[str, ...]) -> None:
    ended = run(*group_name)
    assert ended.returncode == 64
    text = ended.stdout + ended.stderr
    assert text.startswith(f"Usage: {' '.join(('mptcpd-ebpf', *group_name))} ")
    assert "Commands:" in text
    assert "..." not in text.replace("[ARGS]...", ""), "summaries are whole"
    assert "(see " not in text


def test_help_teaches_every_command() -> None:
    text = run("--help").stdout
    context = group.make_context("mptcpd-ebpf", ["ls"])
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        assert command.get_short_help_str(200) in " ".join(text.split()), name
        ended = run(name, "--help")
        assert ended.returncode == 0
        assert ended.stdout.startswith("Usage: mptcpd-ebpf ")


def test_a_closed_pipe_ends_a_command_without_a_message() -> None:
    with subprocess.Popen(
        [PROGRAM, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(20) == -signal.SIGPIPE


def test_ctrl_c_ends_a_command_without_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        silent.settimeout(20)
        with subprocess.Popen(
            [PROGRAM, "ls", "--control", str(path)], stderr=subprocess.PIPE, text=True
        ) as process:
            connection, _ = silent.accept()  # now it waits for an answer
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            assert process.stderr.read().strip() == ""
            assert process.wait(20) == 130
            connection.close()


HEAVY = {"asyncio", "h11", "yaml", "rich", "prometheus_client", "pyroute2", "scapy", "matplotlib"}


@pytest.mark.parametrize(
    ("command", "forbidden"),
    [
        ("import mptcpd_ebpf.cli", HEAVY | {"msgspec", "http"}),
        ("import mptcpd_ebpf.cli.ls, mptcpd_ebpf.cli.pause", HEAVY | {"msgspec"}),
        ("import mptcpd_ebpf.daemon.service", HEAVY - {"asyncio", "h11", "yaml"}),
    ],
)
def test_a_command_pays_for_its_own_imports_alone(command: str, forbidden: set[str]) -> None:
    code = f"{command}; import sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not forbidden & set(loaded)
