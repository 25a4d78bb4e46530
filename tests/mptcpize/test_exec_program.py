# SPDX-License-Identifier: BSD-3-Clause
"""`mptcpd-ebpf exec` replaces itself: arguments, exit code and signals are the program's."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mptcpd_ebpf.mptcpize import environment, program

COMMAND = Path(sys.executable).with_name("mptcpd-ebpf")


def run(*arguments: object, **options: object) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [COMMAND, "exec", *arguments], capture_output=True, timeout=30, **options
    )


def test_arguments_arrive_unchanged() -> None:
    odd = [b"--help", b"-d", b"--", b"a b", b"", b"\xff\xfe", b"$(x)", "é".encode()]
    done = run("sh", "-c", 'printf "%s\\0" "$@"', "sh", *odd)
    assert done.stdout == b"".join(each + b"\0" for each in odd)


@pytest.mark.parametrize("code", [0, 1, 64, 255])
def test_exit_code_is_the_programs(code: int) -> None:
    assert run("sh", "-c", f"exit {code}").returncode == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGPIPE, signal.SIGKILL])
def test_a_signal_ends_it_as_it_ends_the_program(number: signal.Signals) -> None:
    process = subprocess.Popen([COMMAND, "exec", "sh", "-c", "echo there; exec cat"],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        process.send_signal(number)
        assert process.wait(30) == -number


def test_the_program_inherits_nothing_from_the_interpreter() -> None:
    """Ignored signals, descriptors and environment are those that the command got."""
    read, write = os.pipe()
    given = {"PATH": os.environ["PATH"], "ODD": "a\nb=c", "LANG": "C"}
    with open(read, "rb"), open(write, "wb"):
        direct = subprocess.run(
            ["sh", "-c", "grep SigIgn /proc/$$/status; ls /proc/$$/fd; env -0"],
            env=given, pass_fds=[write], stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
        ours = run(
            "sh", "-c", "grep SigIgn /proc/$$/status; ls /proc/$$/fd; env -0",
            env=given, pass_fds=[write],
        )  # fmt: skip
    assert ours.stderr == b""
    lines = set(ours.stdout.replace(b"\0", b"\n").splitlines())
    expected = set(direct.stdout.replace(b"\0", b"\n").splitlines())
    added = {
        f"LD_PRELOAD={environment.library()}".encode(),
        b"GODEBUG=multipathtcp=1",
    }
    assert lines - expected == added
    assert expected <= lines


def test_it_keeps_the_process_id() -> None:
    process = subprocess.Popen([COMMAND, "exec", "sh", "-c", "echo $$"], stdout=subprocess.PIPE)
    assert int(process.communicate(timeout=30)[0]) == process.pid


def test_nested_commands_merge_the_environment() -> None:
    given = {**os.environ, "LD_PRELOAD": "", "GODEBUG": "gctrace=0"}
    done = run(COMMAND, "exec", "sh", "-c", 'echo "$LD_PRELOAD $GODEBUG"', env=given)
    assert done.stdout.decode().split() == [
        str(environment.library()),
        "gctrace=0,multipathtcp=1",
    ]


def test_a_script_without_an_interpreter_line_runs_in_the_shell(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text('echo "$0 $1"\n')
    script.chmod(0o755)
    assert run(script, "x").stdout.decode() == f"{script} x\n"


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("surely-no-such-program", 127, "no such program in PATH"),
        ("/nowhere/at/all", 127, "no such program"),
        ("/etc/passwd", 126, "is not an executable file"),
        ("/etc", 126, "is not an executable file"),
    ],
)
def test_a_program_that_cannot_run_is_reported(name: str, code: int, words: str) -> None:
    done = run(name)
    assert (done.returncode, done.stdout) == (code, b"")
    assert done.stderr.decode() == f"mptcpd-ebpf: {name}: {words}\n"


def test_usage_errors_exit_with_64() -> None:
    assert run().returncode == 64
    assert run("-x", "true").returncode == 64


def test_debug_reports_a_program_that_a_preload_cannot_reach(tmp_path: Path) -> None:
    source = tmp_path / "static.c"
    source.write_text("int main(void) { return 5; }\n")
    built = tmp_path / "static"
    subprocess.run(["clang", "-static", "-o", built, source], check=True)
    done = run("-d", built)
    assert done.returncode == 5
    assert b"statically linked" in done.stderr
    assert run(built).stderr == b""
    assert program.preload_obstacle(sys.executable) is None
