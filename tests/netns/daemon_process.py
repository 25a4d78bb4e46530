# SPDX-License-Identifier: BSD-3-Clause
"""Daemons and commands as operators start them: processes in network namespaces of their own.

A namespace made by ``unshare`` exists as long as its processes, so nothing is left behind.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.waiting import SLOWNESS, until

PROGRAM = str(Path(sys.executable).parent / "mptcpd-ebpf")
NEW_NAMESPACE = ("unshare", "--net", "--")
START_SECONDS = 30.0


def command(*arguments: str, prefix: Sequence[str] = ()) -> "subprocess.CompletedProcess[str]":
    """Runs one command to its end; `prefix` is the command that starts it."""
    return subprocess.run(
        [*prefix, PROGRAM, *arguments],
        capture_output=True,
        text=True,
        timeout=60 * SLOWNESS,
        check=False,
    )


def refusal(*arguments: str, prefix: Sequence[str] = ()) -> tuple[int, str]:
    """Exit code and message of a command that must fail, with one message and no traceback."""
    ended = command(*arguments, prefix=prefix)
    assert "Traceback" not in ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("mptcpd-ebpf: ")]
    assert len(lines) == 1, ended.stderr
    return ended.returncode, ended.stderr.partition("mptcpd-ebpf: ")[2].strip()


class RunningDaemon:
    """A daemon that has reported that it is ready."""

    def __init__(self, process: "subprocess.Popen[str]", control: Path, log: Path) -> None:
        self.process = process
        self.control = control
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def until_logged(self, words: str) -> None:
        """Waits for a line: one beyond the first of a second comes at the second's end."""
        until(lambda: words in self.log, lambda: f"{words!r} in the log:\n{self.log}")

    @property
    def inside(self) -> tuple[str, ...]:
        """Prefix that runs a command in the daemon's network namespace."""
        return ("nsenter", f"--net=/proc/{self.process.pid}/ns/net", "--")

    def ask(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Runs a command against this daemon."""
        return command(*arguments, "--control", str(self.control))

    def stop(self) -> int:
        """Sends SIGTERM and returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20 * SLOWNESS)


@contextlib.contextmanager
def daemon(
    folder: Path, *arguments: str, prefix: Sequence[str] = NEW_NAMESPACE
) -> Iterator[RunningDaemon]:
    """A daemon, ready, with its control socket and log in `folder`; killed at the end."""
    control, log = folder / "control.sock", folder / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*prefix, PROGRAM, "daemon", "--control", str(control), *arguments],
            stderr=stderr,
            text=True,
        )
    try:
        until(
            lambda: "ready:" in log.read_text() or process.poll() is not None,
            "the daemon is ready",
            START_SECONDS,
        )
        assert process.poll() is None, log.read_text()
        yield RunningDaemon(process, control, log)
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10 * SLOWNESS)
        process.kill()
        process.wait()
