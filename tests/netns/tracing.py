# SPDX-License-Identifier: BSD-3-Clause
"""Runs a trace tool in a host of the lab, and reads its lines."""

import json
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mptcpd_ebpf.kernel import counters
from mptcpd_ebpf.lab import Host
from mptcpd_ebpf.runtime.exit_codes import ExitCode
from tests.waiting import SLOWNESS, until

DEADLINE_S = 15.0 * SLOWNESS
MAIN = "import sys; from mptcpd_ebpf.cli import main; main(sys.argv[1:])"

Line = dict[str, Any]


class Tracing:
    """A running tool, and its lines so far."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self._pending = b""
        self.lines: list[Line] = []

    def until(self, found: Callable[[Line], bool], what: str) -> Line:
        """The first line, printed already or within the deadline, for which `found` is true."""
        deadline = time.monotonic() + DEADLINE_S
        checked = 0
        while True:
            for line in self.lines[checked:]:
                if found(line):
                    return line
            checked = len(self.lines)
            left = deadline - time.monotonic()
            assert left > 0, f"no {what} among {self.lines}"
            assert self._read(left), f"the tool ended without {what}: {self.lines}"

    def event(self, name: str, **fields: object) -> Line:
        """The first line of a kind with these fields."""
        return self.until(
            lambda line: (
                line["event"] == name
                and all(line.get(key) == value for key, value in fields.items())
            ),
            f"{name} with {fields}",
        )

    def all(self, name: str) -> list[Line]:
        """All lines of a kind so far."""
        return [line for line in self.lines if line["event"] == name]

    @staticmethod
    def counted(host: Host, counter: str, at_least: int) -> None:
        """Waits until an MPTcpExt counter of a host has reached a value."""

        def reached() -> bool:
            with host.entered():
                return counters.read()[counter] >= at_least

        until(reached, f"{counter} at {at_least}")

    def end(self) -> Line:
        """Sends SIGINT; returns the members of all summaries, merged."""
        self._process.send_signal(signal.SIGINT)
        while self._read(DEADLINE_S):
            pass
        assert self._process.wait(DEADLINE_S) == ExitCode.OK
        kinds = ("summary", "not_called", "diagnosis", "account")
        return {
            key: value for kind in kinds for line in self.all(kind) for key, value in line.items()
        }

    def _read(self, seconds: float) -> bool:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                return True
        chunk = self._process.stdout.read1(65536)  # type: ignore[attr-defined]
        *whole, self._pending = (self._pending + chunk).split(b"\n")
        self.lines += [json.loads(line) for line in whole]
        return bool(chunk)


@contextmanager
def tracing(host: Host, *arguments: str) -> Iterator[Tracing]:
    """Runs a tool in a host, and waits until it traces."""
    process = host.popen(
        [sys.executable, "-c", MAIN, "trace", *arguments, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            running = Tracing(process)
            if not running._read(DEADLINE_S):
                assert process.stderr is not None
                problem = process.stderr.read().decode()
                if process.wait() in (ExitCode.NO_MPTCP, ExitCode.PRIVILEGE):
                    pytest.skip(f"this tool cannot run here: {problem}")
                raise AssertionError(problem)
            running.event("started")
            yield running
        finally:
            if process.poll() is None:
                process.kill()
