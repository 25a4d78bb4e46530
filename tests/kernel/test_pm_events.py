# SPDX-License-Identifier: BSD-3-Clause
"""Events as bytes: built as net/mptcp/pm_netlink.c builds them, read as core events."""

import socket
import struct
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.address import SockAddr, unmapped
from mptcpd_ebpf.kernel import pm_events as pe
from mptcpd_ebpf.kernel.netlink import GENERIC_HEADER, attribute, message, s32, u8, u16, u32

FAMILY_ID = 30
TOKEN = st.integers(0, 2**32 - 1)
ID = st.integers(0, 255)
PORT = st.integers(0, 65535)
IP = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
    st.ip_addresses(v=4).map(lambda ip: f"::ffff:{ip}"),
)
ENDS = st.tuples(IP, PORT, IP, PORT).filter(lambda ends: (":" in ends[0]) == (":" in ends[2]))
MAYBE_INDEX = st.none() | st.integers(1, 2**31 - 1)


def event(kind: int, *attributes: bytes) -> bytes:
    body = GENERIC_HEADER.pack(kind, 1, 0) + b"".join(attributes)
    return message(FAMILY_ID, 0, 0, body)


def ip_attribute(v4: int, v6: int, ip: str) -> bytes:
    if ":" in ip:
        return attribute(v6, socket.inet_pton(socket.AF_INET6, ip))
    return attribute(v4, socket.inet_pton(socket.AF_INET, ip))


def ends_attributes(ends: tuple[str, int, str, int]) -> bytes:
    local, sport, remote, dport = ends
    family = socket.AF_INET6 if ":" in local else socket.AF_INET
    return b"".join(
        (
            u16(pe.FAMILY, family),
            ip_attribute(pe.SADDR4, pe.SADDR6, local),
            ip_attribute(pe.DADDR4, pe.DADDR6, remote),
            attribute(pe.SPORT, struct.pack(">H", sport)),
            attribute(pe.DPORT, struct.pack(">H", dport)),
        )
    )


def ends_of(ends: tuple[str, int, str, int]) -> dict[str, Any]:
    def text(ip: str) -> str:
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        return unmapped(socket.inet_ntop(family, socket.inet_pton(family, ip)))

    return {
        "local": SockAddr(text(ends[0]), ends[1]),
        "remote": SockAddr(text(ends[2]), ends[3]),
    }


def read(data: bytes) -> ev.Event | None:
    # The reader's buffer is larger than the message and holds what was there before.
    return pe.decode(bytearray(data) + b"\xff" * 64, len(data))


@given(TOKEN, ENDS, st.booleans(), st.integers(0, 3), MAYBE_INDEX)
def test_connections(
    token: int,
    ends: tuple[str, int, str, int],
    server: bool,
    flags: int,
    index: int | None,
) -> None:
    told: dict[str, Any] = {
        "token": token,
        **ends_of(ends),
        "server_side": server or bool(flags & pe.FLAG_SERVER_SIDE),
        "deny_join_id0": bool(flags & pe.FLAG_DENY_JOIN_ID0),
        "if_index": index,
    }
    rest = [u32(pe.TOKEN, token), u8(pe.SERVER_SIDE, server), ends_attributes(ends)]
    if flags:
        rest.append(u16(pe.FLAGS, flags))
    if index:
        rest.append(s32(pe.IF_IDX, index))
    assert read(event(pe.CREATED, *rest)) == ev.ConnectionCreated(**told)
    assert read(event(pe.ESTABLISHED, *rest)) == ev.ConnectionEstablished(**told)
    assert read(event(pe.CLOSED, u32(pe.TOKEN, token))) == ev.ConnectionClosed(token=token)


@given(TOKEN, ENDS, ID, ID, st.booleans(), MAYBE_INDEX)
def test_subflows(
    token: int,
    ends: tuple[str, int, str, int],
    local_id: int,
    remote_id: int,
    backup: bool,
    index: int | None,
) -> None:
    told: dict[str, Any] = {
        "token": token,
        **ends_of(ends),
        "local_id": local_id,
        "remote_id": remote_id,
        "backup": backup,
        "if_index": index,
    }
    rest = [
        u32(pe.TOKEN, token),
        ends_attributes(ends),
        u8(pe.LOC_ID, local_id),
        u8(pe.REM_ID, remote_id),
        u8(pe.BACKUP, backup),
    ]
    if index:
        rest.append(s32(pe.IF_IDX, index))
    assert read(event(pe.SUB_ESTABLISHED, *rest)) == ev.SubflowEstablished(**told)
    assert read(event(pe.SUB_PRIORITY, *rest)) == ev.SubflowPriority(**told)
    assert read(event(pe.SUB_CLOSED, *rest)) == ev.SubflowClosed(**told)


@given(TOKEN, ENDS, ID, st.integers(0, 6), st.integers(0, 1))
def test_a_subflows_end_gives_its_reasons(
    token: int, ends: tuple[str, int, str, int], error: int, reason: int, flags: int
) -> None:
    data = event(
        pe.SUB_CLOSED,
        u32(pe.TOKEN, token),
        ends_attributes(ends),
        u8(pe.ERROR, error),
        u32(pe.RESET_REASON, reason),
        u32(pe.RESET_FLAGS, flags),
    )
    assert read(data) == ev.SubflowClosed(
        token=token, **ends_of(ends), error=error, reset_reason=reason, reset_flags=flags
    )


@given(TOKEN, ID, IP, PORT)
def test_addresses_of_the_peer(token: int, address_id: int, ip: str, port: int) -> None:
    head = [u32(pe.TOKEN, token), u8(pe.REM_ID, address_id)]
    where = ip_attribute(pe.DADDR4, pe.DADDR6, ip)
    told = ends_of((ip, 0, ip, 0))["local"].ip
    announced: dict[str, Any] = {"token": token, "address_id": address_id, "ip": told}
    with_port = attribute(pe.DPORT, struct.pack(">H", port))
    assert read(event(pe.ANNOUNCED, *head, with_port, where)) == ev.AddressAnnounced(
        **announced, port=port
    )
    assert read(event(pe.ANNOUNCED, *head, where)) == ev.AddressAnnounced(**announced, port=0)
    assert read(event(pe.REMOVED, *head)) == ev.AddressWithdrawn(token=token, address_id=address_id)


@given(IP, PORT)
def test_listeners(ip: str, port: int) -> None:
    rest = [
        ip_attribute(pe.SADDR4, pe.SADDR6, ip),
        attribute(pe.SPORT, struct.pack(">H", port)),
    ]
    local = ends_of((ip, port, ip, port))["local"]
    assert read(event(pe.LISTENER_CREATED, *rest)) == ev.ListenerCreated(local=local)
    assert read(event(pe.LISTENER_CLOSED, *rest)) == ev.ListenerClosed(local=local)


def test_what_a_newer_kernel_adds_is_passed_over() -> None:
    token = u32(pe.TOKEN, 5)
    assert read(event(200, token)) is None
    assert read(event(pe.CLOSED, attribute(77, b"new"), token)) == ev.ConnectionClosed(token=5)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(event(pe.CLOSED), id="no token"),
        pytest.param(event(pe.CREATED, u32(pe.TOKEN, 1)), id="no address"),
        pytest.param(event(pe.REMOVED, u32(pe.TOKEN, 1)), id="no address id"),
        pytest.param(event(pe.CLOSED, b"\2\0\1\0"), id="attribute too short"),
        pytest.param(event(pe.CLOSED, b"\x20\0\1\0"), id="attribute too long"),
        pytest.param(event(pe.CLOSED, u32(pe.TOKEN, 1))[:-4], id="truncated"),
        pytest.param(b"\0" * 10, id="too short for a header"),
    ],
)
def test_what_is_mangled_is_not_believed(data: bytes) -> None:
    with pytest.raises((ValueError, struct.error)):
        pe.decode(data, len(data))


@given(st.binary(max_size=120), st.integers(0, 20))
def test_garbage_is_refused_or_read(rest: bytes, kind: int) -> None:
    data = event(kind, rest)
    with suppress(ValueError, struct.error):
        pe.decode(data, len(data))
