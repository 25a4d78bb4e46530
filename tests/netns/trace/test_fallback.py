# SPDX-License-Identifier: BSD-3-Clause
"""Each simulated fallback is reported once, with its flow, its cause, and the kernel's counter."""

import os
import socket
from collections import Counter
from collections.abc import Iterator

import pytest

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.kernel.counters import read
from mptcpd_ebpf.lab import Lab, Path
from mptcpd_ebpf.lab.wire import DSS, MPCapableSyn, MPCapableSynAck, Peer
from mptcpd_ebpf.trace.fallback import REASONS
from tests.netns.mptcp_counters import Counters
from tests.netns.mptcp_sockets import connection, exchange, listen, mptcp_socket
from tests.netns.scripted_peer import Talk, open_lab, talk
from tests.netns.tracing import tracing


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(paths=[Path(delay_ms=1)]) as lab:
        yield lab


def test_options_stripped_in_both_directions_are_reported(lab: Lab) -> None:
    lab.paths[0].strip_mptcp()
    with tracing(lab.client, "fallback") as traced:
        with connection(lab) as ends:
            port = ends.client.getsockname()[1]
            line = traced.event("fallback")
        summary = traced.end()
    assert line["reason"] == "syn-ack"
    assert line["local"] == f"{lab.paths[0].client_ip}:{port}"
    assert "middlebox" in line["why"]
    assert line["token"] is not None
    assert line["pid"] == os.getpid()
    assert summary["counters"] == summary["moved"] == {"MPCapableFallbackSYNACK": 1}


@pytest.mark.parametrize(("address", "fits"), [("10.1.1.2", True), ("192.0.2.1", False)])
def test_options_stripped_from_an_established_connection_are_reported(
    lab: Lab, address: str, fits: bool
) -> None:
    if "DssFallback" not in counter_names(lab):
        pytest.skip("this kernel does not count DssFallback")
    with (
        tracing(lab.client, "fallback") as traced,
        tracing(lab.client, "fallback", "--addr", address) as filtered,
        connection(lab) as ends,
    ):
        port = ends.client.getsockname()[1]
        lab.paths[0].strip_mptcp()
        exchange(ends, b"naked")
        line = traced.event("fallback")
        if fits:
            filtered.event("fallback")
        summary = filtered.end()
        traced.end()
    assert line["local"] == f"{lab.paths[0].client_ip}:{port}"
    assert line["pid"] == os.getpid()
    assert line["candidates"] == []
    assert [each["local"] for each in filtered.all("fallback")] == [line["local"]] * fits
    assert summary["moved"] == {line["counter"]: 1}


@pytest.mark.parametrize("fits", [True, False])
def test_several_possible_connections_are_candidates(fits: bool) -> None:
    """Two handshakes have no third packet with MP_CAPABLE, and the counter increases by one."""
    with open_lab() as lab:
        path = lab.paths[0]
        wanted = path.client_ip if fits else "192.0.2.1"
        with (
            listen(lab.server, "0.0.0.0") as listener,
            Peer(lab.client.name) as peer,
            tracing(lab.server, "fallback", "--addr", wanted) as traced,
        ):
            remote = SockAddr(path.server_ip, listener.getsockname()[1])
            waiting, falling = (
                peer.subflow(SockAddr(path.client_ip, port), remote) for port in (40001, 40002)
            )
            for subflow in (waiting, falling):
                subflow.syn(MPCapableSyn())
                subflow.expect(MPCapableSynAck)
            falling.ack()
            traced.counted(lab.server, "MPCapableFallbackACK", 1)
            if fits:
                line = traced.event("fallback", counter="MPCapableFallbackACK")
                assert line["candidates"] == [
                    f"{remote} → {each.flow.source}" for each in (waiting, falling)
                ]
            summary = traced.end()
    assert len(traced.all("fallback")) == fits
    assert summary["moved"] == {"MPCapableFallbackACK": 1}


def test_both_ends_report_options_stripped_from_the_answer(lab: Lab) -> None:
    lab.paths[0].strip_mptcp("down")
    with (
        tracing(lab.client, "fallback") as traced,
        tracing(lab.server, "fallback") as server_traced,
    ):
        with connection(lab):
            line = traced.event("fallback")
            server_line = server_traced.event("fallback")
        summary = server_traced.end()
    assert line["reason"] == "syn-ack"
    assert server_line["reason"] == "ack"
    assert summary["counters"]["MPCapableFallbackACK"] == 1


def test_a_tcp_only_server_is_reported(lab: Lab) -> None:
    with lab.server.entered():
        listener = socket.create_server(("0.0.0.0", 0))
    with listener, mptcp_socket(lab.client) as client, tracing(lab.client, "fallback") as traced:
        client.connect((lab.paths[0].server_ip, listener.getsockname()[1]))
        line = traced.event("fallback")
        traced.end()
    assert line["counter"] == "MPCapableFallbackSYNACK"
    assert line["remote"].startswith(lab.paths[0].server_ip + ":")


@pytest.mark.parametrize("reason", ["tcp-listener", "sysctl"])
def test_the_server_reports_why_it_declined_mptcp(lab: Lab, reason: str) -> None:
    with lab.server.entered():
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with listener, mptcp_socket(lab.client) as client, tracing(lab.server, "fallback") as traced:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        if reason == "sysctl":
            lab.server.sysctl("mptcp.enabled", 0)
        client.connect((lab.paths[0].server_ip, listener.getsockname()[1]))
        line = traced.event("fallback")
        summary = traced.end()
    assert line["reason"] == reason
    assert line["remote"].startswith(lab.paths[0].client_ip + ":")
    assert summary["counters"] == {reason: 1}


def test_changed_data_is_found_by_its_checksum() -> None:
    with open_lab() as lab:
        lab.server.sysctl("mptcp.checksum_enabled", 1)
        with tracing(lab.server, "fallback") as traced, talk(lab, checksum=True) as peers:
            peers.connection.send(b"spoilt", spoil_checksum=True)
            line = traced.event("fallback", counter="DataCsumErr")
            traced.end()
    assert line["reason"] == "checksum"
    assert line["evidence"][0] == "counter DataCsumErr was incremented"


def cause_fallback(peers: Talk, how: str) -> None:
    """Makes the kernel at the other end fall back."""
    connection, initial = peers.connection, peers.connection.initial
    if how == "MPFailRx":
        initial.fail(connection.snd_nxt)
    elif how == "InfiniteMapRx":
        infinite = DSS(dsn=connection.snd_nxt, ssn=initial.next_ssn, data_length=0)
        initial.data(b"naked", infinite)
    else:
        astray = DSS(dsn=connection.snd_nxt, ssn=initial.next_ssn + 100, data_length=5)
        initial.data(b"naked", astray)


@pytest.mark.parametrize(
    ("counter", "reason"),
    [
        ("InfiniteMapRx", "infinite-rx"),
        ("MPFailRx", "fail-rx"),
        ("DssFallback", "no-dss"),
    ],
)
def test_fallbacks_of_an_established_connection_are_reported(counter: str, reason: str) -> None:
    with open_lab() as lab, tracing(lab.server, "fallback") as traced, talk(lab) as peers:
        counted = Counters(lab.server)
        if counter not in counter_names(lab):
            pytest.skip(f"this kernel does not count {counter}")
        cause_fallback(peers, counter)
        line = traced.event("fallback", counter=counter)
        flow = str(peers.connection.initial.flow.destination)
        traced.end()
        moved = {name: number for name, number in counted.changed().items() if name in REASONS}
    assert line["reason"] == reason
    assert line["local"] == flow
    assert Counter(each["counter"] for each in traced.all("fallback")) == moved


def counter_names(lab: Lab) -> set[str]:
    with lab.server.entered():
        return set(read())


def test_dropped_syns_and_the_following_suspension_are_reported(lab: Lab) -> None:
    try:
        lab.client.sysctl("mptcp.syn_retrans_before_tcp_fallback", 0)
    except FileNotFoundError:
        pytest.skip("this kernel falls back after a fixed number of SYNs, which takes long")
    lab.paths[0].drop_mptcp("mp-capable")
    with tracing(lab.client, "fallback") as traced:
        for counter in ("MPCapableSYNTXDrop", "MPCapableSYNTXDisabled"):
            with connection(lab) as ends:
                port = ends.client.getsockname()[1]
                line = traced.event("fallback", counter=counter)
            assert line["local"] == f"{lab.paths[0].client_ip}:{port}"
        traced.end()


def test_a_healthy_connection_does_not_fall_back(lab: Lab) -> None:
    with tracing(lab.client, "fallback") as traced:
        with connection(lab):
            pass
        summary = traced.end()
    assert summary["counters"] == {}
    assert not traced.all("fallback")
