# SPDX-License-Identifier: BSD-3-Clause
"""Log entries have the format of their destination."""

import logging
import os
import re

import pytest

from mptcpd_ebpf.runtime.logging_setup import (
    LogDestination,
    journal_entry,
    prepare,
    stderr_line,
    syslog_entry,
)


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


def test_a_message_has_its_level_once(capfd: pytest.CaptureFixture[str]) -> None:
    before = logging.root.handlers[:]
    try:
        prepare(LogDestination.STDERR, "info").apply()
        logging.getLogger("any").info("%d paths", 2)
        time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"
        assert re.fullmatch(f"{time} INFO 2 paths\n", capfd.readouterr().err)
    finally:
        prepare(LogDestination.NULL, "warning").apply()
        for handler in before:
            logging.root.addHandler(handler)


def test_in_a_service_a_line_has_the_priority_for_the_journal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    before = logging.root.handlers[:]
    try:
        prepare(LogDestination.STDERR, "info").apply()
        logging.getLogger("any").warning("a path")
        assert capfd.readouterr().err == "<4>WARNING a path\n"
    finally:
        prepare(LogDestination.NULL, "warning").apply()
        for handler in before:
            logging.root.addHandler(handler)


def test_bytes_that_are_not_utf_8_reach_the_log_as_they_are() -> None:
    message = b"\xff".decode("utf-8", "surrogateescape")
    assert stderr_line(message, logging.INFO) == b"INFO \xff\n"
    assert syslog_entry(message, logging.ERROR).startswith(b"<27>mptcpd-ebpf[")
    assert syslog_entry(message, logging.ERROR).endswith(b"]: \xff")
