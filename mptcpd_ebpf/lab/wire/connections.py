# SPDX-License-Identifier: BSD-3-Clause
"""Assigns subflows to connections by the handshakes in a capture.

MP_CAPABLE carries the keys, from which the tokens are derived; MP_JOIN carries the token of
the connection it joins (RFC 8684, 3.1 and 3.2).  A connection has two tokens, one per side,
and can be looked up by both.  If its first handshake was not captured, only its joined
subflows are known, by the token of the side that received the MP_JOIN.
"""

from collections.abc import Iterable

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.lab.wire.keys import token_from_key
from mptcpd_ebpf.lab.wire.options import MPCapableAck, MPCapableSyn, MPCapableSynAck, MPJoinSyn
from mptcpd_ebpf.lab.wire.segment import Flow, Segment


class ConnectionTokens:
    """The connection tokens of every captured subflow."""

    def __init__(self) -> None:
        # All subflows of a connection share one set of tokens.
        self._by_subflow: dict[frozenset[SockAddr], set[int]] = {}
        self._by_token: dict[int, set[int]] = {}

    def learn(self, segment: Segment) -> None:
        """Learns from one segment; segments come in the order of capture."""
        for option in segment.mptcp:
            if isinstance(option, MPCapableSyn):
                # Addresses and ports are used again: this is another connection.
                self._by_subflow.pop(frozenset(segment.flow), None)
            elif isinstance(option, MPCapableSynAck):
                self._add(segment.flow, [token_from_key(option.sender_key)])
            elif isinstance(option, MPCapableAck):
                self._add(
                    segment.flow,
                    [token_from_key(option.sender_key), token_from_key(option.receiver_key)],
                )
            elif isinstance(option, MPJoinSyn):
                connection = self._by_token.setdefault(option.token, {option.token})
                self._by_subflow[frozenset(segment.flow)] = connection

    def tokens(self, flow: Flow) -> frozenset[int]:
        """Both tokens, as far as known, of the connection that `flow` belongs to."""
        return frozenset(self._by_subflow.get(frozenset(flow), ()))

    def knows(self, token: int) -> bool:
        return token in self._by_token

    def _add(self, flow: Flow, tokens: Iterable[int]) -> None:
        connection = self._by_subflow.setdefault(frozenset(flow), set())
        for token in tokens:
            connection.add(token)
            self._by_token[token] = connection
