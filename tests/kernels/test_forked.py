# SPDX-License-Identifier: BSD-3-Clause
"""A fork in place of a program behaves like the program."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.kernels import forked
from tests.waiting import until

PYTHON = sys.executable


@pytest.fixture(autouse=True)
def forking() -> Iterator[None]:
    with forked.forking():
        yield


def ran(text: str, *arguments: str, **options: object) -> "subprocess.CompletedProcess[str]":
    command = [PYTHON, "-c", text, *arguments]
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        command, capture_output=True, text=True, check=False, **options
    )


def test_it_is_a_fork() -> None:
    """It has a module that only this process has imported."""
    done = ran(f"import sys; print({__name__!r} in sys.modules, __name__, sys.argv)", "a", "b")
    assert (done.stdout, done.stderr) == ("True __main__ ['-c', 'a', 'b']\n", "")


@pytest.mark.parametrize(
    ("text", "code", "complaint"),
    [
        ("", 0, ""),
        ("raise SystemExit", 0, ""),
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('no')", 1, "no\n"),
        ("1/0", 1, "ZeroDivisionError: division by zero\n"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt\n"),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL, ""),
        ("import os; os.kill(os.getpid(), 15)", -signal.SIGTERM, ""),
    ],
)
def test_it_ends_as_python_does(text: str, code: int, complaint: str) -> None:
    forked_one = ran(text)
    assert forked_one.returncode == code
    assert forked_one.stderr.endswith(complaint)
    started = subprocess.run([PYTHON, "-I", "-c", text], stderr=subprocess.PIPE, check=False)
    assert started.returncode == code


def test_it_has_the_given_environment_folder_session_and_files() -> None:
    ours, theirs = os.pipe()
    text = "import os; print(dict(os.environ), os.getcwd(), os.getsid(0) == os.getpid()); "
    text += "import sys; print([n for n in sys.argv if os.path.exists(f'/proc/self/fd/{n}')])"
    done = ran(
        text,
        str(ours),
        str(theirs),
        env={"A": "b"},
        cwd="/usr",
        start_new_session=True,
        pass_fds=[theirs],
    )
    os.close(ours)
    os.close(theirs)
    assert done.stdout == f"{{'A': 'b'}} /usr True\n{[str(theirs)]}\n"


def test_a_signal_ends_it_and_this_process_is_notified() -> None:
    text = "import signal; print('up', flush=True); signal.pause()"
    with subprocess.Popen([PYTHON, "-c", text], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        until(lambda: process.poll() is not None, "it ends")
    assert process.returncode == -signal.SIGTERM


def test_what_only_starts_otherwise_is_started() -> None:
    program = forked.PROGRAM
    namespace = ["unshare", "--net", "--"]
    assert len(forked.steps_of([*namespace, program, "ls"])) == 2
    assert len(forked.steps_of(["nsenter", "--net=/run/netns/a", "--", PYTHON, "-c", ""])) == 2
    assert len(forked.steps_of([PYTHON, "-m", "mptcpd_ebpf.lab.traffic.process", "{}"])) == 1
    for other in (
        ["true"],
        [PYTHON, "-I", "-c", ""],
        [PYTHON, "-m", "pip"],
        ["setpriv", "--clear-groups", "--", program],
        ["unshare", "--mount", "--", program],
        ["/usr/bin/mptcpd-ebpf"],
        [],
        program,
    ):
        assert forked.steps_of(other) == []
