# SPDX-License-Identifier: BSD-3-Clause
"""Staged fallbacks are told once each, with flow, reason, and the counter that moved."""

import socket
from collections.abc import Iterator

import pytest

from mptcpd_ebpf.lab import Lab, Path
from tests.netns.probed import IPPROTO_MPTCP, connection
from tests.netns.tracing import tracing
from tests.netns.wire_kernel import open_lab, talk


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(paths=[Path(delay_ms=1)]) as lab:
        yield lab


def test_options_stripped_both_ways(lab: Lab) -> None:
    lab.paths[0].strip_mptcp()
    with tracing(lab.client, "fallback") as told:
        with connection(lab) as ends:
            port = ends.client.getsockname()[1]
            line = told.event("fallback")
        summary = told.end()
    assert line["reason"] == "syn-ack"
    assert line["local"] == f"{lab.paths[0].client_ip}:{port}"
    assert "middlebox" in line["why"]
    assert summary["counters"] == {"MPCapableFallbackSYNACK": 1}


def test_options_stripped_on_the_way_back_only(lab: Lab) -> None:
    lab.paths[0].strip_mptcp("down")
    with tracing(lab.client, "fallback") as told, tracing(lab.server, "fallback") as server_told:
        with connection(lab):
            line = told.event("fallback")
            server_line = server_told.event("fallback")
        summary = server_told.end()
    assert line["reason"] == "syn-ack"
    assert server_line["reason"] == "ack"
    assert summary["counters"]["MPCapableFallbackACK"] == 1


def test_a_server_that_speaks_tcp_only(lab: Lab) -> None:
    with lab.server.entered():
        listener = socket.create_server(("0.0.0.0", 0))
    with lab.client.entered():
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
    with listener, client, tracing(lab.client, "fallback") as told:
        client.connect((lab.paths[0].server_ip, listener.getsockname()[1]))
        line = told.event("fallback")
        told.end()
    assert line["counter"] == "MPCapableFallbackSYNACK"
    assert line["remote"].startswith(lab.paths[0].server_ip + ":")


def test_data_changed_on_the_way_is_found_by_its_checksum() -> None:
    with open_lab() as lab:
        lab.server.sysctl("mptcp.checksum_enabled", 1)
        with tracing(lab.server, "fallback") as told, talk(lab, checksum=True) as peers:
            peers.connection.send(b"spoilt", spoil_checksum=True)
            line = told.event("fallback", counter="DataCsumErr")
            told.end()
    assert line["reason"] == "checksum"
    assert line["evidence"][0] == "counter DataCsumErr moved"


def test_a_healthy_connection_falls_back_nowhere(lab: Lab) -> None:
    with tracing(lab.client, "fallback") as told:
        with connection(lab):
            pass
        summary = told.end()
    assert summary["counters"] == {}
    assert not told.all("fallback")
