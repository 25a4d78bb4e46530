# SPDX-License-Identifier: BSD-3-Clause
"""One MP_JOIN handshake under way, and what its end may mean.

The counters are those of net/mptcp/mib.h; the reasons of an MP_TCPRST those of RFC 8684, 3.6,
as the kernel uses them (net/mptcp/subflow.c).
"""

from dataclasses import dataclass, field

from mptcpd_ebpf.trace import words
from mptcpd_ebpf.trace.signals import Signal, Subtype

QUIET_NS = 200_000_000
"""A join that has not been refused so long after its handshake stands."""
COUNTED = {
    "MPJoinNoTokenFound": "unknown token: this host has no connection with it (any more)",
    "MPJoinAckHMacFailure": "wrong HMAC in the third packet: not the peer of this connection",
    "MPJoinSynAckHMacFailure": "wrong HMAC in the SYN/ACK: not the peer of this connection",
    "MismatchPortSynRx": "the SYN came to a port that was never announced",
    "MismatchPortAckRx": "the third packet came to a port that was never announced",
    "MPJoinRejected": "the connection was closing, its subflows had reached the limit, "
    "or the path manager did not want it",
}
"""Counters of refusals by this host, and what each means."""
_OF_SYN_ACK = "MPJoinSynAckHMacFailure"
_OF_OWN_JOINS = {_OF_SYN_ACK, "MPJoinAckHMacFailure"}
"""Those of them that count joins which this host began: Linux 6.18.15 takes the second."""
_OF_SYN = {"MPJoinNoTokenFound", "MismatchPortSynRx"}
"""Those that count joins refused before their third packet."""
NEVER_LEFT = {
    "MPJoinSynTxCreatSkErr": "no socket could be made",
    "MPJoinSynTxBindErr": "the local address could not be bound: it is gone, or the port is taken",
    "MPJoinSynTxConnectErr": "there is no route from the local address to the peer",
}
"""Counters of joins that never became a SYN, and what each means."""


@dataclass
class Attempt:
    """One MP_JOIN handshake under way."""

    syn: Signal
    token: int | None
    """The local token."""
    syns: int = 1
    syn_ack: Signal | None = None
    third: Signal | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def incoming(self) -> bool:
        return not self.syn.outgoing

    @property
    def backup(self) -> bool:
        option = self.syn.option(Subtype.MP_JOIN)
        return option is not None and option.backup


def fits(counter: str, attempt: Attempt) -> bool:
    """Whether a counter of refusals is one of joins in this direction and so far."""
    if not attempt.incoming:
        return counter in _OF_OWN_JOINS
    return counter != _OF_SYN_ACK and (counter in _OF_SYN) != bool(attempt.third)


def meaning(counter: str, attempt: Attempt) -> str:
    """What a counter that fits says of the join."""
    return COUNTED[counter if attempt.incoming else _OF_SYN_ACK]


def peers_reason(attempt: Attempt, code: int | None) -> str:
    """Why the peer sent the reset: it need not say."""
    where = "the third packet" if attempt.third else "the SYN"
    if code is not None and code != 0:
        words_of = {
            1: "it may be: it knows no such token, the HMAC was wrong, "
            "or the connection was ending there",
            2: "it lacks resources",
            3: "it may be: its limit of subflows, its policy, a wrong HMAC, "
            "the connection was ending there, or data waited there out of order "
            "(Linux 6.1 and 6.12)",
            5: "it holds the path for unacceptable",
            6: "it suspects a middlebox",
        }
        return f"the peer refused {where}: {words_of.get(code, 'no reason known')}"
    if attempt.third:
        candidates = ["a wrong HMAC", "the connection has ended there", "a middlebox"]
    else:
        candidates = ["nobody listens at that address", "a firewall", "its limit of subflows"]
    return f"the peer refused {where}; it may be: {', '.join(candidates)}"


def error_reason(error: int, attempt: Attempt) -> str:
    tries = f"{attempt.syns} SYN"
    return f"given up after {tries}: {words.error(error)}"


def silent(attempt: Attempt) -> list[str]:
    if attempt.incoming:
        return ["this host did not answer the SYN" if attempt.syn_ack is None else "ACK missing"]
    return [
        "it may be: the path loses everything, a firewall drops the SYN, "
        "or the peer has no way back to this address"
    ]
