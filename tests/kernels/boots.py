# SPDX-License-Identifier: BSD-3-Clause
"""The tests on one kernel, over several boots of a machine if needed. A kernel may panic, a
machine hang; the report then has the results so far, and the next boot runs the remaining tests
and appends to it.
"""

import time
from pathlib import Path

from tests.kernels import machine, table
from tests.kernels.debian import Kernel
from tests.kernels.report import PORT
from tests.tree import ROOT

SLOWNESS = 8
"""How much longer than on the host a test may take when every instruction is emulated."""
TEST_SECONDS = 120 * SLOWNESS
"""Limit of one test; 120 is pyproject.toml's, on the host."""
_GUEST = ROOT / "tests" / "kernels" / "guest.sh"
_PYTEST = [
    *("python", "-m", "pytest", "--color=no", "-p", "no:cacheprovider"),
    *("-p", "tests.kernels.report", "-p", "tests.kernels.forked"),
]
_IDLE_BOOTS = 3
"""So many boots in a row that bring no test to its end are no accident."""


def show(
    kernel: Kernel, command: str, folder: Path, processors: int, limit_s: float
) -> tuple[str, str]:
    """Runs one shell command on a kernel: its output, and an error if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    report = folder / "report"
    for file in (report, folder / "console"):
        file.write_text("")
    ended = "exit code "
    words = ["bash", "-c", f'exec >{PORT} 2>&1; bash -c "$0"; echo "{ended}$?"', command]
    trouble = machine.run(
        kernel, _guest(kernel, words), [ROOT], folder, processors, limit_s, limit_s
    )
    text = report.read_text(errors="replace")
    said, reached, code = text.rpartition(ended)
    return said if reached else text, trouble or ("" if code == "0\n" else f"{ended}{code.strip()}")


def _guest(kernel: Kernel, command: list[str]) -> list[str]:
    script = ["/bin/bash", str(_GUEST), str(kernel.modules), str(kernel.headers), str(ROOT)]
    return [*script, str(SLOWNESS), *command]


def run(
    kernel: Kernel, tests: list[str], folder: Path, processors: int, limit_s: float
) -> table.Outcome:
    """Runs `tests`, pytest's arguments, on a kernel within `limit_s`; the files go to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    report, over = folder / "report", folder / "over"
    for file in (report, over, folder / "console"):
        file.write_text("")
    command = [*_PYTEST, f"--timeout={TEST_SECONDS}", f"--over={over}", *tests]
    started = time.monotonic()
    idle = 0
    while True:
        left = limit_s - (time.monotonic() - started)
        before = len(over.read_text().splitlines())
        trouble = machine.run(
            kernel,
            _guest(kernel, command),
            [ROOT],
            folder,
            processors,
            left,
            TEST_SECONDS + 60,
        )
        outcome = table.read(
            kernel.wanted, kernel.release, report.read_text(errors="replace"), trouble
        )
        done = outcome.over
        idle = 0 if len(done) > before else idle + 1
        ended = time.monotonic() - started >= limit_s
        if not outcome.cut_short or ended or idle == _IDLE_BOOTS:
            outcome.seconds = time.monotonic() - started
            return outcome
        print(
            f"{kernel.release}: {outcome.trouble} after {len(done)} of {outcome.collected}; again",
            flush=True,
        )
        over.write_text("".join(f"{test}\n" for test in done))
