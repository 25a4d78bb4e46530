# SPDX-License-Identifier: BSD-3-Clause
"""Live connections as found by asking the kernel, against its events and TCP_INFO."""

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.commands import CreateSubflow, SetBackup
from mptcpd_ebpf.core.events import SubflowEstablished, SubflowPriority
from mptcpd_ebpf.kernel import diag, resync
from mptcpd_ebpf.kernel.diag import Snapshot
from mptcpd_ebpf.kernel.pm import joins_marked
from mptcpd_ebpf.lab import Host, Lab
from tests.netns.mptcp_peers import Pair, Peer, connected, peer
from tests.netns.mptcp_sockets import listen
from tests.netns.scripted_peer import kernel_connects

SOL_MPTCP = 284
MPTCP_TCPINFO = 2


class Scene(NamedTuple):
    client: Peer
    server: Peer
    pair: Pair
    joined: SubflowEstablished


@pytest.fixture(params=["IPv4", "IPv6", "dual-stack"])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    """One connection with a joined backup subflow, at rest."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(ip="both"))
        client = stack.enter_context(peer(lab.client))
        server = stack.enter_context(peer(lab.server))
        first, second = lab.paths
        v6 = request.param == "IPv6"
        to, local = (
            (first.server_ip6, second.client_ip6) if v6 else (first.server_ip, second.client_ip)
        )
        assert to
        assert local
        bind_to = "::" if request.param == "dual-stack" else ""
        pair = stack.enter_context(connected(client, server, to, bind_to=bind_to))
        create = CreateSubflow(
            token=pair.at_client.token,
            local_ip=local,
            local_id=5,
            remote=pair.at_client.remote,
            backup=True,
            reason="test",
        )
        assert client.pm.execute_now(create) == (0, "")
        joined = client.log.wait(SubflowEstablished)
        server.log.wait(SubflowEstablished)
        if not joins_marked():
            mark = SetBackup(
                token=create.token,
                local=joined.local,
                remote=joined.remote,
                backup=True,
                reason="test",
            )
            assert client.pm.execute_now(mark) == (0, "")
            server.log.wait(SubflowPriority)
        pair.exchange(bytes(20_000))
        yield Scene(client, server, pair, joined)


def snapshot(host: Host) -> Snapshot:
    with host.entered():
        return diag.snapshot()


def first_tcp_info(sock: socket.socket) -> bytes:
    """struct tcp_info of a connection's first subflow (include/uapi/linux/mptcp.h)."""
    header, size = struct.Struct("=IIII"), 512
    buffer = ctypes.create_string_buffer(header.pack(header.size, 0, 0, size), header.size + 4096)
    length = ctypes.c_uint32(len(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.getsockopt(sock.fileno(), SOL_MPTCP, MPTCP_TCPINFO, buffer, ctypes.byref(length))
    assert done == 0, os.strerror(ctypes.get_errno())
    return buffer.raw[header.size : header.size + size]


def test_both_ends_are_found(scene: Scene) -> None:
    for end, at in (
        (scene.client, scene.pair.at_client),
        (scene.server, scene.pair.at_server),
    ):
        connections, subflows = snapshot(end.host)
        (connection,) = connections
        assert (connection.token, connection.local, connection.remote) == (
            at.token,
            at.local,
            at.remote,
        )
        assert connection.server_side is (end is scene.server)
        assert {s.token for s in subflows} == {at.token}
        assert {s.netns for s in subflows} == {end.host.netns}


def test_subflows_are_those_of_the_events(scene: Scene) -> None:
    joined = scene.joined
    at_client = {(s.local, s.remote): s for s in snapshot(scene.client.host).subflows}
    at_server = {(s.remote, s.local): s for s in snapshot(scene.server.host).subflows}
    first = (scene.pair.at_client.local, scene.pair.at_client.remote)
    second = (joined.local, joined.remote)
    assert set(at_client) == set(at_server) == {first, second}
    assert (at_client[first].local_id, at_client[first].remote_id) == (0, 0)
    assert (at_client[second].local_id, at_client[second].remote_id) == (5, 0)
    assert (at_server[second].local_id, at_server[second].remote_id) == (0, 5)
    assert at_client[first].initial
    assert not at_client[second].initial
    assert at_client[second].backup
    assert not at_client[second].backup_by_peer
    assert at_server[second].backup_by_peer
    assert not at_server[second].backup
    assert not at_client[first].backup


def test_numbers_are_those_of_tcp_info(scene: Scene) -> None:
    """On an idle connection both sources must report the same about the initial subflow."""
    info = first_tcp_info(scene.pair.client)
    (measured,) = (s for s in snapshot(scene.client.host).subflows if s.initial)

    def tcp_info(offset: int, form: str) -> int:
        value: int = struct.unpack_from(form, info, offset)[0]
        return value

    assert measured.srtt_us == tcp_info(68, "=I")
    assert measured.rttvar_us == tcp_info(72, "=I")
    assert measured.cwnd == tcp_info(80, "=I")
    assert measured.retransmits == tcp_info(100, "=I")
    assert measured.bytes_acked == tcp_info(120, "=Q")
    assert measured.min_rtt_us == tcp_info(148, "=I")
    assert measured.segments_out == tcp_info(156, "=I")
    assert measured.delivered == tcp_info(192, "=I")
    assert measured.bytes_sent == tcp_info(200, "=Q")
    assert measured.bytes_sent is not None
    assert measured.bytes_sent >= 20_000
    assert measured.in_flight == 0
    assert measured.state == 1


def test_owners_are_found_and_what_is_unseen_is_none(scene: Scene) -> None:
    for subflow in snapshot(scene.client.host).subflows:
        assert subflow.owner is not None
        assert subflow.owner.pid == os.getpid()
        with open("/proc/self/comm") as comm:
            assert subflow.owner.comm == comm.read().strip()
        assert subflow.owner.uid == 0
        assert subflow.lost is None
        assert subflow.stalled_us is None


def test_a_resynchronisation_contains_everything(scene: Scene) -> None:
    with scene.client.host.entered():
        whole = resync.snapshot()
        assert [c.token for c in whole.connections] == [scene.pair.at_client.token]
        assert len(whole.subflows) == 2
        assert {link.name for link in whole.links} == {"lo", "path0", "path1"}
        assert scene.joined.local.ip in {address.ip for address in whole.addresses}
        better = resync.snapshot(subflows=whole.subflows[:1])
        assert len(better.subflows) == 1


def test_listeners_and_plain_tcp(scene: Scene) -> None:
    """Listeners are listed apart; TCP connections and those that fell back are not listed as
    subflows."""
    host = scene.server.host
    with listen(host, "127.0.0.1") as listener:
        port = listener.getsockname()[1]
        with host.entered():
            assert SockAddr("127.0.0.1", port) in diag.listeners()
            plain = socket.create_connection(("127.0.0.1", port))
        accepted = listener.accept()[0]
        with plain, accepted:
            found = snapshot(host)
            ports = {s.local.port for s in found.subflows} | {s.remote.port for s in found.subflows}
            assert port not in ports
            assert len(found.connections) == 1


def test_what_is_not_connected_yet_is_no_connection() -> None:
    with Lab() as lab:
        lab.paths[0].blackhole()
        with kernel_connects(lab), lab.client.entered():
            assert diag.snapshot() == Snapshot([], [])
