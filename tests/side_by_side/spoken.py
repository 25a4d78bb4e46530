# SPDX-License-Identifier: BSD-3-Clause
"""MPTCP signalling on the wire, as text that can be compared between runs.

Ports, keys, tokens and times differ from run to run and are left out; so are repetitions:
retransmissions, the three packets of a join's handshake, the echo of an announcement.  Two
subflows over the same interface give two lines.
"""

from collections.abc import Container, Iterable, Iterator

from mptcpd_ebpf.lab.wire import (
    FIN,
    RST,
    AddAddr,
    Flow,
    MPJoinSyn,
    MPPrio,
    RemoveAddr,
    Segment,
)


def spoken(segments: Iterable[Segment], without: str, hidden: Container[int]) -> tuple[str, ...]:
    """Sorted; without the segments of the address `without` or a `hidden` port."""
    said: dict[tuple[str, Flow | None], None] = {}
    ended: set[Flow] = set()
    for segment in segments:
        if any(end.ip == without or end.port in hidden for end in segment.flow):
            continue
        for words, flow in _options(segment):
            if without not in words:
                said[words, flow] = None
        if segment.flags & (FIN | RST) and segment.flow not in ended:
            ended |= {segment.flow, segment.flow.reversed()}
            kind = "RST" if segment.flags & RST else "FIN"
            said[f"{kind} {_way(segment)} {segment.interface}", segment.flow] = None
    return tuple(sorted(words for words, _ in said))


def _options(segment: Segment) -> Iterator[tuple[str, Flow | None]]:
    """The text of each option, and its subflow if it concerns one."""
    way, interface = _way(segment), segment.interface
    for option in segment.mptcp:
        match option:
            case MPJoinSyn():
                backup = " backup" if option.backup else ""
                yield f"MP_JOIN {way} {interface} id {option.address_id}{backup}", segment.flow
            case AddAddr(echo=0):
                yield f"ADD_ADDR {way} id {option.address_id} {option.address}", None
            case RemoveAddr():
                ids = " ".join(map(str, option.address_ids))
                yield f"RM_ADDR {way} id {ids}", None
            case MPPrio():
                mark = "backup" if option.backup else "normal"
                yield f"MP_PRIO {way} {interface} {mark}", segment.flow


def _way(segment: Segment) -> str:
    return "out" if segment.outgoing else "in"
