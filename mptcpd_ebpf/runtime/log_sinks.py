# SPDX-License-Identifier: BSD-3-Clause
"""Where log messages are written: without waiting for whoever reads them.

A reader that hangs fills its pipe, terminal or socket.  Messages are then dropped and counted, and
the first one that fits again is preceded by a message with the number.  A destination that blocked
would keep the daemon from its events and from SIGTERM.
"""

import errno
import logging
import os
import select
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from mptcpd_ebpf.core.names import printable

PIPE_BUF = 4096
"""Bytes for which a pipe that is writable according to poll(2) has room (pipe(7))."""

Encode = Callable[[str, int], bytes]
"""The bytes of a message of a level of `logging`."""


class Writer(Protocol):
    """An open destination."""

    def write(self, message: bytes) -> bool:
        """Writes all of a message or nothing; False if there is no room.  Raises OSError."""

    def close(self) -> None: ...


class NonBlockingHandler(logging.Handler):
    """Writes messages, and drops those for which there is no room."""

    dropped_in_all = 0
    """Messages dropped by all handlers since the start."""

    def __init__(self, writer: Writer, encode: Encode) -> None:
        super().__init__()
        self._writer = writer
        self._encode = encode
        self._dropped = 0
        # Otherwise logging.basicConfig sets one that repeats the level.
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._dropped:
                note = f"{self._dropped} log messages were dropped: nothing read the log"
                if self._write(note, logging.WARNING):
                    self._dropped = 0
            if self._dropped or not self._write(_shown(self.format(record)), record.levelno):
                self._drop()
        except Exception:  # such as a message whose arguments do not fit
            self._drop()

    def _write(self, message: str, level: int) -> bool:
        try:
            return self._writer.write(self._encode(message, level))
        except OSError:
            return False

    def _drop(self) -> None:
        self._dropped += 1
        NonBlockingHandler.dropped_in_all += 1

    def close(self) -> None:
        self._writer.close()
        super().close()


def _shown(message: str) -> str:
    """A message without what a terminal would obey.  What follows a line end is indented, so that
    nothing in a message looks like a message of its own."""
    return printable(message, keep="\n\t").replace("\n", "\n    ")


class DescriptorWriter:
    """Writes to an inherited descriptor, whose mode other processes share, so it stays as it is.

    A pipe or a terminal is opened anew, where the kernel allows that, for a mode of its own.
    """

    def __init__(self, descriptor: int) -> None:
        """Raises OSError if it is closed."""
        mode = os.fstat(descriptor).st_mode
        self._file = stat.S_ISREG(mode)
        self._socket = socket.socket(fileno=os.dup(descriptor)) if stat.S_ISSOCK(mode) else None
        self._own: int | None = None
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            with suppress(OSError):  # another user's pipe: `poll` has to do
                self._own = os.open(f"/proc/self/fd/{descriptor}", flags)
        self._descriptor = descriptor if self._own is None else self._own
        self._rest = b""
        """Of a message of which only a part had room."""

    def write(self, message: bytes) -> bool:
        self._rest = self._rest[self._put(self._rest) :]
        if self._rest:
            return False
        written = self._put(message)
        if written:
            self._rest = message[written:]
        return written > 0

    def _put(self, data: bytes) -> int:
        """The number of bytes for which there was room."""
        written = 0
        try:
            while written < len(data):
                written += self._some(data[written : written + PIPE_BUF])
        except BlockingIOError:
            pass
        return written

    def _some(self, part: bytes) -> int:
        if self._socket is not None:
            return self._socket.send(part, socket.MSG_DONTWAIT)
        if self._own is None and not self._file and not self._has_room():
            raise BlockingIOError
        return os.write(self._descriptor, part)

    def _has_room(self) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        return bool(poll.poll(0))

    def close(self) -> None:
        if self._own is not None:
            os.close(self._own)
        if self._socket is not None:
            self._socket.close()


class DatagramWriter:
    """Sends each message as one datagram to a Unix socket, also after its listener restarted."""

    def __init__(self, path: str) -> None:
        """Raises OSError if nothing listens at `path`."""
        self._path = path
        self._socket = self._connect()

    def _connect(self) -> socket.socket:
        connected = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        try:
            connected.connect(self._path)
        except OSError:
            connected.close()
            raise
        return connected

    def write(self, message: bytes) -> bool:
        try:
            self._socket.send(message)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in (errno.ECONNREFUSED, errno.ENOTCONN, errno.ECONNRESET):
                raise
            again = self._connect()
            self._socket.close()
            self._socket = again
            again.send(message)
        return True

    def close(self) -> None:
        self._socket.close()
