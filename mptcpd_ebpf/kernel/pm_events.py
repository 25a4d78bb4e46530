# SPDX-License-Identifier: BSD-3-Clause
"""The kernel's MPTCP events: what it multicasts to `mptcp_pm_events`, as core events.

While nobody is subscribed, a kernel in userspace mode refuses joins and drops announced
addresses, so the subscription comes before everything else and outlives reloads; its descriptor
can be kept by another process and adopted again (`PmEvents.adopt`).

Numbers are those of include/uapi/linux/mptcp_pm.h (enum mptcp_event_type and
mptcp_event_attr), as plain integers for speed: the decoder runs for every connection and
subflow of the host and walks the attributes in place.  In contrast to the commands,
ports are in network order here (kernel: net/mptcp/pm_netlink.c, mptcp_event_*).
"""

import struct
from collections.abc import Callable
from functools import lru_cache, partial
from socket import AF_INET, AF_INET6, inet_ntop
from typing import Self

from mptcpd_ebpf.core.address import SockAddr, unmapped
from mptcpd_ebpf.core.events import (
    AddressAnnounced,
    AddressWithdrawn,
    ConnectionClosed,
    ConnectionCreated,
    ConnectionEstablished,
    Event,
    EventsLost,
    ListenerClosed,
    ListenerCreated,
    SubflowClosed,
    SubflowEstablished,
    SubflowPriority,
)
from mptcpd_ebpf.kernel.netlink import (
    ATTRIBUTE,
    GENERIC_HEADER,
    HEADER,
    NLMSG_FIRST_FAMILY_TYPE,
    Buffer,
)
from mptcpd_ebpf.kernel.pm import EVENT_GROUP
from mptcpd_ebpf.kernel.pm_client import mptcp_family
from mptcpd_ebpf.kernel.transport import NETLINK_GENERIC, MessagesLost, Requester, Subscription

SOURCE = "mptcp_pm events"
"""How `EventsLost` names this source."""
RECEIVE_BUFFER = 8 << 20
"""Requested size in bytes; an event takes about 1 KiB of it, whatever its length."""
_BATCH = 256


# MPTCP_EVENT_*
CREATED = 1
ESTABLISHED = 2
CLOSED = 3
ANNOUNCED = 6
REMOVED = 7
SUB_ESTABLISHED = 10
SUB_CLOSED = 11
SUB_PRIORITY = 13
LISTENER_CREATED = 15
LISTENER_CLOSED = 16

# MPTCP_ATTR_*
TOKEN = 1
FAMILY = 2
LOC_ID = 3
REM_ID = 4
SADDR4 = 5
SADDR6 = 6
DADDR4 = 7
DADDR6 = 8
SPORT = 9
DPORT = 10
BACKUP = 11
ERROR = 12
FLAGS = 13
TIMEOUT = 14
IF_IDX = 15
RESET_REASON = 16
RESET_FLAGS = 17
SERVER_SIDE = 18

# MPTCP_PM_EV_FLAG_*, in FLAGS; the second since Linux 6.18
FLAG_DENY_JOIN_ID0 = 1
FLAG_SERVER_SIDE = 2

_U8 = struct.Struct("=B").unpack_from
_U16 = struct.Struct("=H").unpack_from
_BE16 = struct.Struct(">H").unpack_from
_ATTRIBUTE = ATTRIBUTE.unpack_from
_U32 = struct.Struct("=I").unpack_from
_S32 = struct.Struct("=i").unpack_from
_MESSAGE = struct.Struct("=IHHIIBBH").unpack_from
"""nlmsghdr and genlmsghdr in one."""
_FIRST_ATTRIBUTE = HEADER.size + GENERIC_HEADER.size

Offsets = list[int]
"""Where in the message each attribute's payload begins, by attribute number; 0: absent."""
_NONE_SEEN = [0] * (SERVER_SIDE + 1)

_ip4 = lru_cache(4096)(partial(inet_ntop, AF_INET))


@lru_cache(4096)
def _ip6(raw: bytes) -> str:
    return unmapped(inet_ntop(AF_INET6, raw))


def _ip(data: Buffer, v4: int, v6: int) -> str:
    if v4:
        return _ip4(bytes(data[v4 : v4 + 4]))
    if v6:
        return _ip6(bytes(data[v6 : v6 + 16]))
    raise ValueError("MPTCP event without its address")


def _local(data: Buffer, at: Offsets) -> SockAddr:
    port = at[SPORT]
    return SockAddr(_ip(data, at[SADDR4], at[SADDR6]), _BE16(data, port)[0] if port else 0)


def _remote(data: Buffer, at: Offsets) -> SockAddr:
    port = at[DPORT]
    return SockAddr(_ip(data, at[DADDR4], at[DADDR6]), _BE16(data, port)[0] if port else 0)


def _opt_u8(data: Buffer, offset: int) -> int | None:
    return _U8(data, offset)[0] if offset else None


def _opt_u32(data: Buffer, offset: int) -> int | None:
    return _U32(data, offset)[0] if offset else None


def _if_index(data: Buffer, at: Offsets) -> int | None:
    return _S32(data, at[IF_IDX])[0] or None if at[IF_IDX] else None


def _connection(
    kind: type[ConnectionCreated] | type[ConnectionEstablished],
) -> Callable[[Buffer, Offsets], Event]:
    def decode(data: Buffer, at: Offsets) -> Event:
        flags = _U16(data, at[FLAGS])[0] if at[FLAGS] else 0
        told = bool(at[SERVER_SIDE] and data[at[SERVER_SIDE]])
        return kind(
            token=_U32(data, at[TOKEN])[0],
            local=_local(data, at),
            remote=_remote(data, at),
            server_side=told or bool(flags & FLAG_SERVER_SIDE),
            deny_join_id0=bool(flags & FLAG_DENY_JOIN_ID0),
            if_index=_if_index(data, at),
        )

    return decode


def _subflow(
    kind: type[SubflowEstablished] | type[SubflowPriority],
) -> Callable[[Buffer, Offsets], Event]:
    def decode(data: Buffer, at: Offsets) -> Event:
        return kind(
            token=_U32(data, at[TOKEN])[0],
            local=_local(data, at),
            remote=_remote(data, at),
            local_id=_opt_u8(data, at[LOC_ID]),
            remote_id=_opt_u8(data, at[REM_ID]),
            backup=bool(at[BACKUP] and data[at[BACKUP]]),
            if_index=_if_index(data, at),
        )

    return decode


def _subflow_closed(data: Buffer, at: Offsets) -> Event:
    return SubflowClosed(
        token=_U32(data, at[TOKEN])[0],
        local=_local(data, at),
        remote=_remote(data, at),
        local_id=_opt_u8(data, at[LOC_ID]),
        remote_id=_opt_u8(data, at[REM_ID]),
        backup=bool(at[BACKUP] and data[at[BACKUP]]),
        if_index=_if_index(data, at),
        error=_opt_u8(data, at[ERROR]) or 0,
        reset_reason=_opt_u32(data, at[RESET_REASON]),
        reset_flags=_opt_u32(data, at[RESET_FLAGS]),
    )


def _remote_id(data: Buffer, at: Offsets) -> int:
    if not at[REM_ID]:
        raise ValueError("MPTCP event without its address id")
    return data[at[REM_ID]]


def _connection_closed(data: Buffer, at: Offsets) -> Event:
    return ConnectionClosed(token=_U32(data, at[TOKEN])[0])


def _announced(data: Buffer, at: Offsets) -> Event:
    ip, port = _remote(data, at)
    return AddressAnnounced(
        token=_U32(data, at[TOKEN])[0], address_id=_remote_id(data, at), ip=ip, port=port
    )


def _withdrawn(data: Buffer, at: Offsets) -> Event:
    return AddressWithdrawn(token=_U32(data, at[TOKEN])[0], address_id=_remote_id(data, at))


def _listener_created(data: Buffer, at: Offsets) -> Event:
    return ListenerCreated(local=_local(data, at))


def _listener_closed(data: Buffer, at: Offsets) -> Event:
    return ListenerClosed(local=_local(data, at))


_DECODERS: dict[int, Callable[[Buffer, Offsets], Event]] = {
    CREATED: _connection(ConnectionCreated),
    ESTABLISHED: _connection(ConnectionEstablished),
    CLOSED: _connection_closed,
    ANNOUNCED: _announced,
    REMOVED: _withdrawn,
    SUB_ESTABLISHED: _subflow(SubflowEstablished),
    SUB_CLOSED: _subflow_closed,
    SUB_PRIORITY: _subflow(SubflowPriority),
    LISTENER_CREATED: _listener_created,
    LISTENER_CLOSED: _listener_closed,
}


def decode(data: Buffer, end: int) -> Event | None:
    """The event in one datagram of `end` bytes (the kernel sends one each).

    None if its kind is unknown. Raises ValueError or struct.error if it is malformed.
    """
    length, kind, _flags, _seq, _port, command, _version, _reserved = _MESSAGE(data)
    if length > end:
        raise ValueError(f"MPTCP event of {length} bytes in a datagram of {end}")
    decoder = _DECODERS.get(command)
    if decoder is None or kind < NLMSG_FIRST_FAMILY_TYPE:
        return None
    at = _NONE_SEEN[:]
    offset = _FIRST_ATTRIBUTE
    while offset < length:
        size, number = _ATTRIBUTE(data, offset)
        if size < 4 or offset + size > length:
            raise ValueError(f"MPTCP event: attribute of {size} bytes at {offset} of {length}")
        if number <= SERVER_SIDE:
            at[number] = offset + 4
        offset += (size + 3) & ~3
    if not at[TOKEN] and command < LISTENER_CREATED:
        raise ValueError("MPTCP event without its token")
    return decoder(data, at)


class PmEvents:
    """The subscription of one network namespace (the calling thread's, when opened)."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    @classmethod
    def open(cls, *, receive_buffer: int = RECEIVE_BUFFER) -> Self:
        """Subscribes.

        Raises MptcpMissing on a kernel without MPTCP, NotPermitted without CAP_NET_ADMIN.
        """
        with Requester(NETLINK_GENERIC) as requester:
            group = mptcp_family(requester).groups[EVENT_GROUP]
        return cls(Subscription.open(NETLINK_GENERIC, [group], receive_buffer=receive_buffer))

    @classmethod
    def adopt(cls, fd: int) -> Self:
        """Goes on with a subscription that was kept for us; owns `fd` from now on."""
        return cls(Subscription.adopt(fd))

    def discard(self) -> None:
        """Discards the events that wait, before the state of the kernel is read."""
        self._subscription.discard()

    def fileno(self) -> int:
        """Readable when events wait."""
        return self._subscription.fileno()

    def close(self) -> None:
        """Unsubscribes.  With the last subscriber gone, userspace mode refuses joins."""
        self._subscription.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self) -> list[Event]:
        """The events that wait, at most a few hundred; never blocks.

        Where the kernel dropped some, or one is malformed, an `EventsLost` takes their place.
        """
        events: list[Event] = []
        try:
            for data, length in self._subscription.receive(_BATCH):
                event = decode(data, length)
                if event is not None:
                    events.append(event)
        except (MessagesLost, ValueError, struct.error):
            events.append(EventsLost(source=SOURCE))
        return events
