# SPDX-License-Identifier: BSD-3-Clause
"""`trace joins` reports simulated joins as they were simulated and as the kernel counted them."""

from collections.abc import Iterator

import pytest

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.kernel import counters
from mptcpd_ebpf.lab import Lab, Path, ShortConnections
from mptcpd_ebpf.lab.kernel_path_manager import add_endpoint, allow_joins
from mptcpd_ebpf.lab.wire import MPJoinSyn, MPJoinSynAck
from mptcpd_ebpf.trace.join_attempt import COUNTED
from tests.netns.mptcp_counters import WRONG_HMAC
from tests.netns.mptcp_sockets import connection
from tests.netns.scripted_peer import kernel_connected, open_lab, talk
from tests.netns.tracing import tracing
from tests.waiting import SLOWNESS, until


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(paths=[Path(delay_ms=2), Path(delay_ms=4)]) as lab:
        allow_joins(lab)
        yield lab


@pytest.fixture
def peer_lab() -> Iterator[Lab]:
    """A lab for a scripted peer: its server is a kernel, its client is the peer."""
    with open_lab() as lab:
        yield lab


def test_both_ends_report_an_established_join(lab: Lab) -> None:
    with tracing(lab.client, "joins") as traced, tracing(lab.server, "joins") as server_traced:
        with connection(lab):
            out = traced.event("join")
            into = server_traced.event("join")
        summary = traced.end()
    assert (out["outcome"], out["incoming"]) == ("established", False)
    assert (into["outcome"], into["incoming"]) == ("established", True)
    assert out["local"] == into["remote"]
    assert out["local"].startswith(lab.paths[1].client_ip + ":")
    assert out["token"] is not None
    assert into["token"] is not None
    assert summary["counters"]["MPJoinSynAckRx"] == 1


def test_a_backup_join_is_reported_as_backup(lab: Lab) -> None:
    lab.client.run(["ip", "mptcp", "endpoint", "flush"])
    path = lab.paths[1]
    lab.client.run(
        [
            "ip",
            "mptcp",
            "endpoint",
            "add",
            path.client_ip,
            "dev",
            path.client_if,
            "subflow",
            "backup",
        ]
    )
    with tracing(lab.client, "joins") as traced, connection(lab):
        join = traced.event("join")
    assert (join["outcome"], join["why"]) == ("established", "established as backup")


def test_a_join_with_an_unknown_token_is_explained(peer_lab: Lab) -> None:
    with tracing(peer_lab.server, "joins") as traced, talk(peer_lab) as peers:
        peers.connection.join(peer_lab.paths[1].client_ip, address_id=3, token=0xBADC0DE)
        join = traced.event("join")
        summary = traced.end()
    assert join["outcome"] == "refused"
    assert join["why"].startswith("unknown token")
    assert summary["counters"]["MPJoinNoTokenFound"] == 1


def test_a_join_with_a_wrong_hmac_is_explained(peer_lab: Lab) -> None:
    with tracing(peer_lab.server, "joins") as traced, talk(peer_lab) as peers:
        peers.connection.join(peer_lab.paths[1].client_ip, address_id=3, hmac=bytes(20))
        join = traced.event("join")
        summary = traced.end()
    assert join["outcome"] == "refused"
    assert join["why"].startswith("wrong HMAC in the third packet")
    assert summary["counters"]["MPJoinAckHMacFailure"] == 1


def test_a_join_beyond_the_limit_is_explained(lab: Lab) -> None:
    lab.server.run(["ip", "mptcp", "limits", "set", "subflows", "0"])
    with tracing(lab.client, "joins") as traced, tracing(lab.server, "joins") as server_traced:
        with connection(lab):
            into = server_traced.event("join")
            out = traced.event("join")
        summary = server_traced.end()
    assert into["outcome"] == out["outcome"] == "refused"
    assert into["why"].startswith("the limit of 0 additional subflows")
    assert out["why"].startswith("the peer refused")
    with lab.server.entered():
        counted = "MPJoinRejected" in counters.read()  # some kernels do not
    assert summary["counters"].get("MPJoinRejected") == (1 if counted else None)


def test_a_join_to_a_closing_connection_is_explained(peer_lab: Lab) -> None:
    """The kernel uses the same counter as for a reached limit."""
    with tracing(peer_lab.server, "joins") as traced, talk(peer_lab) as peers:
        peers.connection.close()
        assert peers.accepted.recv(100) == b""
        subflow = peers.connection.join(peer_lab.paths[1].client_ip, address_id=3)
        assert subflow.reset_by
        join = traced.event("join")
        traced.end()
    assert (join["outcome"], join["why"]) == ("refused", "the connection was already closing")
    assert "the connection had 0 additional subflows, the limit is 8" in join["evidence"]


def test_a_join_that_its_initiator_resets_is_abandoned(peer_lab: Lab) -> None:
    with tracing(peer_lab.server, "joins") as traced, talk(peer_lab) as peers:
        connection = peers.connection
        subflow = peers.peer.subflow(
            SockAddr(peer_lab.paths[1].client_ip, 40001), connection.initial.flow.destination
        )
        subflow.syn(MPJoinSyn(address_id=3, token=connection.remote_token, nonce=1))
        subflow.expect(MPJoinSynAck)
        subflow.reset()
        join = traced.event("join")
        summary = traced.end()
    assert (join["outcome"], join["incoming"]) == ("abandoned", True)
    assert join["token"] == f"{connection.remote_token:08x}"
    assert join["evidence"] == ["the peer sent a plain RST"]
    assert summary["outcomes"] == {"abandoned": 1}


def test_joins_of_closed_connections_are_abandoned() -> None:
    # A join takes longer than a connection lasts.
    with Lab(paths=[Path(delay_ms=5), Path(delay_ms=20 * SLOWNESS)]) as lab:
        allow_joins(lab)
        with tracing(lab.client, "joins") as traced, tracing(lab.server, "joins") as server_traced:
            lab.start(ShortConnections(count=60, parallel=4, response_size=100_000)).result()
            traced.event("join", outcome="abandoned")
            server_traced.event("join")
            traced.end()
            server_traced.end()
    out, into = traced.all("join"), server_traced.all("join")
    assert not [line for line in out + into if "the limit of 8" in line["why"]]
    given_up = {line["why"] for line in out if line["outcome"] == "abandoned"}
    assert given_up == {"this host closed the connection before the join was established"}
    for line in into:
        if "the peer sent a plain RST" in line["evidence"]:
            assert line["outcome"] in ("abandoned", "established"), line
        if "counter MPJoinRejected was incremented" in line["evidence"]:
            assert "clos" in line["why"], line


def test_a_refusal_without_a_userspace_path_manager_is_explained(lab: Lab) -> None:
    lab.server.sysctl("mptcp.pm_type", 1)
    with tracing(lab.server, "joins") as traced, connection(lab):
        join = traced.event("join")
        summary = traced.end()
    # The kernel accepts the join if a process listens in any namespace of the machine.
    if summary["counters"].get("MPJoinRejected") or join["outcome"] == "refused":
        assert join["outcome"] == "refused"
        assert join["why"].startswith("refused by policy")
    else:
        assert join["outcome"] == "established"


def test_a_join_to_a_closed_listener_is_explained(lab: Lab) -> None:
    lab.client.run(["ip", "mptcp", "endpoint", "flush"])
    path = lab.paths[1]
    with tracing(lab.client, "joins") as traced, tracing(lab.server, "joins") as server_traced:
        with connection(lab) as ends:
            ends.listener.close()
            add = ["ip", "mptcp", "endpoint", "add", path.client_ip, "dev", path.client_if]
            lab.client.run([*add, "subflow"])
            into = server_traced.event("join")
            out = traced.event("join")
        summary = server_traced.end()
    assert into["outcome"] == out["outcome"] == "refused"
    assert into["why"] == "nothing listens on that address and port"
    assert out["why"].startswith("the peer refused the SYN")
    assert "nothing listens on that address" in out["why"]
    assert not {name for name in summary["counters"] if name in COUNTED}


def test_a_wrong_hmac_of_the_peer_is_explained(peer_lab: Lab) -> None:
    far = peer_lab.paths[1]
    with (
        tracing(peer_lab.client, "joins") as traced,
        kernel_connected(peer_lab) as (_, connected, _),
    ):
        add_endpoint(peer_lab.client, far.client_ip, "subflow")
        assert connected.accept_join(address_id=2, hmac=1).reset_by
        join = traced.event("join")
        summary = traced.end()
    assert (join["outcome"], join["incoming"]) == ("refused", False)
    assert join["why"].startswith("wrong HMAC in the SYN/ACK")
    assert sum(summary["counters"].get(name, 0) for name in WRONG_HMAC) == 1


def test_a_join_without_answer_fails(lab: Lab) -> None:
    lab.client.sysctl("ipv4.tcp_syn_retries", 1)
    lab.paths[1].drop_mptcp("mp-join")
    with tracing(lab.client, "joins") as traced, connection(lab):
        join = traced.event("join")
    assert join["outcome"] == "failed"
    assert join["syns"] >= 2
    assert "ETIMEDOUT" in join["why"]


def test_joins_dropped_by_a_firewall_are_unanswered(lab: Lab) -> None:
    lab.paths[1].drop_mptcp("mp-join")
    far = lab.paths[1].client_ip
    with tracing(lab.client, "joins", "--addr", far) as traced, connection(lab):
        waiting = ["ss", "-tnH", "state", "syn-sent"]
        until(lambda: far in lab.client.run(waiting).stdout, "a join in SYN_SENT")
        summary = traced.end()
    join = traced.event("join")
    assert join["outcome"] == "unanswered"
    assert join["syns"] >= 1
    assert summary["outcomes"] == {"unanswered": 1}


def test_a_join_without_a_route_is_never_sent(lab: Lab) -> None:
    if "MPJoinSynTxConnectErr" not in counters.read():
        pytest.skip("this kernel does not count joins that fail before their SYN")
    lab.client.run(["ip", "mptcp", "endpoint", "flush"])
    lab.client.run(["ip", "address", "add", "192.0.2.1/32", "dev", lab.paths[1].client_if])
    lab.client.run(["ip", "rule", "add", "from", "192.0.2.1", "unreachable"])
    add_endpoint(lab.client, "192.0.2.1", "subflow")
    with tracing(lab.client, "joins") as traced, connection(lab):
        join = traced.event("join")
    assert join["outcome"] == "never sent"
    assert "no route" in join["why"]
