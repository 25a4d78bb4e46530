# SPDX-License-Identifier: BSD-3-Clause
"""What the probes' tests share: probes in a host, connections to probe, TCP's own word."""

import ctypes
import select
import shlex
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest

from mptcpd_ebpf.core.address import SockAddr, unmapped
from mptcpd_ebpf.core.events import AlarmRaised, SubflowEnded
from mptcpd_ebpf.core.measurement import AlarmKind, Measurement, Thresholds
from mptcpd_ebpf.lab import Host, Lab
from mptcpd_ebpf.probes import BpfUnavailable, Probes, bpf_object
from mptcpd_ebpf.probes.interface import AnyProbes
from tests.waiting import SLOWNESS

IPPROTO_MPTCP = 262
SOL_MPTCP = 284
MPTCP_INFO, MPTCP_TCPINFO, MPTCP_SUBFLOW_ADDRS = 1, 2, 3  # include/uapi/linux/mptcp.h
DEADLINE_S = 10.0 * SLOWNESS
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

T = TypeVar("T")


def compile_probes_with(define: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on `Probes` are ones that are compiled with a macro defined."""
    recipe = subprocess.run(
        ["make", "-nB", "build/bpf/subflow.bpf.o"], capture_output=True, text=True, check=True
    ).stdout
    compiler = next(shlex.split(line) for line in recipe.splitlines() if "-target bpf" in line)
    compiler[compiler.index("-o") + 1] = str(folder / "subflow.bpf.o")
    subprocess.run([*compiler, f"-D{define}"], check=True)
    monkeypatch.setattr(bpf_object, "bpf_object", lambda name: folder / f"{name}.bpf.o")


@contextmanager
def probing(host: Host, *, everywhere: bool = False, **options: Any) -> Iterator[Probes]:
    """Probes opened in a host, keeping to its namespace."""
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


def wait_for(get: Callable[[], T | None], what: str) -> T:
    """Asks until the answer is neither None nor empty; fails after a deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not (answer := get()):
        assert time.monotonic() < deadline, f"no {what} within {DEADLINE_S:g} s"
        time.sleep(0.005)
    return answer


class Listening:
    """Everything the probes report, and what has not yet been."""

    def __init__(self, probes: AnyProbes) -> None:
        self.probes = probes
        self.events: list[AlarmRaised | SubflowEnded] = []

    def until(self, found: Callable[[AlarmRaised | SubflowEnded], bool], what: str) -> Any:
        """The first event, past or to come, for which `found` holds."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            for event in self.events:
                if found(event):
                    return event
            left = deadline - time.monotonic()
            ready = left > 0 and select.select([self.probes], [], [], left)[0]
            assert ready, f"no {what} among {self.events}"
            self.events += self.probes.read()

    def alarm(self, token: int, *kinds: AlarmKind) -> AlarmRaised:
        """The first alarm of a connection; of given kinds, if any are given."""
        event: AlarmRaised = self.until(
            lambda event: (
                isinstance(event, AlarmRaised)
                and event.measurement.token == token
                and (not kinds or event.kind in kinds)
            ),
            f"alarm of kind {kinds or 'any'}",
        )
        return event

    def alarms(self) -> list[AlarmRaised]:
        """All alarms so far."""
        if select.select([self.probes], [], [], 0)[0]:
            self.events += self.probes.read()
        return [event for event in self.events if isinstance(event, AlarmRaised)]


def allow_joins(lab: Lab) -> None:
    """Every path of the client after the first becomes a subflow of new connections."""
    for host in (lab.client, lab.server):
        host.run(["ip", "mptcp", "limits", "set", "subflows", "8", "add_addr_accepted", "8"])
    for path in lab.paths[1:]:
        lab.client.run(
            ["ip", "mptcp", "endpoint", "add", path.client_ip, "dev", path.client_if, "subflow"]
        )


class Ends(NamedTuple):
    """Both ends of one connection, held by the test's own process."""

    client: socket.socket
    server: socket.socket
    listener: socket.socket


@contextmanager
def connection(
    lab: Lab,
    *,
    family: int = socket.AF_INET,
    listen_on: str = "",
    send_buffer: int | None = None,
    receive_buffer: int | None = None,
) -> Iterator[Ends]:
    """An MPTCP connection over the first path, cubic, fully established.

    `send_buffer` is the client's, `receive_buffer` the server's, both in bytes.
    """
    path = lab.paths[0]
    with lab.server.entered():
        six = ":" in listen_on
        listener = socket.socket(
            socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP
        )
    with listener:
        if receive_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        listener.bind((listen_on or "0.0.0.0", 0))
        listener.listen()
        with lab.client.entered():
            client = socket.socket(family, socket.SOCK_STREAM, IPPROTO_MPTCP)
        with client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
            if send_buffer is not None:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
            remote = path.server_ip6 if family == socket.AF_INET6 else path.server_ip
            client.connect((remote, listener.getsockname()[1]))
            server = listener.accept()[0]
            with server:
                ends = Ends(client, server, listener)
                exchange(ends, b"hello")
                yield ends


def exchange(ends: Ends, payload: bytes) -> None:
    """The client sends, the server echoes as much."""
    for sender, receiver in ((ends.client, ends.server), (ends.server, ends.client)):
        # The buffers of both ends need not hold all of it.
        with ThreadPoolExecutor(1) as other:
            sent = other.submit(sender.sendall, payload)
            left = len(payload)
            while left:
                left -= len(receiver.recv(left))
            sent.result()


def abort(closing: socket.socket, other: socket.socket) -> None:
    """Resets a connection at rest (SO_LINGER 0); skips the test where the kernel does not."""
    closing.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
    closing.close()
    other.settimeout(DEADLINE_S)
    with suppress(ConnectionResetError):
        if other.recv(1) == b"":
            pytest.skip("this kernel closes in order in spite of SO_LINGER")


class TcpInfo(NamedTuple):
    """What TCP says of one subflow (struct tcp_info of include/uapi/linux/tcp.h)."""

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
    """getsockopt(2) that also hands the buffer in, which Python's own does not."""
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
