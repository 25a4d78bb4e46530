# SPDX-License-Identifier: BSD-3-Clause
"""A bulk transfer between two sockets that the test itself holds."""

import contextlib
import socket
import threading

from tests.netns.mptcp_sockets import Ends

CHUNK = 1 << 25


class Upload:
    """Sends as fast as possible from the client to the server, until stopped.

    A chunk is one call into the kernel, so that the interpreter's switching between this
    process's threads causes no pause in the transfer.
    """

    def __init__(self, ends: Ends) -> None:
        self._ends = ends
        for each in (ends.client, ends.server):
            each.setblocking(True)
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=each) for each in (self._send, self._receive)]

    def __enter__(self) -> "Upload":
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._ends.client.shutdown(socket.SHUT_WR)
        for each in self._threads:
            each.join()

    def _send(self) -> None:
        chunk = bytes(CHUNK)
        with contextlib.suppress(BrokenPipeError):
            while not self._stopping.is_set():
                self._ends.client.send(chunk)

    def _receive(self) -> None:
        space = bytearray(CHUNK)
        while self._ends.server.recv_into(space, CHUNK, socket.MSG_WAITALL):
            pass


def download(ends: Ends) -> Upload:
    """The same from the server to the client."""
    return Upload(Ends(ends.server, ends.client, ends.listener))
