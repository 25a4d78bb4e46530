# SPDX-License-Identifier: BSD-3-Clause
"""A reader of the log that hangs keeps the daemon neither from starting nor from stopping."""

import json
import os
import signal
import subprocess
from pathlib import Path

from tests.netns.daemon_process import NEW_NAMESPACE, PROGRAM, command
from tests.waiting import SLOWNESS, until


def test_a_log_that_nobody_reads_blocks_neither_work_nor_sigterm(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writing, True)
    control = str(tmp_path / "control.sock")
    argv = [*NEW_NAMESPACE, PROGRAM, "daemon", "--control", control, "--log-level=debug"]
    process = subprocess.Popen(argv, stderr=writing)
    try:

        def dropped() -> int:
            status = command("status", "--json", "--control", control)
            return json.loads(status.stdout)["log_messages_dropped"] if status.stdout else 0

        until(dropped, "the daemon works, and counts what it could not log", 30)
        assert command("reload", "--control", control).returncode == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(20 * SLOWNESS) == 0
    finally:
        process.kill()
        process.wait()
        os.close(reading)
        os.close(writing)
