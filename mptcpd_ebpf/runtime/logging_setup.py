# SPDX-License-Identifier: BSD-3-Clause
"""Sends the log to stderr, syslog, the systemd journal or nowhere.

The journal's native protocol (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/) carries priority
and identifier in one datagram per message, so no library is needed.
"""

import logging
import logging.handlers
import os
import socket
import sys
from enum import StrEnum

from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure

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
            return JournalHandler(JOURNAL_SOCKET)
        case LogDestination.SYSLOG:
            # The standard library's handler does not report that nothing listens there.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
                probe.connect(SYSLOG_SOCKET)
            syslog = logging.handlers.SysLogHandler(
                SYSLOG_SOCKET, logging.handlers.SysLogHandler.LOG_DAEMON
            )
            syslog.ident = f"{IDENTIFIER}[{os.getpid()}]: "
            return syslog
        case LogDestination.STDERR:
            stderr = logging.StreamHandler(sys.stderr)
            stderr.setFormatter(_formatter(sys.stderr.fileno()))
            return stderr


def _formatter(descriptor: int) -> logging.Formatter:
    """With the time, unless the descriptor is a stream of the systemd journal, which adds it."""
    status = os.fstat(descriptor)
    if os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}":
        return logging.Formatter("%(levelname)s %(message)s")
    form = "%(asctime)s.%(msecs)03d %(levelname)s %(message)s"
    return logging.Formatter(form, "%Y-%m-%d %H:%M:%S")


class JournalHandler(logging.Handler):
    """Sends each message as one datagram to the journal's socket."""

    def __init__(self, path: str) -> None:
        """Raises OSError if nothing listens at `path`."""
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._socket.send(journal_entry(self.format(record), record.levelno))
        except OSError:
            self.handleError(record)

    def close(self) -> None:
        self._socket.close()
        super().close()


def journal_entry(message: str, level: int) -> bytes:
    """One entry; a message of several lines is preceded by its length."""
    raw = message.encode("utf-8", "surrogateescape")
    text = b"MESSAGE\n" + len(raw).to_bytes(8, "little") + raw
    return b"PRIORITY=%d\nSYSLOG_IDENTIFIER=%s\n%s\n" % (
        _priority(level),
        IDENTIFIER.encode(),
        text,
    )


def _priority(level: int) -> int:
    """syslog(3)'s priority of a level of `logging`."""
    for least, priority in ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6)):
        if level >= least:
            return priority
    return 7
