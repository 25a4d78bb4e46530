# SPDX-License-Identifier: BSD-3-Clause
"""One MP_JOIN handshake, and the possible causes of its end.

The counters are defined in net/mptcp/mib.h, the reasons of MP_TCPRST in RFC 8684, 3.6;
net/mptcp/subflow.c shows how the kernel uses both.
"""

from dataclasses import dataclass, field

from mptcpd_ebpf.trace import words
from mptcpd_ebpf.trace.signals import Signal, Subtype

QUIET_NS = 200_000_000
"""A join that has not been refused this long after its handshake is established."""
COUNTED = {
    "MPJoinNoTokenFound": "unknown token: this host has no connection with this token, or no "
    "longer",
    "MPJoinAckHMacFailure": "wrong HMAC in the third packet: not the peer of this connection",
    "MPJoinSynAckHMacFailure": "wrong HMAC in the SYN/ACK: not the peer of this connection",
    "MismatchPortSynRx": "the SYN was sent to a port that was never announced",
    "MismatchPortAckRx": "the third packet was sent to a port that was never announced",
    "MPJoinRejected": "the connection was closing, its subflows had reached the limit, "
    "or the path manager refused it",
}
"""Counters of refusals by this host, and the cause that each stands for."""
_OF_SYN_ACK = "MPJoinSynAckHMacFailure"
_OF_OWN_JOINS = {_OF_SYN_ACK, "MPJoinAckHMacFailure"}
"""Those that count joins of this host: Linux 6.18.15 increments the second for them."""
_OF_SYN = {"MPJoinNoTokenFound", "MismatchPortSynRx"}
"""Those that count joins refused before their third packet."""
NEVER_SENT = {
    "MPJoinSynTxCreatSkErr": "no socket could be created",
    "MPJoinSynTxBindErr": "the local address could not be bound: it is gone, or the port is in use",
    "MPJoinSynTxConnectErr": "there is no route from the local address to the peer",
}
"""Counters of joins that failed before their SYN was sent, and the cause of each."""


@dataclass
class Attempt:
    """One MP_JOIN handshake in progress."""

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
    """Whether a counter of refusals counts joins in this direction and at this stage."""
    if not attempt.incoming:
        return counter in _OF_OWN_JOINS
    return counter != _OF_SYN_ACK and (counter in _OF_SYN) != bool(attempt.third)


def meaning(counter: str, attempt: Attempt) -> str:
    """The cause of a refusal that a fitting counter stands for."""
    return COUNTED[counter if attempt.incoming else _OF_SYN_ACK]


def peers_reason(attempt: Attempt, code: int | None) -> str:
    """Why the peer may have sent the reset; `code` is the reason of its MP_TCPRST, if any."""
    where = "the third packet" if attempt.third else "the SYN"
    if code is not None and code != 0:
        words_of = {
            1: "possible causes: unknown token, a wrong HMAC, or it was closing the connection",
            2: "it lacks resources",
            3: "possible causes: its limit of subflows, its policy, a wrong HMAC, "
            "it was closing the connection, or data waited there out of order "
            "(Linux 6.1 and 6.12)",
            5: "it rates the path as unacceptable",
            6: "it suspects a middlebox",
        }
        return f"the peer refused {where}: {words_of.get(code, 'the reason is unknown')}"
    if attempt.third:
        candidates = ["a wrong HMAC", "it has closed the connection", "a middlebox"]
    else:
        candidates = ["nothing listens on that address", "a firewall", "its limit of subflows"]
    return f"the peer refused {where}; possible causes: {', '.join(candidates)}"


def error_reason(error: int, attempt: Attempt) -> str:
    """The socket's error as the cause of a failed join."""
    return f"given up after {attempt.syns} SYN: {words.error(error)}"


def unanswered_causes(attempt: Attempt) -> list[str]:
    """The possible causes of a handshake that did not complete."""
    if attempt.incoming:
        return ["this host did not answer the SYN" if attempt.syn_ack is None else "ACK missing"]
    return [
        "possible causes: the path loses all packets, a firewall drops the SYN, "
        "or the peer has no route back to this address"
    ]
