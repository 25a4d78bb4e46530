# SPDX-License-Identifier: BSD-3-Clause
"""The peer's data stream without a network: mappings, checksums, DATA_FIN, 32-bit numbers."""

from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.lab.wire.keys import dss_checksum, idsn_from_key
from mptcpd_ebpf.lab.wire.options import DSS, MPCapableAck, MPTCPOption
from mptcpd_ebpf.lab.wire.peer import Peer
from mptcpd_ebpf.lab.wire.peer_connection import PeerConnection
from mptcpd_ebpf.lab.wire.peer_subflow import PeerSubflow
from mptcpd_ebpf.lab.wire.segment import Flow

U32 = 1 << 32
NO_HOST = cast(Peer, None)
"""The host of subflows that never send."""
OWN_KEY = 1
keys = st.integers(1, 2**64 - 1)


def subflow(number: int) -> PeerSubflow:
    flow = Flow(SockAddr("192.0.2.1", 1000 + number), SockAddr("192.0.2.2", 80))
    return PeerSubflow(NO_HOST, flow)


def established(remote_key: int) -> PeerConnection:
    connection = PeerConnection(NO_HOST, subflow(0), OWN_KEY, client=False)
    receive(connection, connection.initial, 1, b"", MPCapableAck(sender_key=remote_key))
    return connection


def receive(
    connection: PeerConnection,
    on: PeerSubflow,
    ssn: int,
    payload: bytes,
    option: DSS | MPCapableAck,
) -> bool:
    """Passes options to a connection as if received: built, and dissected again."""
    return connection.receive(on, [MPTCPOption(bytes(option))], ssn, payload)


@given(
    keys, st.lists(st.tuples(st.integers(0, 1), st.booleans(), st.binary(min_size=1)), max_size=9)
)
def test_the_stream_is_reassembled_from_two_subflows(
    key: int, pieces: list[tuple[int, bool, bytes]]
) -> None:
    connection = established(key)
    subflows = [connection.initial, subflow(1)]
    next_ssn = [1, 1]
    dsn = idsn_from_key(key) + 1
    stream = b""
    for which, wide, piece in pieces:
        ssn = next_ssn[which]
        option = DSS(
            dsn=dsn % (2**64 if wide else U32),
            dsn8=wide,
            ssn=ssn,
            data_length=len(piece),
            checksum=dss_checksum(dsn, ssn, piece),
        )
        # A mapping may span several segments, and each repeats it.
        cut = len(piece) // 2
        for start, part in ((0, piece[:cut]), (cut, piece[cut:])):
            receive(connection, subflows[which], ssn + start, part, option)
        stream += piece
        dsn += len(piece)
        next_ssn[which] += len(piece)
    assert connection.received == stream
    assert connection.rcv_nxt == dsn % 2**64
    assert connection.checksum_errors == 0
    assert not connection.unmapped


@given(keys, st.binary(max_size=20), st.booleans())
def test_a_data_fin_is_counted_once_and_checked(key: int, data: bytes, right: bool) -> None:
    connection = established(key)
    dsn = (idsn_from_key(key) + 1) % 2**64
    ssn = 1 if data else 0
    checksum = dss_checksum(dsn, ssn, data, len(data) + 1) ^ (not right)
    fin = DSS(data_fin=1, dsn=dsn, ssn=ssn, data_length=len(data) + 1, checksum=checksum)
    assert receive(connection, connection.initial, 1, data, fin)
    assert connection.closed_by_kernel
    assert connection.received == data
    assert connection.rcv_nxt == (dsn + len(data) + 1) % 2**64
    assert connection.checksum_errors == (bool(data) and not right)
    # Retransmitted, it is acknowledged again and changes nothing.
    assert receive(connection, connection.initial, 1, b"", fin)
    assert connection.rcv_nxt == (dsn + len(data) + 1) % 2**64


@given(st.integers(0, 2**33), st.booleans())
def test_short_acknowledgements_are_widened(far: int, wide: bool) -> None:
    """Also when 32 bits of the data sequence number have wrapped since the beginning."""
    connection = established(2)
    connection.snd_nxt = (connection.snd_nxt + far) % 2**64
    connection.acked = (connection.snd_nxt - 100) % 2**64
    acknowledged = (connection.snd_nxt - 40) % 2**64
    option = DSS(data_ack=acknowledged if wide else acknowledged % U32, data_ack8=wide)
    assert not receive(connection, connection.initial, 1, b"", option)
    assert connection.acked == acknowledged
    # An older acknowledgement changes nothing.
    receive(connection, connection.initial, 1, b"", DSS(data_ack=(acknowledged - 9) % 2**64))
    assert connection.acked == acknowledged
