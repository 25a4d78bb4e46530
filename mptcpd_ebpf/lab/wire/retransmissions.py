# SPDX-License-Identifier: BSD-3-Clause
"""Counts TCP retransmissions in a capture, independently of the kernel's counters.

A segment that begins below the highest sequence number sent on its flow is a retransmission.
A super-packet of segmentation offload counts as the segments it is split into, and SYN and FIN
count for the sequence number they take, so the result equals the kernel's
``tcp_sock.total_retrans`` (tcp_retransmit_skb, net/ipv4/tcp_output.c).

Pure acknowledgements, keep-alives and window probes take no sequence number and do not count.
"""

from collections import Counter
from collections.abc import Iterable

from mptcpd_ebpf.lab.wire.segment import SYN, Flow, Segment

_U32 = 1 << 32


def retransmissions(segments: Iterable[Segment]) -> Counter[Flow]:
    """Retransmitted segments by flow.

    `segments` are those that passed one interface in one direction, from the flow's SYN on; for
    a flow captured later the count begins with its first captured segment.
    """
    count: Counter[Flow] = Counter()
    highest: dict[Flow, int] = {}
    first_of: dict[Flow, int] = {}
    for segment in segments:
        flow, length = segment.flow, segment.sequence_length
        if not length:
            continue
        if segment.flags & SYN and first_of.get(flow) != segment.seq:
            # The first segment of the flow, or of a later one with the same ports.
            first_of[flow] = segment.seq
            highest[flow] = segment.seq
        known = highest.setdefault(flow, segment.seq)
        # Serial number arithmetic (RFC 1982): how far below the highest the segment begins.
        behind = _signed(known - segment.seq)
        if behind > 0:
            size = segment.segment_size or length
            count[flow] += -(-min(behind, length) // size)
        if behind < length:
            highest[flow] = (segment.seq + length) % _U32
    return count


def _signed(difference: int) -> int:
    return (difference + _U32 // 2) % _U32 - _U32 // 2
