# SPDX-License-Identifier: BSD-3-Clause
"""Live connections and subflows without BPF: the kernel's socket diagnosis (inet_diag).

Two dumps a family: the MPTCP sockets, whose mptcp_info carries the token, and the TCP
sockets, whose ULP information holds the token of a subflow's connection.  The second
walks *all* TCP sockets of the namespace, because the kernel cannot filter by ULP; the
probes' iterator is the better source where BPF is allowed.

Layouts are those of include/uapi/linux/inet_diag.h, tcp.h (struct tcp_info) and
mptcp.h (struct mptcp_info); the info structures grew over the years and are read as
far as the kernel filled them.  ULP information needs CAP_NET_ADMIN.

What cannot be learned here: addresses the peer announced, whether it denied joins to
its first address, cumulative losses, reinjections, stalls.
"""

import socket
import struct
import time
from typing import NamedTuple

from mptcpd_ebpf.core.address import SockAddr, is_ipv6, unmapped
from mptcpd_ebpf.core.events import LiveConnection
from mptcpd_ebpf.core.measurement import Measurement, Owner
from mptcpd_ebpf.kernel.errors import NetlinkRefused, errno_words
from mptcpd_ebpf.kernel.netlink import Request, attributes, number, u32
from mptcpd_ebpf.kernel.owners import owners
from mptcpd_ebpf.kernel.transport import NETLINK_SOCK_DIAG, Requester
from mptcpd_ebpf.runtime import netns

_SOCK_DIAG_BY_FAMILY = 20
_REQUEST = struct.Struct("=BBBxI48x")
"""inet_diag_req_v2: family, protocol, extensions, states, socket id."""
_REQ_PROTOCOL = 3
_PROTOCOL_FROM_ATTRIBUTE = 255  # IPPROTO_RAW: the field is too narrow for 262
_IPPROTO_MPTCP = 262

_SOCKET = struct.Struct("=BBxx2s2s16s16sIQ3I2I")
"""inet_diag_msg: family, state; ports, addresses, interface, cookie; 3 queues; uid, inode."""
_INET_DIAG_INFO = 2
_INET_DIAG_CGROUP_ID = 21
_INET_DIAG_ULP_INFO = 19
_INET_ULP_INFO_MPTCP = 3

# MPTCP_SUBFLOW_ATTR_* and MPTCP_SUBFLOW_FLAG_*
_TOKEN_LOC = 2
_FLAGS = 8
_ID_REM = 9
_ID_LOC = 10
_MCAP_LOC = 1 << 1
_JOIN = 1 << 2 | 1 << 3
_BKUP_REM = 1 << 4
_BKUP_LOC = 1 << 5

_MPTCP_FLAGS_AND_TOKEN = struct.Struct("=8xII")
"""The start of mptcp_info: six counts in bytes, flags, token."""
_MPTCP_BYTES_RECEIVED = struct.Struct("=64xQ")
"""Of mptcp_info, from Linux 6.5."""
_FALLBACK = 1

_TCP_ESTABLISHED = 1
_TCP_SYN_SENT = 2
_TCP_SYN_RECV = 3
_TCP_TIME_WAIT = 6
_TCP_CLOSE = 7
_TCP_LISTEN = 10
_TCP_NEW_SYN_RECV = 12
_LIVE = 0xFFF & ~sum(
    1 << state
    for state in (
        _TCP_SYN_SENT,
        _TCP_SYN_RECV,
        _TCP_TIME_WAIT,
        _TCP_CLOSE,
        _TCP_LISTEN,
    )
)
_SUBFLOWS = _LIVE | 1 << _TCP_SYN_SENT | 1 << _TCP_SYN_RECV

_UNSET_MIN_RTT = 0xFFFFFFFF


class _Field(NamedTuple):
    """One field of struct tcp_info."""

    offset: int
    form: str


_TCP_INFO = {
    "retransmits": _Field(2, "=B"),
    "rto": _Field(8, "=I"),
    "unacked": _Field(24, "=I"),
    "last_data_recv": _Field(52, "=I"),
    "last_ack_recv": _Field(56, "=I"),
    "rtt": _Field(68, "=I"),
    "rcv_rtt": _Field(92, "=I"),
    "rttvar": _Field(72, "=I"),
    "snd_cwnd": _Field(80, "=I"),
    "total_retrans": _Field(100, "=I"),
    "bytes_acked": _Field(120, "=Q"),
    "bytes_received": _Field(128, "=Q"),
    "min_rtt": _Field(148, "=I"),
    "data_segs_in": _Field(152, "=I"),
    "data_segs_out": _Field(156, "=I"),
    "delivered": _Field(192, "=I"),
    "bytes_sent": _Field(200, "=Q"),
    "bytes_retrans": _Field(208, "=Q"),
    "reord_seen": _Field(220, "=I"),
    "rcv_ooopack": _Field(224, "=I"),
}


class _Row(NamedTuple):
    """One socket of a dump."""

    state: int
    local: SockAddr
    remote: SockAddr
    if_index: int
    cookie: int
    uid: int
    inode: int
    rest: dict[int, bytes]


class Snapshot(NamedTuple):
    """The connections and subflows that exist at one moment."""

    connections: list[LiveConnection]
    subflows: list[Measurement]


def subflows() -> list[Measurement]:
    """Every live subflow of the calling thread's namespace; with what is known of owners without a
    lookup.

    Raises NetlinkRefused.
    """
    return snapshot(with_owners=False).subflows


def snapshot(*, with_owners: bool = True) -> Snapshot:
    """Every live connection of the calling thread's namespace with its subflows.

    `with_owners` looks up the processes too (see `owners` for the cost): the one that has the
    socket open, or on a server the one that listens where the connection came in. Raises
    NetlinkRefused.
    """
    here = netns.inode()
    with Requester(NETLINK_SOCK_DIAG) as requester:
        sockets = _mptcp_sockets(requester)
        listening = _listening(requester) if with_owners else {}
        at = time.monotonic_ns()
        rows = [
            row
            for family in (socket.AF_INET, socket.AF_INET6)
            for row in _dump(requester, family, socket.IPPROTO_TCP, _SUBFLOWS)
        ]
    subflows = []
    server_side: dict[int, bool] = {}
    for row in rows:
        details = _ulp(row)
        token = number(details.get(_TOKEN_LOC, b""))
        if token not in sockets:
            continue  # plain TCP, or its connection ended between the dumps
        if row.state == _TCP_SYN_SENT == sockets[token].state:
            continue  # not connected yet
        flags = number(details.get(_FLAGS, b""))
        if not flags & _JOIN:
            server_side[token] = not flags & _MCAP_LOC
        subflows.append((row, details, token, flags))
    standing = {token for _, _, token, _ in subflows}
    sockets = {
        token: row
        for token, row in sockets.items()
        if row.state != _TCP_SYN_SENT or token in standing
    }
    by_token = {token: _owner(row) for token, row in sockets.items()}
    if with_owners:
        # A connection that was not accepted yet belongs to no process; its listener always does.
        listeners = {
            token: _listener(listening, sockets[token].local)
            for token, is_server in server_side.items()
            if is_server
        }
        holders = {token: listeners.get(token) or row for token, row in sockets.items()}
        found = owners({row.inode for row in [*sockets.values(), *holders.values()]})
        by_token = {
            token: found.get(holder.inode) or found.get(sockets[token].inode) or _owner(holder)
            for token, holder in holders.items()
        }
    received = {token: _received(row) for token, row in sockets.items()}
    measured = [
        _measurement(row, details, token, flags, at, here, by_token[token], received[token])
        for row, details, token, flags in subflows
    ]
    connections = [
        LiveConnection(
            token=token,
            local=row.local,
            remote=row.remote,
            server_side=server_side.get(token),
            owner=by_token[token],
        )
        for token, row in sockets.items()
    ]
    return Snapshot(connections, measured)


def fallen() -> list[LiveConnection]:
    """Connected MPTCP sockets of the calling thread's namespace that fell back to TCP.

    Raises NetlinkRefused.
    """
    with Requester(NETLINK_SOCK_DIAG) as requester:
        sockets = _mptcp_sockets(requester, fallen=True)
    return [
        LiveConnection(token=token, local=row.local, remote=row.remote, owner=_owner(row))
        for token, row in sockets.items()
    ]


def listeners() -> list[SockAddr]:
    """Where MPTCP sockets listen in the calling thread's namespace.  Raises NetlinkRefused."""
    with Requester(NETLINK_SOCK_DIAG) as requester:
        return list(_listening(requester))


def _listening(requester: Requester) -> dict[SockAddr, _Row]:
    """MPTCP sockets that listen, by where."""
    found: dict[SockAddr, _Row] = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        for row in _dump(requester, family, _IPPROTO_MPTCP, 1 << _TCP_LISTEN):
            found.setdefault(row.local, row)
    return found


def _listener(listening: dict[SockAddr, _Row], local: SockAddr) -> _Row | None:
    """The owner of the listener where a connection came in: the kernel prefers a listener that
    names the address."""
    anywhere = ("::",) if is_ipv6(local.ip) else ("0.0.0.0", "::")
    for ip in (local.ip, *anywhere):
        if (ip, local.port) in listening:
            return listening[SockAddr(ip, local.port)]
    return None


def _mptcp_sockets(requester: Requester, *, fallen: bool = False) -> dict[int, _Row]:
    """MPTCP sockets that did not fall back to TCP, or did, by token.

    Those that connect are among them: while a process is still inside connect(2) the MPTCP
    socket lags behind its first subflow (mptcp_propagate_state in net/mptcp/protocol.c).
    """
    found: dict[int, _Row] = {}
    states = _LIVE if fallen else _LIVE | 1 << _TCP_SYN_SENT
    for family in (socket.AF_INET, socket.AF_INET6):
        for row in _dump(requester, family, _IPPROTO_MPTCP, states):
            info = row.rest.get(_INET_DIAG_INFO, b"")
            if len(info) >= _MPTCP_FLAGS_AND_TOKEN.size:
                flags, token = _MPTCP_FLAGS_AND_TOKEN.unpack_from(info)
                if token and bool(flags & _FALLBACK) == fallen:
                    found[token] = row
    return found


def _dump(requester: Requester, family: int, protocol: int, states: int) -> list[_Row]:
    wide = protocol > 255
    narrow = _PROTOCOL_FROM_ATTRIBUTE if wide else protocol
    body = _REQUEST.pack(family, narrow, 1 << (_INET_DIAG_INFO - 1), states)
    if wide:
        body += u32(_REQ_PROTOCOL, protocol)
    reply = requester.ask(Request(_SOCK_DIAG_BY_FAMILY, body, dump=True, fixed=_REQUEST.size))
    if reply.errno:
        raise NetlinkRefused(
            f"listing the sockets: {errno_words(reply.errno)} {reply.message}".rstrip()
            + "; the kernel needs INET_DIAG, INET_TCP_DIAG and INET_MPTCP_DIAG",
            reply.errno,
        )
    return [_row(part) for part in reply.parts]


def _row(part: bytes) -> _Row:
    family, state, sport, dport, src, dst, if_index, cookie, _, _, _, uid, inode = (
        _SOCKET.unpack_from(part)
    )
    return _Row(
        state=state,
        local=_address(family, src, sport),
        remote=_address(family, dst, dport),
        if_index=if_index,
        cookie=cookie,
        uid=uid,
        inode=inode,
        rest=attributes(part, _SOCKET.size, len(part)),
    )


def _address(family: int, raw: bytes, port: bytes) -> SockAddr:
    size = 4 if family == socket.AF_INET else 16
    return SockAddr(unmapped(socket.inet_ntop(family, raw[:size])), int.from_bytes(port, "big"))


def _owner(row: _Row) -> Owner:
    """What the kernel itself reports about a socket's owner."""
    cgroup = number(row.rest.get(_INET_DIAG_CGROUP_ID, b""))
    return Owner(cgroup=cgroup or None, uid=row.uid)


def _received(row: _Row) -> int | None:
    """Bytes an MPTCP socket received in order."""
    info = row.rest.get(_INET_DIAG_INFO, b"")
    if len(info) < _MPTCP_BYTES_RECEIVED.size:
        return None
    received: int = _MPTCP_BYTES_RECEIVED.unpack_from(info)[0]
    return received


def _ulp(row: _Row) -> dict[int, bytes]:
    outer = row.rest.get(_INET_DIAG_ULP_INFO, b"")
    inner = attributes(outer, 0, len(outer)).get(_INET_ULP_INFO_MPTCP, b"")
    return attributes(inner, 0, len(inner))


def _measurement(
    row: _Row,
    details: dict[int, bytes],
    token: int,
    flags: int,
    at: int,
    namespace: int,
    owner: Owner,
    connection_bytes_received: int | None,
) -> Measurement:
    info = row.rest.get(_INET_DIAG_INFO, b"")

    def tcp(name: str) -> int | None:
        offset, form = _TCP_INFO[name]
        if len(info) < offset + struct.calcsize(form):
            return None
        value: int = struct.unpack_from(form, info, offset)[0]
        return value

    ages = [age for age in (tcp("last_ack_recv"), tcp("last_data_recv")) if age is not None]
    min_rtt = tcp("min_rtt")
    return Measurement(
        at=at,
        netns=namespace,
        token=token,
        local=row.local,
        remote=row.remote,
        local_id=number(details[_ID_LOC]) if _ID_LOC in details else None,
        remote_id=number(details[_ID_REM]) if _ID_REM in details else None,
        if_index=row.if_index or None,
        cookie=row.cookie,
        state=row.state,
        srtt_us=tcp("rtt") or None,
        min_rtt_us=min_rtt if min_rtt != _UNSET_MIN_RTT else None,
        rttvar_us=tcp("rttvar"),
        rcv_rtt_us=tcp("rcv_rtt") or None,
        segments_in=tcp("data_segs_in"),
        out_of_order=tcp("rcv_ooopack"),
        segments_out=tcp("data_segs_out"),
        bytes_sent=tcp("bytes_sent"),
        bytes_acked=tcp("bytes_acked"),
        bytes_received=tcp("bytes_received"),
        delivered=tcp("delivered"),
        retransmits=tcp("total_retrans"),
        bytes_retrans=tcp("bytes_retrans"),
        timeouts=tcp("retransmits"),
        reordering=tcp("reord_seen"),
        cwnd=tcp("snd_cwnd"),
        in_flight=tcp("unacked"),
        rto_us=tcp("rto"),
        idle_us=min(ages) * 1000 if ages else None,
        backup=bool(flags & _BKUP_LOC),
        backup_by_peer=bool(flags & _BKUP_REM),
        initial=not flags & _JOIN,
        connection_bytes_received=connection_bytes_received,
        owner=owner,
    )
