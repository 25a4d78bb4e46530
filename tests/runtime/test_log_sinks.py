# SPDX-License-Identifier: BSD-3-Clause
"""Log destinations never block: what has no room is dropped, counted and reported."""

import fcntl
import logging
import os
import pty
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mptcpd_ebpf.runtime.log_sinks import DatagramWriter, DescriptorWriter, NonBlockingHandler
from mptcpd_ebpf.runtime.logging_setup import stderr_line
from tests.waiting import until

Ends = tuple[int, int]
"""The descriptor that the log is written to, and the one that it is read from."""


def pipe() -> Ends:
    reading, writing = os.pipe()
    return writing, reading


def stream() -> Ends:
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


def terminal() -> Ends:
    reading, writing = pty.openpty()
    return writing, reading


@pytest.fixture(params=[pipe, stream, terminal])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    make: Callable[[], Ends] = request.param
    with ExitStack() as stack:
        writing, reading = make()
        stack.callback(os.close, writing)
        stack.callback(os.close, reading)
        yield writing, reading


def say(handler: logging.Handler, message: str) -> None:
    handler.handle(logging.LogRecord("x", logging.INFO, "", 0, message, (), None))


def read_all(descriptor: int) -> bytes:
    """Everything that can be read without waiting."""
    os.set_blocking(descriptor, False)
    data = b""
    try:
        while True:
            data += os.read(descriptor, 65536)
    except BlockingIOError:
        return data.replace(b"\r\n", b"\n")


def test_a_reader_that_hangs_costs_messages_and_is_told_how_many(ends: Ends) -> None:
    writing, reading = ends
    before = NonBlockingHandler.dropped_in_all
    handler = NonBlockingHandler(DescriptorWriter(writing), stderr_line)
    flags = fcntl.fcntl(writing, fcntl.F_GETFL)
    sent = 20_000
    for number in range(sent):
        say(handler, f"{number:0100}")
    assert NonBlockingHandler.dropped_in_all > before
    assert fcntl.fcntl(writing, fcntl.F_GETFL) == flags, "other processes share this descriptor"
    received = bytearray(read_all(reading))

    def read_again() -> bool:
        nonlocal sent
        say(handler, f"{sent:0100}")
        sent += 1
        received.extend(read_all(reading))
        return received.endswith(b"%d\n" % (sent - 1))

    until(read_again, "there is room again, and nothing is left to read")
    dropped = NonBlockingHandler.dropped_in_all - before
    lines = received.decode().splitlines()
    kept = [line for line in lines if line.startswith("INFO 0")]
    assert kept == sorted(set(kept))
    assert len(kept) == sent - dropped
    reported = [line.split() for line in lines if line.endswith("nothing read the log")]
    assert sum(int(words[1]) for words in reported) == dropped
    assert len(kept) + len(reported) == len(lines)
    handler.close()


def test_another_users_pipe_is_not_waited_for_either(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> int:
        raise PermissionError

    writing, reading = pipe()
    before = NonBlockingHandler.dropped_in_all
    monkeypatch.setattr(os, "open", refuse)
    handler = NonBlockingHandler(DescriptorWriter(writing), stderr_line)
    for _ in range(2000):
        say(handler, "x" * 100)
    assert NonBlockingHandler.dropped_in_all > before
    handler.close()
    os.close(writing)
    os.close(reading)


def test_a_regular_file_is_continued_where_it_is(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with file.open("wb", buffering=0) as shared:
        shared.write(b"before\n")
        handler = NonBlockingHandler(DescriptorWriter(shared.fileno()), stderr_line)
        say(handler, "message")
        shared.write(b"after\n")
        handler.close()
    assert file.read_text() == "before\nINFO message\nafter\n"


def test_datagrams_are_dropped_while_the_queue_is_full(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with pytest.raises(OSError, match="No such file"):
        DatagramWriter(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(path)
        journal.settimeout(5)
        before = NonBlockingHandler.dropped_in_all
        handler = NonBlockingHandler(DatagramWriter(path), stderr_line)
        for number in range(5000):
            say(handler, str(number))
        dropped = NonBlockingHandler.dropped_in_all - before
        assert 0 < dropped < 5000
        for number in range(5000 - dropped):
            assert journal.recv(4096) == b"INFO %d\n" % number
        say(handler, "after")
        assert journal.recv(4096).startswith(b"WARNING %d log messages" % dropped)
        assert journal.recv(4096) == b"INFO after\n"
        handler.close()


def test_a_listener_that_was_restarted_gets_the_next_message(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    first = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    first.bind(str(path))
    handler = NonBlockingHandler(DatagramWriter(str(path)), stderr_line)
    first.close()
    say(handler, "lost")
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as second:
        second.bind(str(path))
        second.settimeout(5)
        say(handler, "kept")
        assert second.recv(4096) == b"WARNING 1 log messages were dropped: nothing read the log\n"
        assert second.recv(4096) == b"INFO kept\n"
    handler.close()


def test_a_message_neither_commands_the_terminal_nor_looks_like_two(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb", buffering=0) as file:
        handler = NonBlockingHandler(DescriptorWriter(file.fileno()), stderr_line)
        say(handler, "\x1b[2J evil\nERROR forged\r\udcff")
        handler.close()
    assert (tmp_path / "log").read_text() == "INFO \\x1b[2J evil\n    ERROR forged\\x0d\\xff\n"
