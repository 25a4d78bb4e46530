# SPDX-License-Identifier: BSD-3-Clause
"""The kernel's reaction to a peer that violates the protocol: its packets and its counters.

After every refusal the test checks that the connection still works, or how it ended.
"""

import random
import socket
from collections.abc import Callable, Iterator

import pytest
from scapy.layers.inet import IP, TCP

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.kernel.tcp_options import MPTCP_KIND
from mptcpd_ebpf.lab import Lab
from mptcpd_ebpf.lab.kernel_path_manager import add_endpoint
from mptcpd_ebpf.lab.wire import (
    ACK,
    DSS,
    RST,
    SYN,
    AddAddr,
    MPCapableAck,
    MPCapableSyn,
    MPCapableSynAck,
    MPFail,
    MPJoinSyn,
    MPTCPOption,
    MPTcpRst,
    MPTCPUnknown,
    Peer,
    PeerSubflow,
)
from tests.netns.mptcp_counters import WRONG_HMAC, Counters
from tests.netns.mptcp_sockets import DEADLINE_S, listen
from tests.netns.scripted_peer import Talk, kernel_connects, open_lab, talk
from tests.waiting import until

MIDDLEBOX, PROHIBITED, MPTCP_SPECIFIC = 6, 3, 1


@pytest.fixture
def lab() -> Iterator[Lab]:
    with open_lab() as lab:
        yield lab


@pytest.fixture
def plain(lab: Lab) -> Iterator[Talk]:
    with talk(lab) as conversation:
        yield conversation


@pytest.fixture
def with_checksum(lab: Lab) -> Iterator[Talk]:
    with talk(lab, checksum=True) as conversation:
        yield conversation


def second_ip(lab: Lab) -> str:
    return lab.paths[1].client_ip


def assert_alive(conversation: Talk, on: PeerSubflow | None = None) -> None:
    """Data still goes both ways, with mappings and acknowledgements of MPTCP."""
    connection = conversation.connection
    already = len(connection.received)
    connection.send(b"ping", on=on)
    connection.wait_acked()
    assert conversation.accepted.recv(100) == b"ping"
    conversation.accepted.sendall(b"pong")
    assert connection.receive_data(already + 4).endswith(b"pong")


def assert_fallen_back(conversation: Talk) -> None:
    """The kernel has fallen back to plain TCP."""
    connection = conversation.connection
    conversation.accepted.sendall(b"plain")
    conversation.peer.wait(lambda: bytes(connection.unmapped) == b"plain", "data without a mapping")


# --- joins


def test_a_join_for_an_unknown_token_is_reset(plain: Talk) -> None:
    counters = Counters(plain.lab.server)
    subflow = plain.connection.join(
        second_ip(plain.lab), 2, token=plain.connection.remote_token ^ 1
    )
    assert subflow.reset_by
    assert subflow.reset_by.carries(MPTcpRst(reason=MPTCP_SPECIFIC))
    counters.expect(MPJoinNoTokenFound=1, MPJoinAckRx=0)
    assert_alive(plain)


def test_a_join_with_a_wrong_hmac_is_reset(plain: Talk) -> None:
    counters = Counters(plain.lab.server)
    subflow = plain.connection.join(second_ip(plain.lab), 2, hmac=b"x" * 20)
    assert subflow.reset_by
    counters.expect(MPJoinSynRx=1, MPJoinAckHMacFailure=1)
    assert_alive(plain)


def test_a_join_beyond_the_limit_is_refused_by_policy(lab: Lab) -> None:
    lab.server.run(["ip", "mptcp", "limits", "set", "subflow", "0"])
    with talk(lab) as conversation:
        counters = Counters(lab.server)
        subflow = conversation.connection.join(second_ip(lab), 2)
        assert subflow.reset_by
        assert subflow.reset_by.carries(MPTcpRst(reason=PROHIBITED))
        counters.expect(MPJoinSynRx=1, MPJoinRejected=1)
        assert_alive(conversation)


def test_a_server_with_a_wrong_hmac_is_reset(lab: Lab) -> None:
    add_endpoint(lab.client, second_ip(lab), "subflow")
    counters = Counters(lab.client)
    with Peer(lab.server.name) as peer, kernel_connects(lab) as client:
        connection = peer.accept(5000)
        client.settimeout(DEADLINE_S)
        client.sendall(b"x")
        connection.receive_data(1)
        subflow = connection.accept_join(hmac=1)
        assert subflow.reset_by
        until(
            lambda: sum(counters.changed().get(name, 0) for name in WRONG_HMAC) == 1,
            "it is counted",
        )
        connection.send(b"still here")
        assert client.recv(100) == b"still here"


def test_a_join_of_a_wrong_length_is_taken_for_plain_tcp(plain: Talk) -> None:
    """The kernel sees a plain SYN, and the listener accepts a TCP connection."""
    counters = Counters(plain.lab.server)
    malformed = MPTCPUnknown(octets=bytes([MPTCP_KIND, 10]) + bytes(MPJoinSyn(token=1))[2:10])
    remote = plain.connection.initial.flow.destination
    subflow = plain.peer.subflow(SockAddr(second_ip(plain.lab), 50000), remote)
    subflow.syn(malformed)
    answer = subflow.expect(flags=SYN | ACK)
    assert not answer.mptcp
    counters.expect(MPJoinSynRx=0, MPJoinNoTokenFound=0)


# --- stripped options


def test_a_handshake_with_a_stripped_syn_ack_falls_back(lab: Lab) -> None:
    counters = Counters(lab.client)
    with Peer(lab.server.name) as peer, kernel_connects(lab) as client:
        syn = peer.next_syn(MPCapableSyn, port=5000)
        subflow = peer.subflow(*syn.flow.reversed())
        subflow.receive(syn)
        subflow.syn_ack()
        subflow.expect(flags=ACK)
        client.settimeout(DEADLINE_S)
        client.sendall(b"plain")
        data = peer.wait(
            lambda: next((s for s in subflow.segments if s.payload_length), None), "data"
        )
        assert data.payload == b"plain"
        assert not data.mptcp
    counters.expect(MPCapableFallbackSYNACK=1)


def test_a_handshake_with_a_stripped_ack_falls_back(lab: Lab) -> None:
    counters = Counters(lab.server)
    client_ip, server_ip = lab.paths[0].client_ip, lab.paths[0].server_ip
    with listen(lab.server, "0.0.0.0") as listener, Peer(lab.client.name) as peer:
        remote = SockAddr(server_ip, listener.getsockname()[1])
        subflow = peer.subflow(SockAddr(client_ip, 50000), remote)
        subflow.syn(MPCapableSyn())
        subflow.expect(MPCapableSynAck)
        subflow.ack()
        subflow.data(b"plain")
        with listener.accept()[0] as accepted:
            accepted.settimeout(DEADLINE_S)
            assert accepted.recv(100) == b"plain"
    counters.expect(MPCapableSYNRX=1, MPCapableFallbackACK=1, MPCapableACKRX=0)


def test_version_0_is_not_accepted(lab: Lab) -> None:
    client_ip, server_ip = lab.paths[0].client_ip, lab.paths[0].server_ip
    with listen(lab.server, "0.0.0.0") as listener, Peer(lab.client.name) as peer:
        counters = Counters(lab.server)
        remote = SockAddr(server_ip, listener.getsockname()[1])
        subflow = peer.subflow(SockAddr(client_ip, 50000), remote)
        subflow.syn(MPCapableSyn(version=0))
        assert not subflow.expect(flags=SYN | ACK).mptcp
        counters.expect(MPCapableSYNRX=0)


def test_data_without_a_mapping_falls_back_on_the_only_subflow(plain: Talk) -> None:
    counters = Counters(plain.lab.server)
    plain.connection.initial.data(b"naked")
    assert plain.accepted.recv(100) == b"naked"
    assert_fallen_back(plain)
    counters.expect(DssFallback=1)


def test_data_without_a_mapping_resets_a_joined_subflow(plain: Talk) -> None:
    subflow = plain.connection.join(second_ip(plain.lab), 2)
    counters = Counters(plain.lab.server)
    subflow.data(b"naked")
    reset = subflow.expect_reset()
    # The reason differs between kernels: 6.12 sends the less specific one.
    assert any(reset.carries(MPTcpRst(reason=each)) for each in (MIDDLEBOX, MPTCP_SPECIFIC))
    counters.expect(MPRstTx=1)
    assert_alive(plain)


# --- mappings


def test_a_wrong_checksum_fails_but_delivers_on_the_only_subflow(with_checksum: Talk) -> None:
    counters = Counters(with_checksum.lab.server)
    dsn = with_checksum.connection.snd_nxt
    with_checksum.connection.send(b"garbled", spoil_checksum=True)
    with_checksum.connection.initial.expect(MPFail(dsn=dsn))
    assert with_checksum.accepted.recv(100) == b"garbled"
    counters.expect(DataCsumErr=1, MPFailTx=1)


def test_a_wrong_checksum_resets_a_joined_subflow(with_checksum: Talk) -> None:
    connection = with_checksum.connection
    subflow = connection.join(second_ip(with_checksum.lab), 2)
    counters = Counters(with_checksum.lab.server)
    dsn = connection.snd_nxt
    connection.send(b"garbled", on=subflow, spoil_checksum=True)
    reset = subflow.expect_reset()
    assert reset.carries(MPFail(dsn=dsn))
    assert reset.carries(MPTcpRst(reason=MIDDLEBOX))
    counters.expect(DataCsumErr=1, MPFailTx=1, MPRstTx=1)
    # The data lost with the subflow is retransmitted on the other.
    connection.snd_nxt = dsn
    assert_alive(with_checksum)


def test_a_missing_checksum_falls_back(with_checksum: Talk) -> None:
    connection = with_checksum.connection
    option = DSS(dsn=connection.snd_nxt, ssn=connection.initial.next_ssn, data_length=5)
    connection.initial.data(b"naked", option)
    assert with_checksum.accepted.recv(100) == b"naked"
    assert_fallen_back(with_checksum)


@pytest.mark.parametrize(("offset", "counter"), [(-5, "DuplicateData"), (1 << 31, "NoDSSInWindow")])
def test_data_from_outside_the_window_is_not_delivered(
    plain: Talk, offset: int, counter: str
) -> None:
    connection = plain.connection
    counters = Counters(plain.lab.server)
    option = DSS(dsn=connection.snd_nxt + offset, ssn=connection.initial.next_ssn, data_length=5)
    connection.initial.data(b"again", option)
    counters.expect(**{counter: 1})
    assert_alive(plain)


def test_a_mapping_of_other_bytes_falls_back(plain: Talk) -> None:
    connection = plain.connection
    counters = Counters(plain.lab.server)
    option = DSS(dsn=connection.snd_nxt, ssn=connection.initial.next_ssn + 100, data_length=5)
    connection.initial.data(b"naked", option)
    counters.expect(DSSNoMatchTCP=1)
    assert_fallen_back(plain)


def test_a_mapping_that_changes_midway_falls_back(plain: Talk) -> None:
    connection, initial = plain.connection, plain.connection.initial
    counters = Counters(plain.lab.server)
    ssn = initial.next_ssn
    initial.data(b"ab", DSS(dsn=connection.snd_nxt, ssn=ssn, data_length=10))
    initial.data(b"cd", DSS(dsn=connection.snd_nxt + 50, ssn=ssn, data_length=10))
    counters.expect(DSSNotMatching=1)
    assert_fallen_back(plain)


# --- signals


def test_an_announcement_with_a_wrong_hmac_is_ignored(plain: Talk) -> None:
    counters = Counters(plain.lab.server)
    plain.connection.announce("203.0.113.1", 5, hmac=1)
    # The echo of a later, valid one shows that the kernel has processed the invalid one.
    plain.connection.announce("203.0.113.2", 6)
    plain.connection.initial.expect(AddAddr(echo=1, address_id=6))
    assert not plain.peer.wire.matching(AddAddr(echo=1, address_id=5))
    counters.expect(AddAddr=1)
    assert_alive(plain)


def test_the_withdrawal_of_an_unknown_address_is_ignored(plain: Talk) -> None:
    subflow = plain.connection.join(second_ip(plain.lab), 2)
    counters = Counters(plain.lab.server)
    plain.connection.remove(99)
    counters.expect(RmAddr=1)
    assert_alive(plain, on=subflow)


def test_a_fast_close_with_a_wrong_key_is_ignored(plain: Talk) -> None:
    counters = Counters(plain.lab.server)
    plain.connection.fastclose(key=plain.connection.remote_key ^ 1)
    assert_alive(plain)
    counters.expect(MPFastcloseRx=0)


def test_a_reported_failure_on_one_of_two_subflows_is_counted(plain: Talk) -> None:
    subflow = plain.connection.join(second_ip(plain.lab), 2)
    counters = Counters(plain.lab.server)
    subflow.fail(plain.connection.snd_nxt)
    counters.expect(MPFailRx=1, MPFailTx=0)
    assert_alive(plain)


# --- resets


def test_a_forged_reset_ends_only_its_subflow(plain: Talk) -> None:
    """A host on the path that knows the sequence number resets the initial subflow."""
    subflow = plain.connection.join(second_ip(plain.lab), 2)
    plain.connection.initial.reset()
    assert_alive(plain, on=subflow)


@pytest.mark.parametrize(
    ("offset", "challenged"), [(10, True), (1 << 30, False)], ids=["in window", "outside"]
)
def test_a_blind_reset_is_not_accepted(plain: Talk, offset: int, challenged: bool) -> None:
    """RFC 5961, 3.2: only the exact sequence number resets, one in the window is challenged."""
    initial = plain.connection.initial
    already = len(initial.segments)
    initial.reset(seq=initial.snd_nxt + offset)
    if challenged:
        plain.peer.wait(lambda: len(initial.segments) > already, "a challenge")
    assert_alive(plain)
    assert not plain.peer.wire.matching(flags=RST, direction="in")


def test_a_reset_from_a_foreign_address_is_not_accepted(plain: Talk) -> None:
    """The ports are right, but the address belongs to no subflow."""
    initial = plain.connection.initial
    (_, port), remote = initial.flow
    foreign = IP(src=second_ip(plain.lab), dst=remote.ip)
    plain.peer.send(foreign / TCP(sport=port, dport=remote.port, flags="R", seq=initial.snd_nxt))
    assert_alive(plain)


# --- malformed options


def test_many_malformed_options_change_nothing(plain: Talk) -> None:
    randomly = random.Random(8684)
    counters = Counters(plain.lab.server)
    sent = 0
    while sent < 200:
        body = bytes([randomly.randrange(256)]) + randomly.randbytes(randomly.randrange(30))
        option = MPTCPOption(bytes([MPTCP_KIND, len(body) + 2]) + body)
        if isinstance(option, MPTCPUnknown):
            plain.connection.initial.ack(option)
            sent += 1
    assert_alive(plain)
    assert counters.changed() == {}


def break_length(option: MPTCPOption, length: int) -> MPTCPOption:
    option.length = length
    return option


@pytest.mark.parametrize(
    "malformed",
    [
        lambda: MPTCPUnknown(octets=bytes([MPTCP_KIND, 0])),
        lambda: MPTCPUnknown(octets=bytes([MPTCP_KIND, 1])),
        lambda: MPTCPUnknown(octets=bytes([MPTCP_KIND, 255, 0x50])),
        lambda: break_length(AddAddr(address="203.0.113.1", hmac=1), 40),
        lambda: break_length(MPCapableAck(data_length=1), 23),
    ],
    ids=["length 0", "length 1", "length 255", "ADD_ADDR past the end", "MP_CAPABLE of 23"],
)
def test_impossible_lengths_change_nothing(
    plain: Talk, malformed: Callable[[], MPTCPOption]
) -> None:
    counters = Counters(plain.lab.server)
    plain.connection.initial.ack(malformed())
    assert_alive(plain)
    assert counters.changed() == {}


def test_a_listener_works_after_malformed_syns(lab: Lab) -> None:
    """Garbled SYNs, then a good connection."""
    randomly = random.Random(1)
    client_ip, server_ip = lab.paths[0].client_ip, lab.paths[0].server_ip
    with listen(lab.server, "0.0.0.0") as listener, Peer(lab.client.name) as peer:
        port = listener.getsockname()[1]
        for number in range(50):
            subflow = peer.subflow(SockAddr(client_ip, 50000 + number), SockAddr(server_ip, port))
            subflow.syn(MPTCPUnknown(octets=bytes([MPTCP_KIND, 12]) + randomly.randbytes(10)))
            subflow.expect()
            subflow.reset()
    with talk(lab) as conversation:
        assert_alive(conversation)
        assert isinstance(conversation.accepted, socket.socket)
