# SPDX-License-Identifier: BSD-3-Clause
"""Signals to a daemon that starts or stops: its exit code is 0, and no SIGHUP is lost."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.netns.daemon_process import NEW_NAMESPACE, PROGRAM, START_SECONDS, daemon
from tests.waiting import SLOWNESS, until

pytestmark = pytest.mark.starts_anew


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has installed a handler for a signal."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (caught,) = [line.split()[1] for line in lines if line.startswith("SigCgt:")]
    return bool(int(caught, 16) >> (number - 1) & 1)


def maps(library: str) -> Callable[[int, Path], bool]:
    return lambda pid, _folder: library in Path(f"/proc/{pid}/maps").read_text()


MOMENTS: dict[str, Callable[[int, Path], bool]] = {
    "at once": lambda pid, _: catches(pid, signal.SIGHUP),
    "while it imports": maps("msgspec"),
    "while it loads probes": maps("libbpf"),
    "when its socket exists": lambda _, folder: (folder / "control.sock").exists(),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_during_the_start(tmp_path: Path, number: signal.Signals, moment: str) -> None:
    log = tmp_path / "log"
    with log.open("w") as stderr:
        started = subprocess.Popen(
            [*NEW_NAMESPACE, PROGRAM, "daemon", "--control", str(tmp_path / "control.sock")],
            stderr=stderr,
        )
    try:
        until(lambda: MOMENTS[moment](started.pid, tmp_path), moment, START_SECONDS)
        started.send_signal(number)
        if number is signal.SIGHUP:
            until(
                lambda: "configuration reloaded" in log.read_text() or started.poll() is not None,
                "the reload",
                START_SECONDS,
            )
            assert "ready:" in log.read_text()
            assert started.poll() is None, log.read_text()
            started.send_signal(signal.SIGTERM)
        assert started.wait(START_SECONDS * SLOWNESS) == 0
        assert "Traceback" not in log.read_text()
    finally:
        started.kill()
        started.wait()


def test_signal_handlers_are_installed_before_the_slow_imports() -> None:
    """The program's file imports none of them before it calls `main`."""
    heavy = {"click", "yaml", "msgspec", "asyncio", "mptcpd_ebpf.cli"}
    code = f"import sys, mptcpd_ebpf.__main__; sys.exit(bool({heavy!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_other_commands_keep_python_s_own_handlers() -> None:
    """The exit code of `ls` shows the signal that ended it."""
    code = "import os, signal, sys; sys.argv = ['mptcpd-ebpf', 'ls']; "
    code += (
        "import mptcpd_ebpf.cli as cli; cli.main = lambda **_: os.kill(os.getpid(), signal.SIGTERM)"
    )
    code += "; from mptcpd_ebpf.__main__ import main; main()"
    ended = subprocess.run([sys.executable, "-c", code], check=False)
    assert ended.returncode == -signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_more_signals_during_the_stop_change_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    with daemon(tmp_path) as running:
        running.process.send_signal(signal.SIGTERM)
        until(lambda: _is_gone(running.process, number), "it has ended")
        assert running.process.returncode == 0
        assert "Traceback" not in running.log


def _is_gone(process: "subprocess.Popen[str]", number: signal.Signals) -> bool:
    for _ in range(1000):
        if process.poll() is not None:
            return True
        process.send_signal(number)
    return False
