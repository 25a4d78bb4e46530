# SPDX-License-Identifier: BSD-3-Clause
"""Holes at a receiver, computed from captured packets alone.

A model of both reassemblies: each subflow's bytes by TCP sequence number, then the
connection's by data sequence number (RFC 8684, 3.3).  While data waits out of order the
time is charged to the subflow whose data then fills the gap.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from mptcpd_ebpf.lab.wire.options import DSS
from mptcpd_ebpf.lab.wire.segment import SYN, Flow, Segment

_Range = tuple[int, int]


class _Assembly:
    """Ranges of a sequence space, in order up to `next`."""

    def __init__(self, start: int) -> None:
        self.next = start
        self.waiting: list[_Range] = []

    def add(self, start: int, end: int) -> None:
        self.waiting = sorted([*self.waiting, (start, end)])
        while self.waiting and self.waiting[0][0] <= self.next:
            self.next = max(self.next, self.waiting.pop(0)[1])


@dataclass
class _Subflow:
    bytes: _Assembly
    first: int
    """The sequence number of its SYN."""
    mappings: list[tuple[int, int, int]] = field(default_factory=list)
    """(subflow sequence number, data sequence number, length)."""

    def take(self, segment: Segment) -> list[_Range]:
        """The data sequence numbers that a segment brings into the subflow's order."""
        for option in segment.mptcp:
            if isinstance(option, DSS) and option.has_map and option.data_length:
                self.mappings.append((option.ssn, option.dsn, option.data_length))
        before = self.bytes.next
        start = (segment.seq - self.first) % 2**32
        self.bytes.add(start, start + segment.payload_length)
        found = []
        for ssn, dsn, length in self.mappings:
            low, high = max(before, ssn), min(self.bytes.next, ssn + length)
            if low < high:
                found.append((dsn + low - ssn, dsn + high - ssn))
        self.mappings = [each for each in self.mappings if each[0] + each[2] > self.bytes.next]
        return sorted(set(found))


def holes_us(segments: Iterable[Segment], until: int) -> dict[str, int]:
    """How long received data waited for each subflow, microseconds, by the local address.

    `segments` are a connection's from its first SYN on, `until` is a time in ns.
    """
    subflows: dict[Flow, _Subflow] = {}
    connection: _Assembly | None = None
    opened_at = 0
    charged: dict[str, int] = defaultdict(int)
    for segment in segments:
        if segment.outgoing or segment.at > until:
            continue
        if segment.flags & SYN:
            subflows[segment.flow] = _Subflow(_Assembly(1), segment.seq)
            continue
        if not segment.payload_length or segment.flow not in subflows:
            continue
        for start, end in subflows[segment.flow].take(segment):
            connection = connection or _Assembly(start)
            waited, before = bool(connection.waiting), connection.next
            connection.add(start, end)
            if waited and connection.next != before:
                charged[segment.flow.destination.ip] += (segment.at - opened_at) // 1000
            if connection.waiting and (not waited or connection.next != before):
                opened_at = segment.at
    return dict(charged)
