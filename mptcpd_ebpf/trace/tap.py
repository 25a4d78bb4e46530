# SPDX-License-Identifier: BSD-3-Clause
"""Hears the MPTCP signals on every interface of the namespace, and not the data.

A packet socket (packet(7)) whose filter, bpf/trace_tap.bpf.c, runs in the kernel before
anything is copied: SYN, RST and MPTCP options other than an ordinary DSS come through.
"""

import errno
import socket
import struct
import time

from mptcpd_ebpf.probes import ProbesUnavailable
from mptcpd_ebpf.trace.kernel_side import Cost, KernelSide
from mptcpd_ebpf.trace.signals import Signal, read

# include/uapi/linux/if_packet.h, if_ether.h, asm-generic/socket.h
_ETH_P_ALL = 3
_PACKET_OUTGOING = 4
_PACKET_STATISTICS = 6
_SOL_PACKET = 263
_SO_RCVBUFFORCE = 33
_SO_TIMESTAMPNS = 35
_SO_ATTACH_BPF = 50

_QUEUE_BYTES = 4 << 20
_HEADERS = 192
_TIMESPEC = struct.Struct("@qq")
_STAMP_SPACE = socket.CMSG_SPACE(_TIMESPEC.size)
_BATCH = 512


class Tap:
    """The packet socket.  A context manager; bound to the calling thread's namespace."""

    hook = "packet filter on SYN, RST and TCP option 30"

    def __init__(self) -> None:
        """Raises ProbesUnavailable."""
        self._kernel = KernelSide("trace_tap")
        self._dropped = 0
        try:
            kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_PACKET, kind, socket.htons(_ETH_P_ALL))
        except PermissionError:
            self._kernel.close()
            raise ProbesUnavailable("hearing packets needs CAP_NET_RAW: run as root") from None
        self._socket.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_BPF, self._kernel.descriptor("signals")
        )
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _QUEUE_BYTES)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        while self.read():
            pass  # what came before the filter stood

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> list[Signal]:
        """The signals that wait, at most a few hundred; never blocks."""
        signals = []
        for _ in range(_BATCH):
            try:
                packet, ancillary, _, address = self._socket.recvmsg(_HEADERS, _STAMP_SPACE)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.ENETDOWN:
                    continue  # told once when an interface goes down
                raise
            signal = read(
                packet,
                at=_monotonic(ancillary),
                outgoing=address[2] == _PACKET_OUTGOING,
                interface=address[0],
            )
            if signal:
                signals.append(signal)
        return signals

    @property
    def lost(self) -> dict[str, int]:
        """Signals that the queue had no room for."""
        # Reading resets the kernel's counters (struct tpacket_stats: seen, dropped).
        statistics = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        self._dropped += struct.unpack("=II", statistics)[1]
        return {"signals": self._dropped}

    def cost(self) -> Cost:
        return self._kernel.cost()

    def close(self) -> None:
        self._socket.close()
        self._kernel.close()

    def __enter__(self) -> "Tap":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _monotonic(ancillary: list[tuple[int, int, bytes]]) -> int:
    """The packet's time stamp (CLOCK_REALTIME) as CLOCK_MONOTONIC nanoseconds."""
    seconds, nanoseconds = _TIMESPEC.unpack(ancillary[0][2])
    stamp: int = seconds * 1_000_000_000 + nanoseconds
    return stamp + time.monotonic_ns() - time.time_ns()
