# SPDX-License-Identifier: BSD-3-Clause
"""Captures the TCP segments of a namespace's interfaces, from a packet socket (packet(7)).

It uses a raw AF_PACKET socket and not scapy's sniffer: the socket captures from the moment the
constructor returns, reports the direction of each packet, and counts lost packets.

- A socket filter passes TCP only and cuts each packet to `snap` bytes before it is queued.
- PACKET_VNET_HDR prepends the segment size of an offloaded super-packet.
- The kernel stamps packets with CLOCK_REALTIME (SO_TIMESTAMPNS).  The difference to
  CLOCK_MONOTONIC is read with every packet, so a clock step affects only the packets that are
  in the queue at that moment.
- The kernel counts packets for which the queue has no room (PACKET_STATISTICS); a query then
  raises an error instead of returning a wrong number.

The capture point is behind the sender's queueing discipline: a packet that a qdisc of the same
interface drops is not captured as outgoing.
"""

import ctypes
import os
import selectors
import socket
import struct
import threading
import time
from contextlib import nullcontext

from mptcpd_ebpf.lab import namespaces
from mptcpd_ebpf.lab.errors import LabError
from mptcpd_ebpf.lab.wire.segment import Segment, read_segment

# include/uapi/linux/if_packet.h, if_ether.h, if_arp.h, asm-generic/socket.h
_ETH_P_ALL = 3
_PACKET_STATISTICS = 6
_PACKET_VNET_HDR = 15
_PACKET_OUTGOING = 4
_SOL_PACKET = 263
_SO_RCVBUFFORCE = 33
_SO_TIMESTAMPNS = 35
_SO_ATTACH_FILTER = 26
_LINK_HEADER = {1: 14, 772: 14}
"""Bytes of link header by sll_hatype: Ethernet and loopback; a TUN device has none."""

_VNET_HEADER = struct.Struct("=BBHHHH")  # struct virtio_net_hdr, without num_buffers
_TIMESPEC = struct.Struct("@qq")
_QUEUE_BYTES = 64 << 20
_STAMP_SPACE = socket.CMSG_SPACE(_TIMESPEC.size)
_BATCH, _ALL = 256, 1 << 20
PATIENCE_S = 5.0
"""The default time to wait for a packet."""
WHOLE = 0x40000
"""A snap length greater than any packet."""


class Capture:
    """Captures into `segments` until `close`, in a thread of its own.

    `netns` is a namespace's name under /run/netns, None the caller's own.  Raises
    LabError if the namespace does not exist, PermissionError without CAP_NET_RAW.
    """

    def __init__(self, netns: str | None = None, *, snap: int = WHOLE) -> None:
        self.netns = netns
        self.segments: list[Segment] = []
        """Everything captured so far, in the order of capture; nothing is ever removed."""
        self.arrived = threading.Condition()
        """Held while `segments` changes, notified when it has grown."""
        self.lost = 0
        with namespaces.entered(netns) if netns else nullcontext():
            self._socket = _packet_socket(snap)
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._read, name=f"capture {netns}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops the capture; `segments` stays available."""
        if self._thread.is_alive():
            os.write(self._wake_write, b"\0")
            self._thread.join()
            self._take(_ALL, until=time.monotonic_ns())
            self._count_losses()
            self._socket.close()
            os.close(self._wake_read)
            os.close(self._wake_write)

    def catch_up(self) -> None:
        """Returns when `segments` holds every packet that has passed by now."""
        if self._thread.is_alive():
            self._take(_ALL, until=time.monotonic_ns())

    def check(self) -> None:
        """Raises LabError if the kernel dropped packets, so that the capture is incomplete."""
        if self._thread.is_alive():
            self._count_losses()
        if self.lost:
            raise LabError(
                f"the capture in {self.netns or 'this namespace'} lost {self.lost} packets: "
                "capture less (a smaller snap length, fewer bytes of traffic)"
            )

    def since(self, index: int, deadline: float) -> list[Segment]:
        """The segments from `index` on; waits for the first until `deadline` (time.monotonic())."""
        with self.arrived:
            while len(self.segments) <= index:
                if not self.arrived.wait(max(0.0, deadline - time.monotonic())):
                    break
            return self.segments[index:]

    def _count_losses(self) -> None:
        # Reading resets the kernel's counters (struct tpacket_stats: seen, dropped).
        statistics = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        self.lost += struct.unpack("=II", statistics)[1]

    def _read(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            stop = selector.register(self._wake_read, selectors.EVENT_READ)
            while not any(key is stop for key, _ in selector.select()):
                self._take(_BATCH)

    def _take(self, most: int, until: int | None = None) -> None:
        with self.arrived:
            self.segments += self._drain(most, until)
            self.arrived.notify_all()

    def _drain(self, most: int, until: int | None) -> list[Segment]:
        """Reads the segments that are queued, up to the first segment after `until`.

        Without `until` this might never end: on a slow machine packets arrive as fast as they
        are read.
        """
        batch: list[Segment] = []
        while len(batch) < most:
            try:
                data, ancillary, _, address = self._socket.recvmsg(WHOLE, _STAMP_SPACE)
            except OSError:
                # The queue is empty; or ENETDOWN, reported once when an interface goes down.
                break
            way, hatype = address[2:4]
            _, gso_type, _, gso_size, _, _ = _VNET_HEADER.unpack_from(data)
            segment = read_segment(
                data[_VNET_HEADER.size + _LINK_HEADER.get(hatype, 0) :],
                at=_monotonic(ancillary),
                interface=address[0],
                outgoing=way == _PACKET_OUTGOING,
                segment_size=gso_size if gso_type else 0,
            )
            if segment:
                batch.append(segment)
                if until is not None and segment.at > until:
                    break
        return batch


def _monotonic(ancillary: list[tuple[int, int, bytes]]) -> int:
    """The packet's time stamp, as CLOCK_MONOTONIC nanoseconds."""
    seconds, nanoseconds = _TIMESPEC.unpack(ancillary[0][2])
    stamp: int = seconds * 1_000_000_000 + nanoseconds
    return stamp + time.clock_gettime_ns(time.CLOCK_MONOTONIC) - time.time_ns()


def _packet_socket(snap: int) -> socket.socket:
    # It captures at once; read_segment discards other packets that precede the filter.
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
    packets = socket.socket(socket.AF_PACKET, kind, socket.htons(_ETH_P_ALL))
    try:
        packets.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        packets.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _QUEUE_BYTES)
        packets.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        _attach_filter(packets, snap)
    except OSError:
        packets.close()
        raise
    return packets


def _attach_filter(packets: socket.socket, snap: int) -> None:
    """Passes TCP, cut to `snap` bytes; packets with IPv6 extension headers are checked later.

    Classic BPF (include/uapi/linux/filter.h); offsets from SKF_NET_OFF count from the IP
    header, whatever the link header is.
    """
    load_half, load_byte, jump_equal, give = 0x28, 0x30, 0x15, 0x06
    protocol, network = 0xFFFFF000, 0xFFF00000  # SKF_AD_OFF + SKF_AD_PROTOCOL, SKF_NET_OFF
    program = [
        (load_half, 0, 0, protocol),
        (jump_equal, 0, 2, 0x0800),  # IPv4
        (load_byte, 0, 0, network + 9),
        (jump_equal, 5, 6, 6),  # TCP
        (jump_equal, 0, 5, 0x86DD),  # IPv6
        (load_byte, 0, 0, network + 6),
        (jump_equal, 2, 0, 6),
        (jump_equal, 1, 0, 0),  # hop-by-hop options
        (jump_equal, 0, 1, 60),  # destination options
        (give, 0, 0, snap),
        (give, 0, 0, 0),
    ]
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    packets.setsockopt(
        socket.SOL_SOCKET,
        _SO_ATTACH_FILTER,
        struct.pack("@HP", len(program), ctypes.addressof(buffer)),
    )
