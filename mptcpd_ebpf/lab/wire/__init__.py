# SPDX-License-Identifier: BSD-3-Clause
"""MPTCP packets: a scapy layer for the options, captures with assertions, a scripted peer.

docs/lab-wire.md is the guide.  Importing this package imports scapy (0.3 s).
"""

from mptcpd_ebpf.lab.wire.capture import WHOLE, Capture
from mptcpd_ebpf.lab.wire.options import (
    DSS,
    AddAddr,
    MPCapableAck,
    MPCapableSyn,
    MPCapableSynAck,
    MPFail,
    MPFastclose,
    MPJoinAck,
    MPJoinSyn,
    MPJoinSynAck,
    MPPrio,
    MPTCPOption,
    MPTcpRst,
    MPTCPUnknown,
    RemoveAddr,
)
from mptcpd_ebpf.lab.wire.peer import Peer
from mptcpd_ebpf.lab.wire.peer_connection import PeerConnection
from mptcpd_ebpf.lab.wire.peer_subflow import PeerSubflow
from mptcpd_ebpf.lab.wire.segment import ACK, FIN, PSH, RST, SYN, Flow, Segment
from mptcpd_ebpf.lab.wire.tcp import mptcp_options
from mptcpd_ebpf.lab.wire.wire import Wire

__all__ = [
    "ACK",
    "DSS",
    "FIN",
    "PSH",
    "RST",
    "SYN",
    "WHOLE",
    "AddAddr",
    "Capture",
    "Flow",
    "MPCapableAck",
    "MPCapableSyn",
    "MPCapableSynAck",
    "MPFail",
    "MPFastclose",
    "MPJoinAck",
    "MPJoinSyn",
    "MPJoinSynAck",
    "MPPrio",
    "MPTCPOption",
    "MPTCPUnknown",
    "MPTcpRst",
    "Peer",
    "PeerConnection",
    "PeerSubflow",
    "RemoveAddr",
    "Segment",
    "Wire",
    "mptcp_options",
]
