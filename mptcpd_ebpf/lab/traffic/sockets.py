# SPDX-License-Identifier: BSD-3-Clause
"""Socket functions that both ends of every workload use."""

import select
import socket
import sys
import time
from collections.abc import Iterable

from mptcpd_ebpf.lab.traffic.workloads import Address, Bulk, Workload

READ = 1 << 18  # bytes per recv
_SOL_MPTCP, _MPTCP_INFO = 284, 1
_INFO_FLAGS, _INFO_TOKEN = slice(8, 12), slice(12, 16)  # struct mptcp_info, linux/mptcp.h
_FALLBACK = 1
_STDIN = 0

now = time.monotonic_ns


class StopRequested(Exception):  # noqa: N818 - nothing went wrong
    """Standard input has ended, which stops the workload."""


def open_socket(workload: Workload, local: Address) -> socket.socket:
    """A bound socket with the workload's options."""
    family = socket.AF_INET6 if ":" in local[0] else socket.AF_INET
    protocol = socket.IPPROTO_MPTCP if workload.transport == "mptcp" else socket.IPPROTO_TCP
    result = socket.socket(family, socket.SOCK_STREAM, protocol)
    result.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for option, size in (
        (socket.SO_SNDBUF, workload.send_buffer),
        (socket.SO_RCVBUF, workload.receive_buffer),
    ):
        if size is not None:
            result.setsockopt(socket.SOL_SOCKET, option, size)
    set_options(result, workload)
    result.bind(local)
    return result


def set_options(connection: socket.socket, workload: Workload) -> None:
    """Sets the options that an accepted MPTCP socket does not inherit on every kernel."""
    if workload.congestion is not None:
        name = workload.congestion.encode()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name)
    if not isinstance(workload, Bulk):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def local_token(connection: socket.socket) -> int | None:
    """The local token; None without MPTCP, also after a fallback."""
    try:
        info = connection.getsockopt(_SOL_MPTCP, _MPTCP_INFO, 256)
    except OSError:
        return None
    if int.from_bytes(info[_INFO_FLAGS], sys.byteorder) & _FALLBACK:
        return None
    return int.from_bytes(info[_INFO_TOKEN], sys.byteorder)


def wait(
    reads: Iterable[socket.socket],
    writes: Iterable[socket.socket],
    until: int | None,
    *,
    stoppable: bool = True,
) -> tuple[list[socket.socket], list[socket.socket]]:
    """select(2) until a time (None: for ever).

    Raises StopRequested if standard input has ended.  It stays readable then, so a caller that
    continues must pass `stoppable` as False.
    """
    timeout = None if until is None else max(0.0, (until - now()) / 1e9)
    watched: list[int | socket.socket] = [*([_STDIN] if stoppable else []), *reads]
    readable, writable, _ = select.select(watched, list(writes), (), timeout)
    if _STDIN in readable:
        raise StopRequested
    return [ready for ready in readable if isinstance(ready, socket.socket)], writable


def send_some(connection: socket.socket, pending: bytearray) -> None:
    """Sends from the front of `pending` as much as the socket accepts."""
    try:
        del pending[: connection.send(pending)]
    except BlockingIOError:
        return
