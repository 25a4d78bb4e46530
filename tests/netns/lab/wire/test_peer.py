# SPDX-License-Identifier: BSD-3-Clause
"""The scripted peer works with the kernel, as client and as server.

The kernel's counters (MPTcpExt) and sockets show what it accepted.
"""

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.lab import Lab, LabError
from mptcpd_ebpf.lab.kernel_path_manager import add_endpoint
from mptcpd_ebpf.lab.wire import (
    FIN,
    RST,
    AddAddr,
    MPFail,
    MPFastclose,
    MPJoinSyn,
    MPPrio,
    Peer,
    RemoveAddr,
)
from tests.netns.mptcp_counters import Counters
from tests.netns.mptcp_sockets import DEADLINE_S, connected_sockets, listen
from tests.netns.scripted_peer import Talk, kernel_connected, kernel_connects, open_lab, talk
from tests.waiting import until


@pytest.fixture
def lab() -> Iterator[Lab]:
    with open_lab() as lab:
        yield lab


@pytest.fixture
def plain(lab: Lab) -> Iterator[Talk]:
    with talk(lab) as conversation:
        yield conversation


def read_exactly(source: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += source.recv(count - len(data))
    return data


# --- the peer is the client


@pytest.mark.parametrize("checksum", [False, True], ids=["no checksum", "checksum"])
def test_data_goes_both_ways(lab: Lab, checksum: bool) -> None:
    counters = Counters(lab.server)
    with talk(lab, checksum=checksum) as (peer, connection, _, accepted, _):
        assert connection.checksum == checksum
        up, down = bytes(range(256)) * 40, bytes(range(255, -1, -1)) * 40
        connection.send(up)
        connection.wait_acked()
        assert read_exactly(accepted, len(up)) == up
        accepted.sendall(down)
        assert connection.receive_data(len(down)) == down
        assert connection.checksum_errors == 0
        assert not connection.unmapped
        assert not peer.wire.matching(flags=RST)
    counters.expect(MPCapableSYNRX=1, MPCapableACKRX=1, DataCsumErr=0, MPCapableFallbackACK=0)


def test_ipv6_joins_and_announcements() -> None:
    with open_lab(ip="6") as lab:
        near, far = lab.paths
        assert near.client_ip6
        assert near.server_ip6
        assert far.client_ip6
        with listen(lab.server, "::") as listener, Peer(lab.client.name) as peer:
            remote = SockAddr(near.server_ip6, listener.getsockname()[1])
            connection = peer.connect(near.client_ip6, remote)
            connection.send(b"hello")
            connection.wait_acked()
            subflow = connection.join(far.client_ip6, 2)
            assert subflow.reset_by is None
            connection.send(b"over the second path", on=subflow)
            connection.wait_acked()
            connection.announce(far.client_ip6, 3, port=7000)
            connection.initial.expect(
                AddAddr(echo=1, address_id=3, address=far.client_ip6, port=7000)
            )


def test_a_join_carries_data(plain: Talk) -> None:
    counters = Counters(plain.lab.server)
    path1 = plain.lab.paths[1]
    subflow = plain.connection.join(path1.client_ip, 2, backup=True)
    assert subflow.reset_by is None
    plain.connection.send(b"over the second path", on=subflow)
    plain.connection.wait_acked()
    assert plain.accepted.recv(100) == b"over the second path"
    counters.expect(MPJoinSynRx=1, MPJoinSynBackupRx=1, MPJoinAckRx=1)
    # The capture shows the same.
    plain.peer.wire.expect(
        MPJoinSyn(address_id=2, backup=True),
        interface=path1.client_if,
        direction="out",
        token=plain.connection.remote_token,
    )


def test_priority_changes(plain: Talk) -> None:
    path1 = plain.lab.paths[1]
    subflow = plain.connection.join(path1.client_ip, 2)
    counters = Counters(plain.lab.server)
    subflow.prio(backup=True)
    counters.expect(MPPrioRx=1)
    # The kernel does not use the backup while a regular subflow is live.
    plain.accepted.sendall(b"x" * 2000)
    plain.connection.receive_data(2000)
    assert all(segment.payload_length == 0 for segment in subflow.segments)
    assert plain.peer.wire.matching(MPPrio(backup=True), direction="out", flow=subflow.flow)


def test_an_announced_address_is_echoed_and_joined_and_closed_when_withdrawn(plain: Talk) -> None:
    path1 = plain.lab.paths[1]
    counters = Counters(plain.lab.server)
    port = plain.connection.initial.flow.source.port
    plain.connection.announce(path1.client_ip, 7)
    plain.connection.initial.expect(AddAddr(echo=1, address_id=7, address=path1.client_ip))
    subflow = plain.connection.accept_join(address_id=7)
    assert subflow.flow.source == SockAddr(path1.client_ip, port)
    counters.expect(AddAddr=1, EchoAddTx=1, MPJoinSynTx=1, MPJoinSynAckRx=1)
    plain.connection.remove(7)
    plain.peer.wait(lambda: subflow.finished, "the kernel leaves the withdrawn address")
    counters.expect(RmAddr=1)


def test_a_withdrawal_may_have_several_addresses(plain: Talk) -> None:
    counters = Counters(plain.lab.server)
    plain.connection.remove(5, 6)
    counters.expect(RmAddr=2)
    assert plain.peer.wire.matching(RemoveAddr(address_ids=[5, 6]), direction="out")


def test_fast_close_is_answered_by_a_reset(plain: Talk) -> None:
    counters = Counters(plain.lab.server)
    plain.connection.fastclose()
    plain.connection.initial.expect_reset()
    with pytest.raises(ConnectionResetError):
        plain.accepted.recv(1)
    counters.expect(MPFastcloseRx=1, MPRstTx=1)


def test_the_kernels_fast_close_carries_the_peers_key(plain: Talk) -> None:
    plain.connection.send(b"unread")
    plain.connection.wait_acked()
    plain.accepted.close()
    reset = plain.connection.initial.expect_reset()
    assert reset.carries(MPFastclose(receiver_key=plain.connection.key))


def test_a_reset_with_a_reason_ends_one_subflow(plain: Talk) -> None:
    path1 = plain.lab.paths[1]
    subflow = plain.connection.join(path1.client_ip, 2)
    counters = Counters(plain.lab.server)
    subflow.reset(reason=4, transient=True)
    counters.expect(MPRstRx=1)
    plain.connection.send(b"still here")
    plain.connection.wait_acked()
    assert plain.accepted.recv(100) == b"still here"


def test_a_claimed_checksum_failure_falls_back_on_the_only_subflow(plain: Talk) -> None:
    counters = Counters(plain.lab.server)
    plain.connection.initial.fail(plain.connection.snd_nxt)
    plain.connection.initial.expect(MPFail)
    counters.expect(MPFailRx=1, MPFailTx=1)


def test_a_close_exchanges_data_fins_and_fins_in_both_directions(plain: Talk) -> None:
    connection = plain.connection
    connection.close()
    connection.wait_acked()
    assert plain.accepted.recv(1) == b""
    plain.accepted.sendall(b"final data")
    assert connection.receive_data(10) == b"final data"
    plain.accepted.close()
    plain.peer.wait(lambda: connection.closed_by_kernel, "DATA_FIN")
    plain.peer.wait(lambda: connection.initial.finished, "FIN")
    ours = plain.peer.wire.expect(flags=FIN, direction="out")
    plain.peer.wire.expect(direction="in", flow=ours.flow.reversed(), since=ours.at)
    assert not plain.peer.wire.matching(flags=RST)


# --- the peer is the server


@pytest.mark.parametrize("checksum", [False, True], ids=["no checksum", "checksum"])
def test_the_kernel_connects_to_the_peer(lab: Lab, checksum: bool) -> None:
    lab.client.sysctl("mptcp.checksum_enabled", int(checksum))
    counters = Counters(lab.client)
    with Peer(lab.server.name) as peer, kernel_connects(lab) as client:
        connection = peer.accept(5000)
        assert connection.checksum == checksum
        client.settimeout(DEADLINE_S)
        client.sendall(b"question" * 1000)
        assert connection.receive_data(8000) == b"question" * 1000
        connection.send(b"answer")
        assert client.recv(100) == b"answer"
        assert connection.checksum_errors == 0
        client.close()
        peer.wait(lambda: connection.closed_by_kernel, "DATA_FIN")
    counters.expect(MPCapableSYNTX=1, MPCapableSYNACKRX=1, MPCapableFallbackSYNACK=0)


def test_an_endpoint_of_the_kernel_joins_the_peer(lab: Lab) -> None:
    path1 = lab.paths[1]
    add_endpoint(lab.client, path1.client_ip, "subflow", "backup", "id", "9")
    with kernel_connected(lab) as (peer, connection, _):
        subflow = connection.accept_join()
        assert subflow.segments[0].carries(
            MPJoinSyn(address_id=9, backup=True, token=connection.token)
        )
        assert subflow.flow.destination.ip == path1.client_ip
        lab.client.run(["ip", "mptcp", "endpoint", "delete", "id", "9"])
        connection.initial.expect(RemoveAddr(address_ids=[9]))
        peer.wait(lambda: subflow.finished, "the kernel closes the endpoint's subflow")


# --- the peer and its namespace


def test_the_namespaces_own_kernel_sends_no_tcp(lab: Lab) -> None:
    """The kernel sends no RST in place of the peer, and the rule is removed with the peer."""
    with Peer(lab.server.name) as peer:
        with kernel_connects(lab, port=5999):
            peer.wire.expect(flags=2, direction="in")
        assert not peer.wire.matching(direction="out")
        assert "drop" in lab.server.run(["nft", "list", "ruleset"]).stdout
    assert "wire_peer" not in lab.server.run(["nft", "list", "ruleset"]).stdout


def test_a_namespace_has_one_peer(lab: Lab) -> None:
    with Peer(lab.server.name):
        with pytest.raises(LabError, match=rf"{lab.server.name}: nft: .*another peer"):
            Peer(lab.server.name)
        assert "drop" in lab.server.run(["nft", "list", "ruleset"]).stdout


def test_the_rule_is_removed_when_its_owner_is_killed(lab: Lab) -> None:
    script = (
        "import sys; from mptcpd_ebpf.lab.wire import Peer\n"
        "peer = Peer(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", script, lab.server.name]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        try:
            assert owner.stdout is not None
            assert owner.stdout.readline() == "open\n"
            assert "drop" in lab.server.run(["nft", "list", "ruleset"]).stdout
        finally:
            owner.kill()
    until(
        lambda: "wire_peer" not in lab.server.run(["nft", "list", "ruleset"]).stdout,
        "the kernel removes the rule",
    )


def test_a_failed_expectation_shows_the_last_packets(lab: Lab) -> None:
    with (
        Peer(lab.server.name) as peer,
        kernel_connects(lab),
        pytest.raises(AssertionError, match=r"(?s)MPJoinSyn arrives.*MP_CAPABLE SYN"),
    ):
        peer.next_syn(MPJoinSyn, within=0.1)


def test_plain_tcp_still_works_after_the_peer(lab: Lab) -> None:
    Peer(lab.client.name).close()
    with connected_sockets(lab.client, lab.server, lab.paths[0].server_ip):
        pass
