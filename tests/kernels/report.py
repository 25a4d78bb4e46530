# SPDX-License-Identifier: BSD-3-Clause
"""A pytest plugin: reports each test's result from the guest to the host as it runs. One JSON
object a line on the second serial port: first the kernel's features, then a line when a test
starts and one when it ends, at last the exit code of pytest. The report is valid even if the guest
crashes; tests/kernels/table.py reads it. Tests listed in the file ``--over`` ran on an earlier
boot and are left out.
"""

import json
import os
from pathlib import Path

import pytest

PORT = "/dev/ttyS1"


class Reporter:
    def __init__(self, port: str, over: frozenset[str]) -> None:
        self._port = port
        self._over = over
        self._worst: dict[str, tuple[str, str]] = {}
        self._seconds: dict[str, float] = {}

    def _say(self, **fields: object) -> None:
        with open(self._port, "a") as port:
            port.write(json.dumps(fields) + "\n")

    def pytest_sessionstart(self) -> None:
        self._say(release=os.uname().release, backend=_backend(), probes=_probes())

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid not in self._over]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._say(collected=len(session.items))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._say(test=report.nodeid, outcome="failed", why=str(report.longrepr))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._say(started=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test has the worst outcome of its setup, call and teardown."""
        seconds = self._seconds.get(report.nodeid, 0) + report.duration
        self._seconds[report.nodeid] = seconds
        if report.failed:
            self._worst[report.nodeid] = "failed", report.longreprtext
        elif report.skipped and report.nodeid not in self._worst:
            why = report.longrepr
            reason = why[2] if isinstance(why, tuple) else str(why)
            self._worst[report.nodeid] = "skipped", reason.removeprefix("Skipped: ")
        if report.when == "teardown":
            outcome, why = self._worst.pop(report.nodeid, ("passed", ""))
            self._say(test=report.nodeid, outcome=outcome, why=why, seconds=round(seconds, 1))

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self._say(exit=int(exitstatus))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--over", type=Path, help="the tests that need not run, one a line")


def pytest_configure(config: pytest.Config) -> None:
    file = config.getoption("--over")
    over = frozenset(file.read_text().splitlines()) if file else frozenset()
    config.pluginmanager.register(Reporter(PORT, over))


def _backend() -> str:
    """What impairs the paths of a lab that names no backend."""
    from mptcpd_ebpf.lab import Lab, Path
    from mptcpd_ebpf.lab.errors import LabError

    try:
        with Lab([Path(delay_ms=1)]) as lab:
            return lab.backend.name
    except LabError as error:
        return f"none: {error}"


def _probes() -> str:
    """How the probes were attached, and what is missing."""
    from mptcpd_ebpf.probes import BpfUnavailable, Probes

    try:
        with Probes.open() as probes:
            hooks = probes.report.hooks
    except BpfUnavailable as error:
        return f"none: {error}"
    kinds = sorted({hook.hook.partition("/")[0] for hook in hooks if hook.attached})
    attached = sum(hook.attached for hook in hooks)
    missing = [f"{hook.hook}: {hook.reason}" for hook in hooks if not hook.attached]
    text = f"CO-RE, {'+'.join(kinds)}, {attached} of {len(hooks)}"
    return text + (f"; without {'; '.join(missing)}" if missing else "")
