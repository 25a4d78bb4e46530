# SPDX-License-Identifier: BSD-3-Clause
"""What the probes' tests share: probes in a host, their reports, and TCP's own figures."""

import ctypes
import shlex
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mptcpd_ebpf.core.address import SockAddr, unmapped
from mptcpd_ebpf.core.events import AlarmRaised, SubflowEnded
from mptcpd_ebpf.core.measurement import AlarmKind, Measurement, Thresholds
from mptcpd_ebpf.lab import Host
from mptcpd_ebpf.probes import BpfUnavailable, Probes, bpf_object
from mptcpd_ebpf.probes.interface import AnyProbes
from tests.netns.event_log import EventLog

SOL_MPTCP = 284
MPTCP_INFO, MPTCP_TCPINFO, MPTCP_SUBFLOW_ADDRS = 1, 2, 3  # include/uapi/linux/mptcp.h
QUIET = Thresholds(
    rtt_factor_percent=0,
    loss_percent=0,
    timeouts=0,
    no_progress_us=0,
    stall_us=0,
    hole_us=0,
    silence_us=0,
)
"""No alarm at all."""


def compile_probes_with(define: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on `Probes` loads programs that were compiled with a macro defined."""
    recipe = subprocess.run(
        ["make", "-nB", "build/bpf/subflow.bpf.o"], capture_output=True, text=True, check=True
    ).stdout
    compiler = next(shlex.split(line) for line in recipe.splitlines() if "-target bpf" in line)
    compiler[compiler.index("-o") + 1] = str(folder / "subflow.bpf.o")
    subprocess.run([*compiler, f"-D{define}"], check=True)
    monkeypatch.setattr(bpf_object, "bpf_object", lambda name: folder / f"{name}.bpf.o")


@contextmanager
def probing(host: Host, *, everywhere: bool = False, **options: Any) -> Iterator[Probes]:
    """Probes opened in a host; by default they are limited to its namespace."""
    try:
        with host.entered():
            probes = Probes.open(netns=0 if everywhere else host.netns, **options)
    except BpfUnavailable as error:
        pytest.skip(f"the probes cannot run here: {error}")
    with probes:
        yield probes


def sample(host: Host, probes: AnyProbes) -> list[Measurement]:
    with host.entered():
        return probes.sample()


class Listening(EventLog[AlarmRaised | SubflowEnded]):
    """Everything the probes report."""

    def alarm(self, token: int, *kinds: AlarmKind) -> AlarmRaised:
        """The first alarm of a connection; of given kinds, if any are given."""
        return self.wait(
            AlarmRaised,
            lambda event: event.measurement.token == token and (not kinds or event.kind in kinds),
        )

    def alarms(self) -> list[AlarmRaised]:
        """All alarms so far."""
        self.take()
        return [event for event in self.events if isinstance(event, AlarmRaised)]


class TcpInfo(NamedTuple):
    """The kernel's figures of one subflow (struct tcp_info of include/uapi/linux/tcp.h)."""

    local: SockAddr
    remote: SockAddr
    state: int
    retransmits: int
    rto: int
    unacked: int
    rtt: int
    rttvar: int
    snd_cwnd: int
    total_retrans: int
    bytes_acked: int
    min_rtt: int
    data_segs_out: int
    delivered: int
    bytes_sent: int
    bytes_retrans: int
    reord_seen: int


_TCP_INFO = {
    "rto": 8,
    "unacked": 24,
    "rtt": 68,
    "rttvar": 72,
    "snd_cwnd": 80,
    "total_retrans": 100,
    "bytes_acked": 120,
    "min_rtt": 148,
    "data_segs_out": 156,
    "delivered": 192,
    "bytes_sent": 200,
    "bytes_retrans": 208,
    "reord_seen": 220,
}
"""Offsets in struct tcp_info, in the order of TcpInfo."""


def _per_subflow(sock: socket.socket, option: int, each: int) -> list[bytes]:
    """A per-subflow socket option; ask for `each` bytes a subflow (struct mptcp_subflow_data)."""
    room = 16 + 16 * each
    ask = struct.pack("=IIII", 16, 0, 0, each)
    buffer = bytearray(ask + bytes(room - 16))
    size = _getsockopt(sock, option, buffer)
    _, number, _, user = struct.unpack_from("=IIII", buffer)
    assert size <= room
    return [bytes(buffer[16 + i * user : 16 + (i + 1) * user]) for i in range(number)]


def _getsockopt(sock: socket.socket, option: int, buffer: bytearray) -> int:
    """getsockopt(2) that also passes the buffer's content, which Python's own does not."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = ctypes.c_uint32(len(buffer))
    raw = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    if libc.getsockopt(sock.fileno(), SOL_MPTCP, option, raw, ctypes.byref(size)):
        raise OSError(ctypes.get_errno(), "getsockopt")
    return size.value


def _sockaddr(raw: bytes) -> SockAddr:
    family = int.from_bytes(raw[:2], "little")
    port = int.from_bytes(raw[2:4], "big")
    if family == socket.AF_INET:
        return SockAddr(socket.inet_ntop(socket.AF_INET, raw[4:8]), port)
    return SockAddr(unmapped(socket.inet_ntop(socket.AF_INET6, raw[8:24])), port)


def tcp_infos(sock: socket.socket) -> list[TcpInfo]:
    """MPTCP_TCPINFO and MPTCP_SUBFLOW_ADDRS, joined: both go through the same list."""
    infos = _per_subflow(sock, MPTCP_TCPINFO, 232)
    pairs = _per_subflow(sock, MPTCP_SUBFLOW_ADDRS, 256)
    return [
        TcpInfo(
            _sockaddr(pair[:128]),
            _sockaddr(pair[128:]),
            raw[0],
            raw[2],
            *(
                struct.unpack_from("=Q" if name.startswith("bytes") else "=I", raw, at)[0]
                for name, at in _TCP_INFO.items()
            ),
        )
        for raw, pair in zip(infos, pairs, strict=True)
    ]
