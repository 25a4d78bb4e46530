# SPDX-License-Identifier: BSD-3-Clause
"""Sends path probes (`probe_packet`) and receives their answers.

For each local address that is probed there is one raw socket, bound to the address and its
interface, so that the kernel looks at no packet of other paths for it; a classic BPF filter on the
port keeps all other segments from waking the daemon.  It is open only while a probe waits, since
the kernel passes every segment to that address through the filter.  A TCP socket that is bound and
never connected holds the port, so that no other program gets the answers, and our kernel resets
what a listener accepts; it closes when nothing was probed for `IDLE`.

CAP_NET_RAW is needed.
"""

import errno
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from ctypes import addressof, create_string_buffer
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from mptcpd_ebpf.core.address import SockAddr, is_ipv6, unmapped
from mptcpd_ebpf.core.commands import ProbePath
from mptcpd_ebpf.core.events import Event, PathProbed
from mptcpd_ebpf.kernel import probe_packet
from mptcpd_ebpf.kernel.errors import errno_words
from mptcpd_ebpf.kernel.pm_client import CommandAnswer
from mptcpd_ebpf.kernel.probe_packet import Answer, Identity

IDLE = 60_000_000_000
"""Nanoseconds after the last probe of an address until its port is given up."""
MOST = 100
"""Probes that wait for answers at one address: a plugin in a loop sends no flood."""
_BATCH = 64
_FLAGS = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC

# include/uapi: linux/in.h, linux/in6.h, asm-generic/socket.h, linux/errqueue.h
_IP_RECVERR, _IPV6_RECVERR = 11, 25
_IP_MTU, _IPV6_MTU = 14, 24
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE = 10, 23, 3
_SO_ATTACH_FILTER, _SO_TIMESTAMPNS, _SO_BINDTOIFINDEX = 26, 35, 62
_EXTENDED_ERROR = 16
_OFFENDER = {socket.AF_INET: (4, 4), socket.AF_INET6: (8, 16)}
"""Where a sockaddr holds its address, and its length."""


Ancillary = list[tuple[int, int, bytes]]
"""What recvmsg returns beside the data."""


class _Sent(NamedTuple):
    """A probe that waits for its answer."""

    decision_id: int
    remote: SockAddr
    size: int
    at: int
    """CLOCK_REALTIME, nanoseconds: the kernel's clock for received packets."""
    until: int
    """When it does not wait any more; CLOCK_MONOTONIC nanoseconds."""


@dataclass(slots=True)
class _Path:
    """The sockets of one local address on one interface."""

    local: SockAddr
    holder: socket.socket
    last: int
    raw: socket.socket | None = None
    """Open while a probe waits."""
    sent: dict[int, _Sent] = field(default_factory=dict)
    """By the sequence number that an answer acknowledges: one or two for each probe."""

    def close(self) -> None:
        self.close_raw()
        self.holder.close()

    def close_raw(self) -> None:
        """Also takes it out of the epoll set."""
        if self.raw is not None:
            self.raw.close()
            self.raw = None


class PathProber:
    """Probes from the network namespace of the calling thread.  An event source of the daemon."""

    def __init__(self) -> None:
        self._paths: dict[tuple[str, int], _Path] = {}
        """By our address and the interface."""
        self._epoll = select.epoll()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for path in self._paths.values():
            path.close()
        self._paths.clear()
        self._epoll.close()

    def fileno(self) -> int:
        return self._epoll.fileno()

    def send(self, decision_id: int, command: ProbePath) -> CommandAnswer:
        """Sends one probe.  `read` returns its answer with the number of the decision.

        EBUSY if `MOST` wait already.
        """
        now = time.monotonic_ns()
        self.tidy(now)
        try:
            self._send(self._path(command, now), decision_id, command)
        except OSError as error:
            self.tidy(now)
            return CommandAnswer(error.errno or errno.EIO, _explain(error, command))
        return CommandAnswer(0, "")

    def _send(self, path: _Path, decision_id: int, command: ProbePath) -> None:
        if len({sent.decision_id for sent in path.sent.values()}) >= MOST:
            raise OSError(errno.EBUSY, "too many probes wait for answers")
        if path.raw is None:
            path.raw = _open_raw(command, path.local.port)
            self._epoll.register(path.raw, select.EPOLLIN)
        remote, ipv6 = command.remote, is_ipv6(command.local_ip)
        size = probe_packet.SMALLEST[ipv6]
        if command.full_size:
            size = max(size, _path_mtu(command))
        identity = Identity(*struct.unpack("=III", os.urandom(12)))
        packet = probe_packet.segment(path.local, remote, identity, size)
        # An ICMP error for an earlier segment would fail this one; reading it clears it.
        path.raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        at = time.time_ns()
        path.raw.sendto(packet, _address(remote.ip, 0, command.if_index))
        sent = _Sent(decision_id, remote, size, at, time.monotonic_ns() + command.within)
        path.sent[identity.sequence] = sent
        # RST acknowledges the payload too, SYN/ACK does not.
        payload = probe_packet.payload_of(size, ipv6=ipv6)
        path.sent[(identity.sequence + payload) % 2**32] = sent

    def read(self) -> Sequence[Event]:
        """The answers that wait, at most one batch for each address."""
        now = time.monotonic_ns()
        events: list[Event] = []
        for path in self._paths.values():
            if path.raw is None:
                continue
            for answer, at in [*_returned(path.raw), *_answers(path.raw)]:
                sent = path.sent.get(answer.sequence)
                expected = (path.local.port, sent.remote.port if sent is not None else None)
                if sent is None or (answer.port, answer.remote_port) != expected:
                    continue
                _forget(path, sent)
                events.append(
                    PathProbed(
                        decision_id=sent.decision_id,
                        rtt_us=max(1, (at - sent.at) // 1000),
                        size=sent.size,
                    )
                )
        self.tidy(now)
        return events

    def tidy(self, now: int) -> None:
        """Closes what no probe needs at `now`, CLOCK_MONOTONIC nanoseconds."""
        for key, path in list(self._paths.items()):
            for sent in [each for each in path.sent.values() if each.until < now]:
                _forget(path, sent)
            if not path.sent:
                path.close_raw()
            if now - path.last > IDLE:
                path.close()
                del self._paths[key]

    def _path(self, command: ProbePath, now: int) -> _Path:
        key = (command.local_ip, command.if_index)
        path = self._paths.get(key)
        if path is None:
            path = self._paths[key] = _hold_port(command, now)
        path.last = now
        return path


def _forget(path: _Path, sent: _Sent) -> None:
    for sequence in [number for number, each in path.sent.items() if each is sent]:
        del path.sent[sequence]


def _hold_port(command: ProbePath, now: int) -> _Path:
    """Raises OSError if the address is not on this host."""
    holder = socket.socket(_family(command.local_ip), socket.SOCK_STREAM | _FLAGS)
    try:
        holder.bind(_address(command.local_ip, 0, command.if_index))
    except OSError:
        holder.close()
        raise
    return _Path(SockAddr(command.local_ip, holder.getsockname()[1]), holder, now)


def _open_raw(command: ProbePath, port: int) -> socket.socket:
    """Raises OSError: no CAP_NET_RAW, or the address or interface is not there."""
    family = _family(command.local_ip)
    raw = socket.socket(family, socket.SOCK_RAW | _FLAGS, socket.IPPROTO_TCP)
    try:
        _attach_filter(raw, family, port)
        raw.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        if command.if_index:
            raw.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, command.if_index)
        raw.bind(_address(command.local_ip, 0, command.if_index))
        # Sent with DF, whatever the kernel believes of the path's MTU; ICMP errors are kept.
        if family == socket.AF_INET6:
            raw.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
            raw.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        else:
            raw.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
            raw.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
    except OSError:
        raw.close()
        raise
    return raw


def _family(ip: str) -> socket.AddressFamily:
    return socket.AF_INET6 if is_ipv6(ip) else socket.AF_INET


def _attach_filter(raw: socket.socket, family: socket.AddressFamily, port: int) -> None:
    """Accepts segments to `port`; IPv4's raw sockets see the IP header, IPv6's do not
    (Documentation/networking/filter.rst)."""
    behind_ip_header = [(0xB1, 0, 0, 0), (0x48, 0, 0, 2)]  # ldxb 4*([0]&0xf); ldh [x + 2]
    at_once = [(0x28, 0, 0, 2)]  # ldh [2]
    load = behind_ip_header if family == socket.AF_INET else at_once
    code = [*load, (0x15, 0, 1, port), (0x06, 0, 0, 0xFFFF), (0x06, 0, 0, 0)]
    program = create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in code))
    raw.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(code), addressof(program))
    )


def _path_mtu(command: ProbePath) -> int:
    """The largest packet to the peer as far as the kernel knows: the interface's MTU, or less by
    the route or an ICMP error.  Raises OSError without a route."""
    ipv6 = is_ipv6(command.local_ip)
    with socket.socket(_family(command.local_ip), socket.SOCK_DGRAM) as asking:
        if command.if_index:
            asking.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, command.if_index)
        asking.bind(_address(command.local_ip, 0, command.if_index))
        asking.connect(_address(command.remote.ip, command.remote.port, command.if_index))
        if ipv6:
            return asking.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)
        return asking.getsockopt(socket.IPPROTO_IP, _IP_MTU)


def _address(ip: str, port: int, if_index: int) -> tuple[str, int] | tuple[str, int, int, int]:
    if not is_ipv6(ip):
        return ip, port
    return ip, port, 0, if_index if ip.startswith("fe80:") else 0


Answered = tuple[Answer, int]
"""An answer, and when it arrived: CLOCK_REALTIME nanoseconds."""


def _answers(raw: socket.socket) -> list[Answered]:
    found = []
    for _ in range(_BATCH):
        try:
            packet, ancillary, *_ = raw.recvmsg(256, 64)
        except BlockingIOError:
            break
        except OSError:
            continue  # a pending ICMP error, reported once
        tcp = probe_packet.without_ip_header(packet) if raw.family == socket.AF_INET else packet
        answer = probe_packet.parse_answer(tcp)
        if answer is not None:
            found.append((answer, _arrival(ancillary)))
    return found


def _arrival(ancillary: Ancillary) -> int:
    """When the kernel received a packet, however late it is read; now if that is not said."""
    for level, kind, data in ancillary:
        if (level, kind, len(data)) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS, 16):
            seconds, nanoseconds = struct.unpack("=qq", data)
            return int(seconds * 1_000_000_000 + nanoseconds)
    return time.time_ns()


def _returned(raw: socket.socket) -> list[Answered]:
    """Probes that the peer itself answered with an ICMP error; a router's mean that the path does
    not reach the peer."""
    found = []
    for _ in range(_BATCH):
        try:
            head, ancillary, _flags, destination = raw.recvmsg(256, 512, socket.MSG_ERRQUEUE)
        except OSError:
            break
        answer = probe_packet.parse_returned(head)
        if answer is None:
            continue
        for _level, _kind, data in ancillary:
            if _offender(raw.family, data) == unmapped(destination[0].partition("%")[0]):
                found.append((answer, time.time_ns()))
    return found


def _offender(family: int, data: bytes) -> str:
    """Who sent an ICMP error: the sockaddr behind struct sock_extended_err."""
    at, length = _OFFENDER[socket.AddressFamily(family)]
    packed = data[_EXTENDED_ERROR + at : _EXTENDED_ERROR + at + length]
    return socket.inet_ntop(family, packed) if len(packed) == length else ""


def _explain(error: OSError, command: ProbePath) -> str:
    why = errno_words(error.errno or 0)
    if error.errno == errno.EPERM:
        return f"{why}: CAP_NET_RAW is missing, or a firewall of this host drops path probes"
    return f"{why} from {command.local_ip} to {command.remote.ip}"
