# SPDX-License-Identifier: BSD-3-Clause
"""Log entries have the journal's format."""

import logging
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mptcpd_ebpf.runtime.logging_setup import JournalHandler, journal_entry


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7)],
)
def test_an_entry_has_priority_identifier_and_message(level: int, priority: int) -> None:
    assert journal_entry("a", level) == (
        b"PRIORITY=%d\nSYSLOG_IDENTIFIER=mptcpd-ebpf\nMESSAGE\n" % priority
        + b"\x01\0\0\0\0\0\0\0a\n"
    )


def test_a_message_cannot_forge_fields() -> None:
    entry = journal_entry("a\nPRIORITY=0", logging.INFO)
    assert entry.endswith(b"MESSAGE\n\x0c\0\0\0\0\0\0\0a\nPRIORITY=0\n")


def test_the_handler_sends_one_datagram_per_message(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with pytest.raises(OSError, match="No such file"):
        JournalHandler(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(path)
        journal.settimeout(5)
        handler = JournalHandler(path)
        handler.handle(logging.LogRecord("x", logging.INFO, "", 0, "%d paths", (2,), None))
        assert journal.recv(4096) == journal_entry("2 paths", logging.INFO)
        handler.close()


@pytest.mark.parametrize("to_journal", [False, True])
def test_stderr_has_the_time_unless_the_journal_adds_it(tmp_path: Path, to_journal: bool) -> None:
    log = tmp_path / "log"
    code = (
        "import logging; from mptcpd_ebpf.runtime import logging_setup as s; "
        "s.prepare(s.LogDestination.STDERR, 'info').apply(); logging.warning('full')"
    )
    with log.open("w") as stderr:
        status = os.fstat(stderr.fileno())
        stream = f"{status.st_dev}:{status.st_ino if to_journal else 0}"
        environment = {**os.environ, "JOURNAL_STREAM": stream}
        subprocess.run([sys.executable, "-c", code], stderr=stderr, env=environment, check=True)
    time = "" if to_journal else r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} "
    assert re.fullmatch(f"{time}WARNING full\n", log.read_text())
