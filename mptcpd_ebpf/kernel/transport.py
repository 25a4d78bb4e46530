# SPDX-License-Identifier: BSD-3-Clause
"""Netlink sockets: one kind for requests, one for subscriptions; never the same socket for both.

A socket belongs to the network namespace in which the *calling thread* is when it
opens it, for good.  To work in another namespace, enter it (setns) in a thread or
child first and open there.

The kernel handles a request inside sendmsg, so its answer is normally waiting when
the call returns; both drivers look first and only then wait.
"""

import asyncio
import contextlib
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from typing import Self

from mptcpd_ebpf.kernel.errors import KernelError, NotPermitted, errno_words
from mptcpd_ebpf.kernel.netlink import Operation, Pending, Reply, Request, T, messages

NETLINK_ROUTE = 0
NETLINK_SOCK_DIAG = 4
NETLINK_GENERIC = 16

_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12
_SO_RCVBUFFORCE = 33

_DATAGRAM = 1 << 17
"""The longest datagram that is read: dumps come in at most 32 KiB, a link with many VFs may be
longer."""
_QUEUED = 1 << 15
"""More datagrams than any receive buffer of ours holds."""
ANSWER_TIMEOUT_S = 5.0
"""An answer later than this is taken as lost."""
_DUMP_ATTEMPTS = 5


def _open(protocol: int) -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    try:
        sock = socket.socket(socket.AF_NETLINK, kind, protocol)
    except OSError as error:
        raise KernelError(
            f"cannot open netlink protocol {protocol}: {errno_words(error.errno or 0)}; "
            "a service needs AF_NETLINK in RestrictAddressFamilies="
        ) from None
    sock.bind((0, 0))
    return sock


class Requester:
    """A socket for requests, for use from one thread, blocking or from asyncio."""

    def __init__(self, protocol: int) -> None:
        self._sock = _open(protocol)
        for option in (_NETLINK_EXT_ACK, _NETLINK_CAP_ACK, _NETLINK_GET_STRICT_CHK):
            self._sock.setsockopt(_SOL_NETLINK, option, 1)
        self._buffer = bytearray(_DATAGRAM)
        self._sequence = 0
        self._pending: dict[int, Pending] = {}
        self._waiting: dict[int, asyncio.Future[None]] = {}

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        """Closes the socket; pending requests get no answer."""
        self._stop_reading()
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, operation: Operation[T]) -> T:
        """Runs an operation to its end, blocking."""
        try:
            request = next(operation)
            while True:
                request = operation.send(self.ask(request))
        except StopIteration as end:
            result: T = end.value
            return result

    async def run_async(self, operation: Operation[T]) -> T:
        """Runs an operation to its end; other tasks go on while it waits."""
        try:
            request = next(operation)
            while True:
                request = operation.send(await self.ask_async(request))
        except StopIteration as end:
            result: T = end.value
            return result

    def ask(self, request: Request) -> Reply:
        """Sends one request and blocks until it is answered.  An interrupted dump is repeated."""
        for _ in range(_DUMP_ATTEMPTS):
            sequence, pending = self._send(request)
            deadline = time.monotonic() + ANSWER_TIMEOUT_S
            self._receive()
            while pending.reply is None:
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([self._sock], [], [], left)[0]:
                    pending.fail(errno.ETIMEDOUT, "the kernel did not answer")
                else:
                    self._receive()
            reply = self._finish(sequence, pending)
            if not reply.interrupted:
                break
        return reply

    async def ask_async(self, request: Request) -> Reply:
        """`ask` for asyncio: several requests may be pending."""
        for _ in range(_DUMP_ATTEMPTS):
            sequence, pending = self._send(request)
            self._receive()
            if pending.reply is None:
                await self._wait(sequence, pending)
            reply = self._finish(sequence, pending)
            if not reply.interrupted:
                break
        return reply

    async def _wait(self, sequence: int, pending: Pending) -> None:
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.add_reader(self._sock, self._receive)
        self._waiting[sequence] = loop.create_future()
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await self._waiting[sequence]
        except TimeoutError:
            pending.fail(errno.ETIMEDOUT, "the kernel did not answer")
        finally:
            del self._waiting[sequence]
            self._pending.pop(sequence, None)
            if not self._waiting:
                loop.remove_reader(self._sock)

    def _stop_reading(self) -> None:
        for future in self._waiting.values():
            future.get_loop().remove_reader(self._sock)
            future.cancel()

    def _send(self, request: Request) -> tuple[int, Pending]:
        self._sequence = sequence = self._sequence % 0xFFFFFFFF + 1
        pending = self._pending[sequence] = Pending(request, sequence)
        try:
            self._sock.sendto(pending.encode(), (0, 0))
        except OSError as error:
            pending.fail(error.errno or errno.EIO, "the request could not be sent")
        return sequence, pending

    def _finish(self, sequence: int, pending: Pending) -> Reply:
        self._pending.pop(sequence, None)
        assert pending.reply is not None
        return pending.reply

    def _receive(self) -> None:
        """Reads what has arrived and passes it to the request it answers."""
        while True:
            try:
                length, sender = self._sock.recvfrom_into(self._buffer, _DATAGRAM, socket.MSG_TRUNC)
            except BlockingIOError:
                return
            except OSError as error:
                self._fail_all(error.errno or errno.EIO, "an answer was lost")
                return
            if sender[0] != 0:
                continue  # only the kernel answers
            if length > _DATAGRAM:
                self._fail_all(errno.EMSGSIZE, "an answer was too long")
                return
            try:
                self._hand_out(length)
            except (ValueError, struct.error) as error:
                self._fail_all(errno.EBADMSG, f"an answer was mangled: {error}")

    def _hand_out(self, length: int) -> None:
        for kind, flags, sequence, start, end in messages(self._buffer, length):
            pending = self._pending.get(sequence)
            if pending is None:
                continue  # late: the request was abandoned
            pending.feed(kind, flags, self._buffer, start, end)
            if pending.reply is not None:
                self._wake(sequence)

    def _fail_all(self, code: int, words: str) -> None:
        for sequence, pending in self._pending.items():
            if pending.reply is None:
                pending.fail(code, words)
                self._wake(sequence)

    def _wake(self, sequence: int) -> None:
        future = self._waiting.get(sequence)
        if future is not None and not future.done():
            future.set_result(None)


class Subscription:
    """A socket that receives multicast groups and sends no requests. `receive` yields the waiting
    datagrams, each as (buffer, length); the buffer is reused for the next one.  It raises
    `MessagesLost` when the kernel dropped messages because the socket's buffer was full.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray(_DATAGRAM)

    @classmethod
    def open(cls, protocol: int, groups: list[int], *, receive_buffer: int) -> Self:
        """Subscribes to `groups` with a receive buffer of `receive_buffer` bytes.

        Raises NotPermitted where a group needs CAP_NET_ADMIN and we lack it.
        """
        sock = _open(protocol)
        try:
            try:
                sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_buffer)
            except PermissionError:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            for group in groups:
                sock.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
        except PermissionError:
            sock.close()
            raise NotPermitted(
                "hearing the kernel's MPTCP events needs CAP_NET_ADMIN in the user namespace "
                "that owns this network namespace: run as root or add the capability"
            ) from None
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    @classmethod
    def adopt(cls, fd: int) -> Self:
        """Goes on with a subscribed socket that someone kept for us, and owns `fd` from now on."""
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        os.set_inheritable(fd, False)
        return cls(sock)

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        """Closes the socket, and with it leaves its groups."""
        self._sock.close()

    def receive(self, limit: int) -> Iterator[tuple[bytearray, int]]:
        """Up to `limit` datagrams, so that a flood does not hold its reader for ever."""
        buffer, receive = self._buffer, self._sock.recvfrom_into
        for _ in range(limit):
            try:
                length, sender = receive(buffer, _DATAGRAM, socket.MSG_TRUNC)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    raise MessagesLost from None
                raise
            if length > _DATAGRAM:
                raise MessagesLost
            if sender[0] == 0:  # only messages from the kernel count
                yield buffer, length

    def discard(self) -> None:
        """Discards what waits, which is older than the answer to the next request. After an
        overflow the kernel drops everything until the queue is empty.
        """
        for _ in range(2):  # the first pass may find one more overflow before the queue
            with contextlib.suppress(MessagesLost):
                for _ in self.receive(_QUEUED):
                    pass


class MessagesLost(Exception):  # noqa: N818
    """Messages were lost."""
