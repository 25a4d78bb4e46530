# SPDX-License-Identifier: BSD-3-Clause
"""Sends the log to stderr, syslog, the systemd journal or nowhere.

The journal's native protocol (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/) carries priority
and identifier in one datagram per message, so no library is needed.
"""

import logging
import os
import time
from enum import StrEnum
from logging.handlers import SysLogHandler

from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure
from mptcpd_ebpf.runtime.log_sinks import DatagramWriter, DescriptorWriter, NonBlockingHandler

STDERR = 2
SYSLOG_SOCKET = "/dev/log"
JOURNAL_SOCKET = "/run/systemd/journal/socket"
IDENTIFIER = "mptcpd-ebpf"


class LogDestination(StrEnum):
    """Destinations, with mptcpd's names for them."""

    STDERR = "stderr"
    SYSLOG = "syslog"
    JOURNAL = "journal"
    NULL = "null"


class LogSwitch:
    """An open log destination that is not in use yet."""

    def __init__(self, handler: logging.Handler, level: str) -> None:
        self._handler = handler
        self._level = level.upper()

    def apply(self) -> None:
        """Makes this the log destination, and closes the former one."""
        logging.basicConfig(handlers=[self._handler], level=self._level, force=True)

    def cancel(self) -> None:
        self._handler.close()


def prepare(destination: LogDestination, level: str) -> LogSwitch:
    """Opens a destination for messages of `level` (``debug``, ``info``, …) and above.

    Raises `Failure` (CONFIG) if nothing listens there; the log is then unchanged.
    """
    try:
        return LogSwitch(_handler(destination), level)
    except OSError as error:
        where = SYSLOG_SOCKET if destination is LogDestination.SYSLOG else JOURNAL_SOCKET
        raise Failure(
            f"log: {destination}: {where}: {error.strerror}; start it, or use 'log: stderr', which "
            f"works everywhere",
            ExitCode.CONFIG,
        ) from None


def _handler(destination: LogDestination) -> logging.Handler:
    match destination:
        case LogDestination.NULL:
            return logging.NullHandler()
        case LogDestination.JOURNAL:
            return NonBlockingHandler(DatagramWriter(JOURNAL_SOCKET), journal_entry)
        case LogDestination.SYSLOG:
            return NonBlockingHandler(DatagramWriter(SYSLOG_SOCKET), syslog_entry)
        case LogDestination.STDERR:
            line = journal_line if _is_journal(STDERR) else timed_line
            return NonBlockingHandler(DescriptorWriter(STDERR), line)


def stderr_line(message: str, level: int) -> bytes:
    return _bytes(f"{logging.getLevelName(level)} {message}\n")


def timed_line(message: str, level: int) -> bytes:
    """A line for a terminal or a file, which add no time."""
    now = time.time()
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
    return _bytes(f"{clock}.{int(now % 1 * 1000):03d} ") + stderr_line(message, level)


def journal_line(message: str, level: int) -> bytes:
    """A line of a service's stderr, with the priority for the journal (sd-daemon(3))."""
    return b"<%d>%s" % (_priority(level), stderr_line(message, level))


def _is_journal(descriptor: int) -> bool:
    """Whether it is a stream of the systemd journal (systemd.exec(5), JOURNAL_STREAM)."""
    status = os.fstat(descriptor)
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def syslog_entry(message: str, level: int) -> bytes:
    """One entry of syslog(3), as the C library sends it to its socket, without the time."""
    priority = SysLogHandler.LOG_DAEMON << 3 | _priority(level)
    return _bytes(f"<{priority}>{IDENTIFIER}[{os.getpid()}]: {message}")


def journal_entry(message: str, level: int) -> bytes:
    """One entry; a message of several lines is preceded by its length."""
    raw = _bytes(message)
    text = b"MESSAGE\n" + len(raw).to_bytes(8, "little") + raw
    return b"PRIORITY=%d\nSYSLOG_IDENTIFIER=%s\n%s\n" % (
        _priority(level),
        IDENTIFIER.encode(),
        text,
    )


def _bytes(message: str) -> bytes:
    return message.encode("utf-8", "surrogateescape")


def _priority(level: int) -> int:
    """syslog(3)'s priority of a level of `logging`."""
    for least, priority in ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6)):
        if level >= least:
            return priority
    return 7
