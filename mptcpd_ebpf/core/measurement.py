# SPDX-License-Identifier: BSD-3-Clause
"""What is measured of one subflow at one moment.

Every source fills the same record: the CO-RE probes, the ``iter/tcp`` iterator, bcc,
inet_diag.  A field that a source cannot see is None, never 0.  Counters are
cumulative since the subflow opened.  Names follow the kernel's ``struct tcp_sock``
(include/linux/tcp.h) and ``struct mptcp_subflow_context`` (net/mptcp/protocol.h)
where it has one.
"""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from mptcpd_ebpf.core.address import SockAddr


class Owner(Struct, frozen=True, kw_only=True):
    """The process that opened a connection; on a server, the listener's owner."""

    pid: int | None = None
    comm: str | None = None
    cgroup: int | None = None
    """cgroup v2 id: the inode number of its folder."""
    cgroup_path: str | None = None
    """Its path below the cgroup v2 root, ``/user.slice``; looked up only on request."""
    uid: int | None = None


class Measurement(Struct, frozen=True, kw_only=True):
    """One subflow, measured at `at`."""

    at: int
    """CLOCK_MONOTONIC, nanoseconds (``bpf_ktime_get_ns``)."""
    netns: int | None = None
    """Inode of the network namespace (``net->ns.inum``)."""
    token: int
    """The connection's local token, host order (RFC 8684, 3.2)."""
    local: SockAddr
    remote: SockAddr
    local_id: int | None = None
    remote_id: int | None = None
    subflow_id: int | None = None
    if_index: int | None = None
    cookie: int | None = None
    state: int | None = None
    """TCP state, ``include/net/tcp_states.h``: 1 established, 2 SYN sent …"""
    opened_at: int | None = None
    """CLOCK_MONOTONIC, nanoseconds, when the subflow was opened."""

    srtt_us: int | None = None
    """Smoothed RTT, microseconds (``tcp_sock.srtt_us >> 3``)."""
    min_rtt_us: int | None = None
    rtt_us: int | None = None
    """Newest raw sample, microseconds (``tcp_sock.rack.rtt_us``)."""
    rttvar_us: int | None = None
    rtt_histogram: list[int] | None = None
    """Raw samples counted by log2 of their microseconds; slot i holds [2^i, 2^(i+1))."""

    rcv_rtt_us: int | None = None
    """RTT as the receiver estimates it from arriving data (``rcv_rtt_est.rtt_us >> 3``)."""

    segments_out: int | None = None
    """Data segments sent, retransmissions included (``data_segs_out``)."""
    bytes_sent: int | None = None
    bytes_acked: int | None = None
    bytes_received: int | None = None
    """In order, at the level of TCP (``tcp_sock.bytes_received``)."""
    segments_in: int | None = None
    """Data segments received, repeated ones included (``data_segs_in``)."""
    out_of_order: int | None = None
    """Segments received out of the subflow's own order (``rcv_ooopack``)."""
    delivered: int | None = None
    """Segments delivered to the peer (``tcp_sock.delivered``)."""
    retransmits: int | None = None
    """Segments retransmitted (``total_retrans``)."""
    bytes_retrans: int | None = None
    lost: int | None = None
    """Segments marked lost (``tcp_sock.lost``)."""
    timeouts: int | None = None
    """Retransmission timeouts in a row right now (``icsk_retransmits``)."""
    reordering: int | None = None
    """Reordering events seen (``reord_seen``)."""
    cwnd: int | None = None
    in_flight: int | None = None
    """Segments sent and not yet acknowledged (``packets_out``)."""
    rto_us: int | None = None
    idle_us: int | None = None
    """Microseconds since the last segment came back on this subflow."""

    backup: bool | None = None
    """We asked the peer to treat it as backup (``request_bkup``)."""
    backup_by_peer: bool | None = None
    stale: bool | None = None
    initial: bool | None = None
    """Opened by MP_CAPABLE rather than MP_JOIN."""

    stalled_us: int | None = None
    """Time for which the connection could not send because of this subflow (see docs/probes.md)."""
    holes_us: int | None = None
    """Time received data waited for data of this subflow; holes that are closed
    (see docs/probes.md)."""
    connection_bytes_acked: int | None = None
    connection_reinjected: int | None = None
    """Bytes of the connection sent again on another subflow."""
    connection_bytes_received: int | None = None
    """Bytes received in the connection's order (``mptcp_sock.bytes_received``)."""
    connection_hole_us: int | None = None
    """For how long received data has been waiting behind the present hole; 0: none waits."""
    connection_window: int | None = None
    """Bytes the peer may still send (``rcv_wnd_sent - ack_seq``); 0: the receive buffer is full."""
    connection_queued: int | None = None
    """Memory that received data takes, in order and out of order, bytes (``sk_rmem_alloc``)."""
    connection_rcvbuf: int | None = None
    """Memory it may take, bytes (``sk_rcvbuf``)."""
    owner: Owner | None = None
    closed: bool = False
    """The subflow's final record."""


class AlarmKind(StrEnum):
    """Why a probe woke user space."""

    RTT = "rtt"
    LOSS = "loss"
    TIMEOUTS = "timeouts"
    NO_PROGRESS = "no-progress"
    STALL = "stall"
    HOLE = "hole"
    SILENCE = "silence"


Limit = Annotated[int, Meta(ge=0, le=2**32 - 1)]
"""The probes keep thresholds in 32 bits."""


class Thresholds(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When the probes raise an alarm; written to the kernel at run time.

    docs/probes.md describes each alarm.
    """

    rtt_factor_percent: Limit = 300
    """A raw sample above this share of the baseline (the subflow's own slow average); 0: no
    RTT alarm…"""
    rtt_floor_us: Limit = 20_000
    """…and at least this far above it, in microseconds, is one strike."""
    rtt_strikes: Limit = 2
    """Strikes in a row that raise the RTT alarm."""
    sibling_factor_percent: Limit = 400
    """A strike above this share of the best sibling's srtt raises it at once; 0: siblings are
    not looked at."""
    loss_window: Annotated[int, Meta(ge=3, le=64)] = 12
    """Data segments, sent and received, that the loss window spans; at most 64."""
    loss_min_segments: Limit = 32
    """Data segments that the subflow must have sent before loss is evidence of anything."""
    loss_percent: Annotated[int, Meta(ge=0, le=100)] = 25
    """Share of the window retransmitted, or while this end sends data received out of order,
    that raises the loss alarm
    (never fewer than three); 0: no loss alarm."""
    timeouts: Limit = 2
    """Retransmission timeouts in a row; 0: no such alarm."""
    no_progress_us: Limit = 100_000
    """Data is in flight and nothing has come back for at least this long; 0: no such alarm…"""
    no_progress_factor_percent: Limit = 300
    """…and for at least this share of srtt, plus four times its deviation, plus…"""
    delayed_ack_us: Limit = 40_000
    """…how long the peer may hold an acknowledgement back when several segments are in flight…"""
    lone_delayed_ack_us: Limit = 200_000
    """…or when only one is (TCP_DELACK_MAX)."""
    stall_us: Limit = 200_000
    """Stalled time within one second that the subflow caused; 0: no stall alarm."""
    hole_us: Limit = 200_000
    """Time within one second that received data waited for data of the subflow; 0: no hole
    alarm…"""
    hole_factor_percent: Limit = 300
    """…if it is also at least this much of the second, against the subflow's share of the data
    received in it; 0: whatever it carried."""
    silence_us: Limit = 150_000
    """A hole is open and nothing came on the subflow that holds it for at least this long; 0: no
    silence alarm…"""
    silence_factor_percent: Limit = 300
    """…and for at least this share of its RTT."""
    min_interval_us: Limit = 100_000
    """At most one alarm per subflow and this interval."""
