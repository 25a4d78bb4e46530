# SPDX-License-Identifier: BSD-3-Clause
"""Path probes on real paths: what leaves, what is answered, and what is left behind."""

import errno
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.commands import ProbePath
from mptcpd_ebpf.core.events import PathProbed
from mptcpd_ebpf.kernel.path_probe import PathProber
from mptcpd_ebpf.kernel.pm_client import CommandAnswer
from mptcpd_ebpf.lab import Lab, LivePath
from mptcpd_ebpf.lab.topology import FAR
from mptcpd_ebpf.lab.wire import RST, SYN, MPJoinSyn, MPTcpRst, Wire
from mptcpd_ebpf.lab.wire.segment import Segment
from tests.waiting import SLOWNESS

WITHIN_S = 5.0 * SLOWNESS
WITHIN_NS = round(WITHIN_S * 1e9)
LATE_S = 1.0 * SLOWNESS
"""How long to wait for what should not come."""
IPPROTO_MPTCP = 262


class Probed(NamedTuple):
    errno: int
    answers: list[PathProbed]
    took_us: int
    listening: int
    """Raw sockets that are open after the answer."""


def raw_sockets() -> int:
    """How many the namespace has, each listed behind a line of titles."""
    files = [Path("/proc/thread-self/net", name) for name in ("raw", "raw6")]
    return sum(file.read_text().count("\n") - 1 for file in files)


def probe(
    lab: Lab,
    path: LivePath,
    port: int,
    *,
    ipv6: bool = False,
    full_size: bool = False,
    waiting_s: float = WITHIN_S,
) -> Probed:
    """One probe from the path's client, and what came back."""
    remote = lab.paths[0].server_ip6 if ipv6 else lab.paths[0].server_ip
    local = path.client_ip6 if ipv6 else path.client_ip
    assert remote is not None
    assert local is not None

    def send() -> Probed:
        with PathProber() as prober:
            before = time.monotonic_ns()
            command = ProbePath(
                local_ip=local,
                remote=SockAddr(remote, port),
                if_index=socket.if_nametoindex(path.client_if),
                full_size=full_size,
                within=WITHIN_NS,
                reason="a test",
            )
            sent = prober.send(7, command)
            select.select([prober], [], [], waiting_s)
            answers = [event for event in prober.read() if isinstance(event, PathProbed)]
            took_us = (time.monotonic_ns() - before) // 1000
            return Probed(sent.errno, answers, took_us, raw_sockets())

    return lab.client.call(send)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(ip="both") as lab:
        yield lab


@pytest.fixture(params=[IPPROTO_MPTCP, socket.IPPROTO_TCP], ids=["mptcp", "tcp"])
def listener(lab: Lab, request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    """A socket that must have nothing to accept at the end."""
    with lab.server.entered():
        sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, request.param)
    with sock:
        sock.bind(("::", 0))
        sock.listen()
        yield sock
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.accept()


def of(segments: list[Segment], way: str) -> list[Segment]:
    return [each for each in segments if each.outgoing == (way == "out")]


@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("full_size", [False, True], ids=["small", "full"])
def test_a_probe_crosses_its_path_and_opens_nothing(
    lab: Lab, listener: socket.socket, *, ipv6: bool, full_size: bool
) -> None:
    _, path = lab.paths
    with Wire(lab.client.name) as wire:
        found = probe(lab, path, listener.getsockname()[1], ipv6=ipv6, full_size=full_size)
        (answer,) = found.answers
        assert (found.errno, found.listening) == (0, 0)
        assert answer.decision_id == 7
        assert 0 < answer.rtt_us <= found.took_us
        (syn,) = wire.matching(MPJoinSyn(backup=1), direction="out")
        assert syn.interface == path.client_if
        assert str(syn.flow.source.ip) == (path.client_ip6 if ipv6 else path.client_ip)
        assert len(syn.packet) == answer.size
        assert answer.size == (1500 if full_size else (76 if ipv6 else 56))
        if not ipv6:
            assert syn.packet[6] & 0x40, "DF"
        (back,) = of([each for each in wire.segments if each.flow == syn.flow.reversed()], "in")
        assert back.flags & (RST if listener.proto == IPPROTO_MPTCP else SYN)
        assert back.carries(MPTcpRst) == (listener.proto == IPPROTO_MPTCP)
        if listener.proto == socket.IPPROTO_TCP:
            wire.expect(flow=syn.flow, flags=RST, direction="out", within=WITHIN_S)


def narrow(path: LivePath, mtu: int, *, icmp: bool) -> None:
    """The path's router has a link of that MTU to the server, and may not report it."""
    path.router.run(["ip", "link", "set", FAR, "mtu", str(mtu)])
    if not icmp:
        path.router.run(["iptables", "-A", "OUTPUT", "-p", "icmp", "-j", "DROP"])


def test_a_narrow_path_that_is_silent_about_it_passes_small_probes_only(lab: Lab) -> None:
    _, path = lab.paths
    narrow(path, 1280, icmp=False)
    assert len(probe(lab, path, 80).answers) == 1
    assert probe(lab, path, 80, full_size=True, waiting_s=LATE_S).answers == []


@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
def test_full_size_is_what_the_kernel_knows_of_the_path(lab: Lab, *, ipv6: bool) -> None:
    _, path = lab.paths
    narrow(path, 1400, icmp=True)

    def full() -> list[PathProbed]:
        return probe(lab, path, 80, ipv6=ipv6, full_size=True, waiting_s=LATE_S).answers

    assert full() == []
    # The router's ICMP error has reached the kernel meanwhile.
    (answer,) = full()
    assert answer.size == 1400


@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
def test_only_the_peer_s_own_icmp_errors_are_answers(lab: Lab, *, ipv6: bool) -> None:
    _, path = lab.paths
    reject = ["ip6tables" if ipv6 else "iptables", "-I"]
    rule = ["-p", "tcp", "--dport", "80", "-j", "REJECT"]
    lab.server.run([*reject, "INPUT", *rule])
    assert len(probe(lab, path, 80, ipv6=ipv6).answers) == 1
    path.router.run([*reject, "FORWARD", *rule])
    assert probe(lab, path, 80, ipv6=ipv6, waiting_s=LATE_S).answers == []


def test_the_rtt_is_that_of_the_path_however_late_the_answer_is_read(lab: Lab) -> None:
    _, path = lab.paths

    def late(answers_after_s: float) -> int:
        with PathProber() as prober:
            remote = SockAddr(path.server_ip, 80)
            command = ProbePath(
                local_ip=path.client_ip, remote=remote, within=WITHIN_NS, reason="a test"
            )
            assert prober.send(1, command).errno == 0
            select.select([prober], [], [], WITHIN_S)
            arrived_us = time.monotonic_ns() // 1000
            time.sleep(answers_after_s)
            (answer,) = prober.read()
            assert isinstance(answer, PathProbed)
            read_us = time.monotonic_ns() // 1000
            return read_us - arrived_us - answer.rtt_us

    assert lab.client.call(late, LATE_S) > 0, "the time until it was read is not counted"


def test_other_traffic_of_the_same_address_wakes_nobody(lab: Lab) -> None:
    first, _ = lab.paths
    with lab.server.entered():
        listener = socket.create_server((first.server_ip, 0))
    port = listener.getsockname()[1]

    def talk() -> bool:
        with PathProber() as prober:
            command = ProbePath(
                local_ip=first.client_ip,
                remote=SockAddr(first.server_ip, port),
                if_index=socket.if_nametoindex(first.client_if),
                within=WITHIN_NS,
                reason="a test",
            )
            assert prober.send(1, command).errno == 0
            select.select([prober], [], [], WITHIN_S)
            assert len(prober.read()) == 1
            source = (first.client_ip, 0)
            with socket.create_connection((first.server_ip, port), WITHIN_S, source) as stream:
                stream.sendall(b"x" * 100_000)
                stream.shutdown(socket.SHUT_WR)
                assert stream.recv(1) == b""
            return bool(select.select([prober], [], [], 0)[0])

    def drain() -> None:
        stream, _ = listener.accept()
        with stream:
            while stream.recv(65536):
                pass

    with listener:
        thread = threading.Thread(target=drain)
        thread.start()
        woken = lab.client.call(talk)
        thread.join()
    assert not woken


def test_the_source_port_is_held(lab: Lab) -> None:
    first, _ = lab.paths

    def take() -> int:
        with PathProber() as prober, Wire(snap=200) as wire:
            remote = SockAddr(first.server_ip, 80)
            command = ProbePath(
                local_ip=first.client_ip, remote=remote, within=WITHIN_NS, reason="a test"
            )
            prober.send(1, command)
            sent = wire.expect(MPJoinSyn, direction="out", within=WITHIN_S)
            with socket.socket() as other, pytest.raises(OSError, match="in use") as refused:
                other.bind(tuple(sent.flow.source))
            return refused.value.errno or 0

    assert lab.client.call(take) == errno.EADDRINUSE


def test_what_cannot_be_sent_is_explained(lab: Lab) -> None:
    first, _ = lab.paths

    def send(local_ip: str) -> CommandAnswer:
        with PathProber() as prober:
            remote = SockAddr(first.server_ip, 80)
            command = ProbePath(local_ip=local_ip, remote=remote, within=WITHIN_NS, reason="a test")
            return prober.send(1, command)

    def send_without_capability() -> CommandAnswer:
        os.seteuid(65534)  # leaves no effective capability
        return send(first.client_ip)

    gone = lab.client.call(send, "10.99.99.99")
    assert gone.errno == errno.EADDRNOTAVAIL
    assert "from 10.99.99.99" in gone.explanation
    refused = lab.client.call(send_without_capability)
    assert refused.errno == errno.EPERM
    assert "CAP_NET_RAW is missing" in refused.explanation
    lab.client.run(["ip", "route", "flush", "table", "main"])
    lab.client.run(["ip", "rule", "del", "from", first.client_ip])
    assert lab.client.call(send, first.client_ip).errno == errno.ENETUNREACH
