# SPDX-License-Identifier: BSD-3-Clause
"""Captures of real kernels: dissection is lossless, and assertions are right."""

import os
import pathlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from scapy.layers.inet import TCP
from scapy.packet import Packet
from scapy.utils import rdpcap

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.lab import Lab, LabError, Path
from mptcpd_ebpf.lab.kernel_path_manager import add_endpoint
from mptcpd_ebpf.lab.wire import (
    DSS,
    RST,
    SYN,
    AddAddr,
    Flow,
    MPCapableAck,
    MPCapableSyn,
    MPCapableSynAck,
    MPFail,
    MPFastclose,
    MPJoinAck,
    MPJoinSyn,
    MPJoinSynAck,
    MPPrio,
    MPTCPOption,
    MPTcpRst,
    MPTCPUnknown,
    Peer,
    RemoveAddr,
    Segment,
    Wire,
    capture,
)
from mptcpd_ebpf.lab.wire.keys import token_from_key
from tests.netns.mptcp_sockets import connected_sockets, transfer
from tests.netns.scripted_peer import open_lab
from tests.waiting import SLOWNESS, until


def without_cache(packet: Packet) -> bytes:
    """Builds a dissected packet from its fields, without scapy's cache of the original bytes."""
    layer = packet
    while layer:
        layer.raw_packet_cache = None
        layer = layer.payload
    return bytes(packet)


# --- a corpus of real packets

KERNEL_SENDS: list[type[MPTCPOption]] = [
    MPCapableSyn,
    MPCapableSynAck,
    MPCapableAck,
    MPJoinSyn,
    MPJoinSynAck,
    MPJoinAck,
    DSS,
    AddAddr,
    RemoveAddr,
    MPPrio,
    MPFastclose,
    MPTcpRst,
]


@pytest.fixture(scope="module", params=["4", "6"], ids=["IPv4", "IPv6"])
def corpus(request: pytest.FixtureRequest) -> list[Segment]:
    """Two kernels connect, join, announce, change priority, withdraw, transfer and fast-close."""
    v6 = request.param == "6"
    with open_lab(ip=request.param) as lab, Wire(lab.client.name) as wire:
        lab.client.sysctl("mptcp.checksum_enabled", int(v6))
        first, second = lab.paths
        server_ip = first.server_ip6 if v6 else first.server_ip
        own_second = second.client_ip6 if v6 else second.client_ip
        their_second = second.server_ip6 if v6 else second.server_ip
        assert server_ip
        assert own_second
        assert their_second
        endpoint = ["ip", "mptcp", "endpoint"]
        with connected_sockets(lab.client, lab.server, server_ip) as (near, far, _):
            lab.client.run([*endpoint, "add", own_second, "subflow", "backup", "id", "2"])
            wire.expect(MPJoinAck, direction="out", interface=second.client_if)
            lab.client.run([*endpoint, "change", "id", "2", "nobackup"])
            wire.expect(MPPrio(backup=0), direction="out")
            lab.server.run([*endpoint, "add", their_second, "signal", "id", "3"])
            wire.expect(AddAddr(echo=0, address_id=3), direction="in")
            wire.expect(AddAddr(echo=1, address_id=3), direction="out")
            lab.client.run([*endpoint, "delete", "id", "2"])
            wire.expect(RemoveAddr(address_ids=[2]), direction="out")
            payload = os.urandom(200_000)
            # More than the buffers of both ends hold; the rest is never read.
            with ThreadPoolExecutor(1) as other:
                sending = other.submit(near.sendall, payload)
                left = len(payload) // 2
                while left > 0:
                    left -= len(far.recv(min(left, 65536)))
                # A socket that is closed with unread data sends MP_FASTCLOSE.
                assert far.recv(1, socket.MSG_PEEK)
                far.close()
                with suppress(OSError):
                    sending.result()
            wire.expect(MPFastclose, direction="in")
        return wire.matching()


@pytest.mark.parametrize("form", KERNEL_SENDS, ids=lambda form: form.__name__)
def test_the_corpus_has_every_option_that_two_kernels_send(
    corpus: list[Segment], form: type[MPTCPOption]
) -> None:
    assert any(segment.carries(form) for segment in corpus)


def test_real_packets_are_dissected_without_loss(corpus: list[Segment]) -> None:
    for segment in corpus:
        packet = segment.scapy()
        assert without_cache(packet) == segment.packet, segment.describe()
        assert not any(isinstance(option, MPTCPUnknown) for option in segment.mptcp)
        assert [value for name, value in packet[TCP].options if name == "MPTCP"] == segment.mptcp


# --- assertions


@pytest.fixture
def lab() -> Iterator[Lab]:
    with open_lab() as lab:
        yield lab


def test_a_join_is_found_by_each_of_its_properties(lab: Lab) -> None:
    first, second = lab.paths
    add_endpoint(lab.client, second.client_ip, "subflow", "backup", "id", "2")
    with Wire(lab.client.name) as wire:
        before = time.monotonic_ns()
        with connected_sockets(lab.client, lab.server, first.server_ip):
            capable = wire.expect(MPCapableAck, direction="out").mptcp[0]
            join = wire.expect(
                MPJoinSyn(address_id=2, backup=True, token=token_from_key(capable.receiver_key)),
                interface=second.client_if,
                direction="out",
                token=token_from_key(capable.sender_key),
                source=second.client_ip,
                destination=first.server_ip,
                flags=SYN,
                since=before,
                within=5.0,
            )
        assert before <= join.at <= time.monotonic_ns()
        for wrong in (
            {"interface": first.client_if},
            {"direction": "in"},
            {"token": 1},
            {"source": first.server_ip},
            {"flags": RST},
            {"since": join.at + 1},
        ):
            assert not wire.matching(MPJoinSyn, **wrong), wrong
        # The same packet arrives at the other end of the path as it left.
        assert wire.matching(MPJoinSyn, flow=join.flow) == [join]


def test_a_failed_expectation_shows_the_captured_packets(lab: Lab) -> None:
    server_ip = lab.paths[0].server_ip
    with (
        Wire(lab.client.name) as wire,
        connected_sockets(lab.client, lab.server, server_ip),
        pytest.raises(AssertionError) as report,
    ):
        wire.expect(MPJoinSyn(address_id=2), interface="path1", token=0xABCD, within=0.05)
    text = str(report.value)
    assert "no MPJoinSyn(address_id=2), interface=path1, token=0xabcd within 0.05 s" in text
    assert "no handshake of that token was captured" in text
    assert "MP_CAPABLE SYN/ACK sender_key=" in text


def test_packets_that_have_passed_are_found_even_if_the_reader_lags(lab: Lab) -> None:
    server_ip = lab.paths[0].server_ip
    # The reading thread waits while this thread holds the condition.
    with (
        Wire(lab.client.name) as wire,
        wire.capture.arrived,
        connected_sockets(lab.client, lab.server, server_ip),
    ):
        assert wire.expect(MPCapableSyn, within=0)
    with (
        Wire(lab.client.name) as wire,
        wire.capture.arrived,
        connected_sockets(lab.client, lab.server, server_ip),
    ):
        assert wire.matching(MPCapableAck)


def test_waiting_ends_in_time_while_packets_keep_coming(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    server_ip = lab.paths[0].server_ip
    with Peer(lab.client.name) as peer:
        peer.subflow(SockAddr("192.0.2.1", 1), SockAddr(server_ip, 2)).syn()
        segment = peer.wire.expect(flags=SYN)
        monkeypatch.setattr(peer.wire.capture, "since", lambda *_: [segment])
        with pytest.raises(AssertionError, match="no MPFail"):
            peer.wire.expect(MPFail, within=0.05)
        with pytest.raises(AssertionError, match="nothing fits"):
            peer.wait(lambda: False, "nothing fits", within=0.05)


def test_a_capture_can_be_saved_for_other_tools(lab: Lab, tmp_path: pathlib.Path) -> None:
    server_ip = lab.paths[0].server_ip
    with Wire(lab.client.name) as wire:
        with connected_sockets(lab.client, lab.server, server_ip):
            wire.expect(DSS)
        wire.close()
        file = tmp_path / "talk.pcap"
        assert wire.save(str(file)) == len(wire.segments)
        read = rdpcap(str(file))
        assert [bytes(packet) for packet in read] == [s.packet for s in wire.segments]
        assert [int(packet.time * 10**9) for packet in read] == [s.at for s in wire.segments]


def test_the_error_names_a_missing_namespace() -> None:
    with pytest.raises(LabError, match="there is no network namespace nowhere"):
        Wire("nowhere")


def test_a_capture_that_lost_packets_raises(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "_QUEUE_BYTES", 1)
    server_ip = lab.paths[0].server_ip
    with (
        Wire(lab.client.name) as wire,
        connected_sockets(lab.client, lab.server, server_ip) as (near, far, _),
    ):
        transfer(near, far, bytes(500_000))
        with pytest.raises(LabError, match=r"lost \d+ packets"):
            wire.matching()


def test_an_interface_that_goes_down_does_not_end_the_capture(lab: Lab) -> None:
    first, second = lab.paths
    with Wire(lab.client.name) as wire:
        lab.client.run(["ip", "link", "set", second.client_if, "down"])
        with connected_sockets(lab.client, lab.server, first.server_ip):
            wire.expect(MPCapableAck, interface=first.client_if)


def test_a_closed_capture_leaves_no_thread_and_no_descriptor(lab: Lab) -> None:
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    wire = Wire(lab.client.name)
    wire.close()
    wire.close()
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == files


# --- retransmissions


def total_retrans_at_rest(near: socket.socket) -> int:
    """tcpi_total_retrans of the first subflow, once everything is acknowledged (linux/tcp.h)."""

    def at_rest() -> bytes | None:
        information = near.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        return None if struct.unpack_from("=I", information, 24)[0] else information

    information = until(at_rest, "all segments are acknowledged")
    retransmits: int = struct.unpack_from("=I", information, 100)[0]
    return retransmits


@pytest.mark.parametrize("snap", [160, capture.WHOLE], ids=["headers", "whole packets"])
def test_retransmissions_on_the_wire_are_those_the_kernel_counted(snap: int) -> None:
    with (
        Lab(paths=[Path(delay_ms=2, loss_percent=5)]) as lab,
        Wire(lab.client.name, snap=snap) as w,
    ):
        server_ip, client_ip = lab.paths[0].server_ip, lab.paths[0].client_ip
        with connected_sockets(lab.client, lab.server, server_ip) as (near, far, _):
            flow = Flow(SockAddr(*near.getsockname()), SockAddr(*near.getpeername()))
            for each in (near, far):
                each.settimeout(60 * SLOWNESS)
            transfer(near, far, bytes(600_000))
            counted = total_retrans_at_rest(near)
            assert counted > 0
            assert w.retransmissions(source=client_ip) == {flow: counted}
