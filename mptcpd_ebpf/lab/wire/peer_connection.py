# SPDX-License-Identifier: BSD-3-Clause
"""One MPTCP connection of the scripted peer: keys, joins, data sequence numbers, options.

It follows RFC 8684: handshakes 3.1 and 3.2, mappings 3.3, closing 3.3.3, addresses 3.4, fast
close 3.5.  A script can replace every value by a wrong one; the defaults are right.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.lab.wire.capture import PATIENCE_S
from mptcpd_ebpf.lab.wire.keys import (
    ack_hmac,
    add_addr_hmac,
    dss_checksum,
    idsn_from_key,
    synack_hmac,
    token_from_key,
)
from mptcpd_ebpf.lab.wire.options import (
    DSS,
    AddAddr,
    MPCapableAck,
    MPCapableSyn,
    MPCapableSynAck,
    MPFastclose,
    MPJoinAck,
    MPJoinSyn,
    MPJoinSynAck,
    MPTCPOption,
    RemoveAddr,
)
from mptcpd_ebpf.lab.wire.peer_subflow import MOST_PAYLOAD, PeerSubflow
from mptcpd_ebpf.lab.wire.segment import ACK, SYN, Segment

T = TypeVar("T")

_U64 = 1 << 64
_U32 = 1 << 32


@dataclass
class Mapping:
    """A range of one subflow's bytes and its place in the data stream."""

    ssn: int
    dsn: int
    length: int
    """Bytes of data: a DATA_FIN in the mapping is not counted."""
    fin: int
    """1 if a DATA_FIN follows its last byte."""
    checksum: int | None
    data: bytearray = field(default_factory=bytearray)
    """What has arrived of it, in order from `ssn`."""

    @property
    def checksum_right(self) -> bool:
        expected = dss_checksum(self.dsn, self.ssn, bytes(self.data), self.length + self.fin)
        return self.checksum in (None, expected)


class SubflowHost(Protocol):
    """What a connection needs of the host it belongs to."""

    def subflow(self, local: SockAddr, remote: SockAddr) -> PeerSubflow: ...

    def next_syn(
        self, what: type[MPTCPOption], *, port: int | None = ..., within: float = ...
    ) -> Segment: ...

    def wait(self, done: Callable[[], T | None], what: str, within: float = ...) -> T: ...


class PeerConnection:
    """A connection with the kernel under test; `client`: the peer opened it."""

    def __init__(self, peer: SubflowHost, initial: PeerSubflow, key: int, *, client: bool) -> None:
        self.peer = peer
        self.initial = initial
        self.client = client
        self.key = key
        self.remote_key = 0
        self._deny_join_id0 = False
        self.checksum = False
        """DSS checksums were agreed on."""
        self.snd_nxt = (idsn_from_key(key) + 1) % _U64
        """Data sequence number of the next byte sent."""
        self.rcv_nxt = 0
        """The next data sequence number expected: what `data_ack` acknowledges."""
        self.acked = self.snd_nxt
        """The kernel acknowledged everything below."""
        self.received = bytearray()
        """The data stream so far, in order."""
        self.unmapped = bytearray()
        """Data that arrived without a mapping; after a fallback to TCP, all data."""
        self.closed_by_kernel = False
        """A DATA_FIN arrived."""
        self.checksum_errors = 0
        self._ahead: dict[int, bytes] = {}
        self._mappings: dict[PeerSubflow, list[Mapping]] = {}
        self._fin_at: int | None = None
        initial.connection = self

    @property
    def token(self) -> int:
        """The peer's token of the connection; the kernel's joins carry it."""
        return token_from_key(self.key)

    @property
    def remote_token(self) -> int:
        """The kernel's token of the connection, as its tools and netlink events show it."""
        return token_from_key(self.remote_key)

    # --- handshakes

    def open(self, *, checksum: bool, deny_join_id0: bool, within: float) -> None:
        """The client's three packets of MP_CAPABLE."""
        initial, self._deny_join_id0 = self.initial, deny_join_id0
        initial.syn(MPCapableSyn(checksum_required=checksum, deny_join_id0=deny_join_id0))
        answer = _option(
            initial.expect(MPCapableSynAck, flags=SYN | ACK, within=within), MPCapableSynAck
        )
        self._agree(answer.sender_key, checksum or bool(answer.checksum_required))
        initial.ack(self._capable_ack())

    def answer(self, syn: Segment, *, checksum: bool, within: float) -> None:
        """The server's side: sends the SYN/ACK and reads the keys from the third packet."""
        initial = self.initial
        initial.receive(syn)
        asked = bool(_option(syn, MPCapableSyn).checksum_required)
        initial.syn_ack(MPCapableSynAck(sender_key=self.key, checksum_required=checksum))
        third = _option(initial.expect(MPCapableAck, within=within), MPCapableAck)
        if not self.remote_key:
            self._agree(third.sender_key, checksum or asked)

    def join(
        self,
        local_ip: str,
        address_id: int,
        remote: SockAddr | None = None,
        *,
        backup: bool = False,
        token: int | None = None,
        hmac: bytes | None = None,
        within: float = PATIENCE_S,
    ) -> PeerSubflow:
        """Adds a subflow: SYN, SYN/ACK, ACK, and the fourth packet that confirms it.

        If the kernel refuses, the subflow's `reset_by` is set.  `remote` defaults to the
        initial subflow's.
        """
        local = SockAddr(local_ip, 49152 + secrets.randbelow(16384))
        subflow = self.peer.subflow(local, remote or self.initial.flow.destination)
        nonce = secrets.randbits(32)
        token = self.remote_token if token is None else token
        subflow.syn(MPJoinSyn(address_id=address_id, backup=backup, token=token, nonce=nonce))

        def answered() -> bool:
            return bool(subflow.segments)

        self.peer.wait(answered, "an answer to MP_JOIN", within)
        if subflow.reset_by:
            return subflow
        theirs = _option(subflow.expect(MPJoinSynAck), MPJoinSynAck)
        if theirs.hmac != synack_hmac(self.remote_key, self.key, theirs.nonce, nonce):
            raise AssertionError("the HMAC of the MP_JOIN SYN/ACK is wrong")
        if hmac is None:
            hmac = ack_hmac(self.key, self.remote_key, nonce, theirs.nonce)
        subflow.connection = self
        subflow.ack(MPJoinAck(hmac=hmac))
        self.peer.wait(lambda: len(subflow.segments) > 1, "an answer to the MP_JOIN ACK", within)
        return subflow

    def accept_join(
        self,
        address_id: int = 0,
        *,
        backup: bool = False,
        hmac: int | None = None,
        within: float = PATIENCE_S,
    ) -> PeerSubflow:
        """Answers the kernel's next MP_JOIN, checks its HMAC and sends the fourth packet.

        `address_id` is that of the peer's address; the kernel's is in the subflow's first
        segment.  With a wrong `hmac` the kernel resets the subflow: see `reset_by`.
        """
        syn = self.peer.next_syn(MPJoinSyn, within=within)
        asked = _option(syn, MPJoinSyn)
        if asked.token != self.token:
            raise AssertionError(f"a join for token {asked.token:#x}, not {self.token:#x}")
        subflow = self.peer.subflow(*syn.flow.reversed())
        subflow.receive(syn)
        nonce = secrets.randbits(32)
        if hmac is None:
            hmac = synack_hmac(self.key, self.remote_key, nonce, asked.nonce)
        subflow.syn_ack(MPJoinSynAck(address_id=address_id, backup=backup, hmac=hmac, nonce=nonce))
        self.peer.wait(
            lambda: len(subflow.segments) > 1, "an answer to the MP_JOIN SYN/ACK", within
        )
        if subflow.reset_by:
            return subflow
        theirs = _option(subflow.expect(MPJoinAck), MPJoinAck)
        if theirs.hmac != ack_hmac(self.remote_key, self.key, asked.nonce, nonce):
            raise AssertionError("the HMAC of the MP_JOIN ACK is wrong")
        subflow.connection = self
        subflow.ack(self.data_ack())
        return subflow

    # --- signals

    def announce(
        self, ip: str, address_id: int, port: int | None = None, *, hmac: int | None = None
    ) -> None:
        """ADD_ADDR on the initial subflow; the kernel echoes it if the HMAC is right."""
        if hmac is None:
            hmac = add_addr_hmac(self.key, self.remote_key, address_id, ip, port or 0)
        self.initial.ack(AddAddr(address_id=address_id, address=ip, port=port, hmac=hmac))

    def remove(self, *address_ids: int) -> None:
        """REMOVE_ADDR on the initial subflow."""
        self.initial.ack(RemoveAddr(address_ids=list(address_ids)))

    def fastclose(self, key: int | None = None) -> None:
        """MP_FASTCLOSE on the initial subflow, with the kernel's key unless one is given."""
        self.initial.ack(MPFastclose(receiver_key=self.remote_key if key is None else key))

    def close(self) -> None:
        """DATA_FIN on the initial subflow: the peer sends no more data (RFC 8684, 3.3.3)."""
        checksum = dss_checksum(self.snd_nxt, 0, b"", 1) if self.checksum else None
        option = DSS(
            data_fin=1, data_ack=self.rcv_nxt, dsn=self.snd_nxt, data_length=1, checksum=checksum
        )
        self.initial.ack(option)
        self.snd_nxt = (self.snd_nxt + 1) % _U64

    # --- data

    def data_ack(self) -> DSS:
        return DSS(data_ack=self.rcv_nxt)

    def send(
        self, data: bytes, on: PeerSubflow | None = None, *, spoil_checksum: bool = False
    ) -> None:
        """Sends data with its mapping, on the initial subflow unless one is given.

        The client's first data carries MP_CAPABLE instead of DSS (RFC 8684, 3.1).  There is
        no retransmission and no check of the window: send some kilobytes at a time.
        """
        subflow = on or self.initial
        for start in range(0, len(data), MOST_PAYLOAD):
            piece = data[start : start + MOST_PAYLOAD]
            checksum = None
            if self.checksum:
                checksum = dss_checksum(self.snd_nxt, subflow.next_ssn, piece) ^ spoil_checksum
            subflow.data(piece, self._mapping(subflow, len(piece), checksum))
            self.snd_nxt = (self.snd_nxt + len(piece)) % _U64

    def receive_data(self, count: int, within: float = PATIENCE_S) -> bytes:
        """Waits for `count` bytes of the data stream; returns all that arrived."""
        self.peer.wait(lambda: len(self.received) >= count, f"{count} bytes of data", within)
        return bytes(self.received)

    def wait_acked(self, within: float = PATIENCE_S) -> None:
        """Waits until the kernel has acknowledged everything sent, at the MPTCP level."""
        self.peer.wait(lambda: self.acked == self.snd_nxt, "DATA_ACK of everything sent", within)

    # --- receiving

    def receive(
        self, subflow: PeerSubflow, options: list[MPTCPOption], ssn: int, payload: bytes
    ) -> bool:
        """Processes a segment's options and in-order data; whether an acknowledgement is due."""
        must_acknowledge = False
        for option in options:
            if isinstance(option, DSS):
                must_acknowledge |= self._take_dss(subflow, option)
            elif isinstance(option, MPCapableAck):
                if not self.remote_key:
                    self._agree(option.sender_key, bool(option.checksum_required) or self.checksum)
                if option.data_length is not None:
                    first = (idsn_from_key(self.remote_key) + 1) % _U64
                    self._map(subflow, Mapping(1, first, option.data_length, 0, option.checksum))
        self._take_data(subflow, ssn, payload)
        if self._fin_at == self.rcv_nxt:
            self._fin_at = None
            self.rcv_nxt = (self.rcv_nxt + 1) % _U64
            self.closed_by_kernel = True
        return must_acknowledge

    def _take_dss(self, subflow: PeerSubflow, dss: DSS) -> bool:
        if dss.has_ack:
            acked = dss.data_ack if dss.data_ack8 else _widen(dss.data_ack, self.snd_nxt)
            if (acked - self.acked) % _U64 < _U64 // 2:
                self.acked = acked
        if not dss.has_map:
            return False
        dsn = dss.dsn if dss.dsn8 else _widen(dss.dsn, self.rcv_nxt)
        if dss.ssn:
            length = dss.data_length - dss.data_fin
            self._map(subflow, Mapping(dss.ssn, dsn, length, dss.data_fin, dss.checksum))
        if dss.data_fin:
            fin_at = (dsn + dss.data_length - 1) % _U64
            if (fin_at - self.rcv_nxt) % _U64 < _U64 // 2:
                self._fin_at = fin_at
        return bool(dss.data_fin)

    def _map(self, subflow: PeerSubflow, mapping: Mapping) -> None:
        # Each offloaded segment of a mapping repeats the mapping.
        mappings = self._mappings.setdefault(subflow, [])
        if not any(known.ssn == mapping.ssn for known in mappings):
            mappings.append(mapping)

    def _take_data(self, subflow: PeerSubflow, ssn: int, payload: bytes) -> None:
        while payload:
            mapping = next(
                (
                    known
                    for known in self._mappings.get(subflow, [])
                    if (ssn - known.ssn) % _U32 < known.length
                ),
                None,
            )
            if mapping is None:
                self.unmapped += payload
                return
            offset = (ssn - mapping.ssn) % _U32
            piece = payload[: mapping.length - offset]
            mapping.data += piece
            if len(mapping.data) == mapping.length and not mapping.checksum_right:
                self.checksum_errors += 1
            self._ahead[(mapping.dsn + offset) % _U64] = piece
            ssn, payload = (ssn + len(piece)) % _U32, payload[len(piece) :]
        while self.rcv_nxt in self._ahead:
            piece = self._ahead.pop(self.rcv_nxt)
            self.received += piece
            self.rcv_nxt = (self.rcv_nxt + len(piece)) % _U64

    def _mapping(self, subflow: PeerSubflow, length: int, checksum: int | None) -> MPTCPOption:
        if self.client and subflow is self.initial and subflow.next_ssn == 1:
            return self._capable_ack(length, checksum)
        return DSS(
            data_ack=self.rcv_nxt,
            dsn=self.snd_nxt,
            ssn=subflow.next_ssn,
            data_length=length,
            checksum=checksum,
        )

    def _capable_ack(self, length: int | None = None, checksum: int | None = None) -> MPCapableAck:
        return MPCapableAck(
            checksum_required=self.checksum,
            # The kernel takes the C flag from here, not from the SYN (subflow_syn_recv_sock).
            deny_join_id0=self._deny_join_id0,
            sender_key=self.key,
            receiver_key=self.remote_key,
            data_length=length,
            checksum=checksum,
        )

    def _agree(self, remote_key: int, checksum: bool) -> None:
        self.remote_key = remote_key
        self.checksum = checksum
        self.rcv_nxt = (idsn_from_key(remote_key) + 1) % _U64


def _option(segment: Segment, form: type[MPTCPOption]) -> MPTCPOption:
    return next(option for option in segment.mptcp if isinstance(option, form))


def _widen(low: int, near: int) -> int:
    """The 64-bit number nearest to `near` that has these low 32 bits."""
    return (near + (low - near + _U32 // 2) % _U32 - _U32 // 2) % _U64
