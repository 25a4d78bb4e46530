# SPDX-License-Identifier: BSD-3-Clause
"""Counts TCP retransmissions as the wire shows them, independent of what the kernel says.

A segment that begins below the highest sequence number its flow has sent is a
retransmission.  Super-packets of segmentation offload count as the segments they become,
SYN and FIN as the sequence number they take, so the figure is the one the kernel keeps
in ``tcp_sock.total_retrans`` (tcp_retransmit_skb, net/ipv4/tcp_output.c).

Pure acknowledgements, keep-alives and window probes take no sequence number: not counted.
"""

from collections import Counter
from collections.abc import Iterable

from mptcpd_ebpf.lab.wire.segment import SYN, Flow, Segment

_U32 = 1 << 32


def retransmissions(segments: Iterable[Segment]) -> Counter[Flow]:
    """Retransmitted segments by flow.

    The segments are those one interface saw pass in one direction, from the flow's SYN
    on: a capture that begins later counts from the first segment it has.
    """
    count: Counter[Flow] = Counter()
    highest: dict[Flow, int] = {}
    first_of: dict[Flow, int] = {}
    for segment in segments:
        flow, length = segment.flow, segment.sequence_length
        if not length:
            continue
        if segment.flags & SYN and first_of.get(flow) != segment.seq:
            # The first segment of the flow, or of another that uses its ports again.
            first_of[flow] = segment.seq
            highest[flow] = segment.seq
        known = highest.setdefault(flow, segment.seq)
        # Serial number arithmetic (RFC 1982): how far below the highest this begins.
        behind = _signed(known - segment.seq)
        if behind > 0:
            size = segment.segment_size or length
            count[flow] += -(-min(behind, length) // size)
        if behind < length:
            highest[flow] = (segment.seq + length) % _U32
    return count


def _signed(difference: int) -> int:
    return (difference + _U32 // 2) % _U32 - _U32 // 2
