# SPDX-License-Identifier: BSD-3-Clause
"""The kernel's MPTCP path managers as requests: all eleven commands of `mptcp_pm`, and answers.

The functions here are operations (see `netlink.Operation`): they build a request and read its
answer; `pm_client` runs them on a socket. Numbers are those of include/uapi/linux/mptcp_pm.h,
stated here once; `pm_errors` explains refusals.

Commands 1 to 7 work on the endpoint table and limits of the in-kernel path manager, which
are per network namespace.  Commands 8 to 11, and SET_FLAGS with a token, work on one
connection that was created while the path manager was ``userspace``; they exist since
Linux 5.19 (kernel: net/mptcp/pm_kernel.c, pm_userspace.c).
"""

import errno
import functools
import re
import socket
from enum import IntEnum
from pathlib import Path

from msgspec import Struct

from mptcpd_ebpf.core.address import SockAddr, is_ipv6, unmapped
from mptcpd_ebpf.core.commands import (
    AddEndpoint,
    AnnounceAddress,
    ChangeEndpoint,
    CreateSubflow,
    DestroySubflow,
    FlushEndpoints,
    KernelCommand,
    RemoveEndpoint,
    SetBackup,
    SetLimits,
    WithdrawAddress,
)
from mptcpd_ebpf.core.endpoints import HIGHEST_LIMIT, Endpoint, EndpointFlag, Limits
from mptcpd_ebpf.kernel.netlink import (
    GENERIC_HEADER,
    Operation,
    Reply,
    Request,
    attribute,
    attributes,
    nest,
    number,
    s32,
    u8,
    u16,
    u32,
)

FAMILY = "mptcp_pm"
VERSION = 1
COMMAND_GROUP = "mptcp_pm_cmds"
EVENT_GROUP = "mptcp_pm_events"
USERSPACE_NOT_SELECTED = "userspace PM not selected"
"""In the kernel's message when it keeps a connection to itself."""
BTF = Path("/sys/kernel/btf/vmlinux")
"""The kernel's own types."""


class Cmd(IntEnum):
    """MPTCP_PM_CMD_*"""

    ADD_ADDR = 1
    DEL_ADDR = 2
    GET_ADDR = 3
    FLUSH_ADDRS = 4
    SET_LIMITS = 5
    GET_LIMITS = 6
    SET_FLAGS = 7
    ANNOUNCE = 8
    REMOVE = 9
    SUBFLOW_CREATE = 10
    SUBFLOW_DESTROY = 11


class Attr(IntEnum):
    """MPTCP_PM_ATTR_*"""

    ADDR = 1
    RCV_ADD_ADDRS = 2
    SUBFLOWS = 3
    TOKEN = 4
    LOC_ID = 5
    ADDR_REMOTE = 6


class AddrAttr(IntEnum):
    """MPTCP_PM_ADDR_ATTR_*, inside ADDR and ADDR_REMOTE.  The port is in host order here."""

    FAMILY = 1
    ID = 2
    ADDR4 = 3
    ADDR6 = 4
    PORT = 5
    FLAGS = 6
    IF_IDX = 7


class Answer(Struct, frozen=True):
    """What the kernel answered to a command."""

    command: Cmd
    reply: Reply


def attribute_name(path: list[int]) -> str:
    """``addr.id`` for the types of a nest and of an attribute in it."""
    kinds: list[type[IntEnum]] = [Attr, AddrAttr]
    words = []
    for kind, names in zip(path, kinds, strict=False):
        known = kind in names.__members__.values()
        words.append(names(kind).name.lower() if known else str(kind))
    return ".".join(words)


def command(family_id: int, command: KernelCommand) -> Operation[Answer]:
    """Carries out one command."""
    cmd, body = encode(command)
    reply = yield _request(family_id, cmd, body)
    if cmd is Cmd.SUBFLOW_DESTROY and reply.errno == errno.ESRCH:
        # A dual-stack socket's own subflows are AF_INET6 with mapped addresses inside
        # the kernel, and DESTROY alone compares families (mptcp_nl_find_ssk).
        assert isinstance(command, DestroySubflow)
        if not is_ipv6(command.local.ip):
            reply = yield _request(family_id, cmd, _destroy(command, mapped=True))
    return Answer(cmd, reply)


@functools.cache
def joins_marked() -> bool:
    """Whether SUBFLOW_CREATE uses the backup flag and the interface; Linux 6.1 ignores both.

    Where it does, they travel in a ``struct mptcp_pm_local`` (net/mptcp/protocol.h).
    A kernel without BTF counts as one that ignores them.
    """
    try:
        return b"\0mptcp_pm_local\0" in BTF.read_bytes()
    except OSError:
        return False


def endpoints(family_id: int) -> Operation[tuple[Answer, list[Endpoint]]]:
    """Dumps the namespace's endpoint table."""
    reply = yield _request(family_id, Cmd.GET_ADDR, b"", dump=True)
    return Answer(Cmd.GET_ADDR, reply), _endpoints(reply)


def endpoint(family_id: int, address_id: int) -> Operation[tuple[Answer, list[Endpoint]]]:
    """Reads the endpoint of one address id."""
    body = nest(Attr.ADDR, u8(AddrAttr.ID, address_id))
    reply = yield _request(family_id, Cmd.GET_ADDR, body)
    return Answer(Cmd.GET_ADDR, reply), _endpoints(reply)


def connection_addresses(family_id: int, token: int) -> Operation[tuple[Answer, list[Endpoint]]]:
    """Dumps the local addresses of one connection in userspace mode; EOPNOTSUPP before 6.10.

    A kernel without such dumps ignores the token and dumps the endpoint table; one with them
    refuses a token that no connection has.
    """
    reply = yield _request(family_id, Cmd.GET_ADDR, u32(Attr.TOKEN, 0), dump=True)
    if not reply.errno:
        return Answer(Cmd.GET_ADDR, Reply(errno.EOPNOTSUPP, "", [])), []
    reply = yield _request(family_id, Cmd.GET_ADDR, u32(Attr.TOKEN, token), dump=True)
    return Answer(Cmd.GET_ADDR, reply), _endpoints(reply)


def in_kernel(family_id: int, token: int) -> Operation[bool | None]:
    """Whether the in-kernel path manager has a connection; None if there is none of that token.

    The kernel looks at the mode before it looks for the subflow to be destroyed; this one
    cannot exist.
    """
    nobody = SockAddr("0.0.0.0", 1)
    command = DestroySubflow(token=token, local=nobody, remote=nobody, reason="")
    reply = yield _request(family_id, Cmd.SUBFLOW_DESTROY, _destroy(command))
    if reply.errno == errno.ESRCH:
        return False
    return True if USERSPACE_NOT_SELECTED in reply.message else None


def limits(family_id: int) -> Operation[tuple[Answer, Limits | None]]:
    reply = yield _request(family_id, Cmd.GET_LIMITS, b"")
    for part in reply.parts:
        found = attributes(part, GENERIC_HEADER.size, len(part))
        return Answer(Cmd.GET_LIMITS, reply), Limits(
            subflows=number(found[Attr.SUBFLOWS]),
            add_addr_accepted=number(found[Attr.RCV_ADD_ADDRS]),
        )
    return Answer(Cmd.GET_LIMITS, reply), None


def highest_limit(family_id: int) -> Operation[int]:
    """Asks for more than any kernel allows, which sets nothing: the refusal names the most.

    Both limits are looked at before either is set (mptcp_pm_nl_set_limits_doit).
    """
    body = b"".join(u32(each, 0xFFFFFFFF) for each in (Attr.RCV_ADD_ADDRS, Attr.SUBFLOWS))
    reply = yield _request(family_id, Cmd.SET_LIMITS, body)
    named = re.search(r"greater than maximum \((\d+)\)", reply.message)
    return int(named[1]) if named else HIGHEST_LIMIT


def encode(command: KernelCommand) -> tuple[Cmd, bytes]:
    """The kernel's command and its attributes."""
    match command:
        case CreateSubflow():
            local = _address(
                command.local_ip,
                address_id=command.local_id,
                flags=EndpointFlag.BACKUP if command.backup else EndpointFlag(0),
                if_index=command.if_index,
            )
            remote = _address(
                command.remote.ip, address_id=command.remote_id, port=command.remote.port
            )
            return Cmd.SUBFLOW_CREATE, b"".join(
                (
                    u32(Attr.TOKEN, command.token),
                    nest(Attr.ADDR, local),
                    nest(Attr.ADDR_REMOTE, remote),
                )
            )
        case DestroySubflow():
            return Cmd.SUBFLOW_DESTROY, _destroy(command)
        case SetBackup():
            flags = EndpointFlag.BACKUP if command.backup else EndpointFlag(0)
            return Cmd.SET_FLAGS, b"".join(
                (
                    u32(Attr.TOKEN, command.token),
                    nest(
                        Attr.ADDR, _address(command.local.ip, flags=flags, port=command.local.port)
                    ),
                    nest(Attr.ADDR_REMOTE, _address(command.remote.ip, port=command.remote.port)),
                )
            )
        case AnnounceAddress():
            local = _address(
                command.ip,
                address_id=command.address_id,
                flags=EndpointFlag.SIGNAL,
                if_index=command.if_index,
                port=command.port,
            )
            return Cmd.ANNOUNCE, u32(Attr.TOKEN, command.token) + nest(Attr.ADDR, local)
        case WithdrawAddress():
            return Cmd.REMOVE, u32(Attr.TOKEN, command.token) + u8(Attr.LOC_ID, command.address_id)
        case AddEndpoint():
            added = _address(
                command.ip,
                address_id=command.address_id or None,
                flags=command.flags,
                if_index=command.if_index,
                port=command.port,
            )
            return Cmd.ADD_ADDR, nest(Attr.ADDR, added)
        case RemoveEndpoint():
            return Cmd.DEL_ADDR, nest(
                Attr.ADDR, _address(command.ip, address_id=command.address_id)
            )
        case ChangeEndpoint():
            changed = _address(command.ip, address_id=command.address_id, flags=command.flags)
            return Cmd.SET_FLAGS, nest(Attr.ADDR, changed)
        case FlushEndpoints():
            return Cmd.FLUSH_ADDRS, b""
        case SetLimits():
            return Cmd.SET_LIMITS, u32(Attr.RCV_ADD_ADDRS, command.add_addr_accepted) + u32(
                Attr.SUBFLOWS, command.subflows
            )


def _request(family_id: int, cmd: Cmd, body: bytes, *, dump: bool = False) -> Request:
    header = GENERIC_HEADER.pack(cmd, VERSION, 0)
    return Request(family_id, header + body, dump, GENERIC_HEADER.size, attribute_name)


def _destroy(command: DestroySubflow, *, mapped: bool = False) -> bytes:
    def end(kind: Attr, address: SockAddr) -> bytes:
        ip = f"::ffff:{address.ip}" if mapped else address.ip
        return nest(kind, _address(ip, port=address.port))

    return b"".join(
        (
            u32(Attr.TOKEN, command.token),
            end(Attr.ADDR, command.local),
            end(Attr.ADDR_REMOTE, command.remote),
        )
    )


def _address(
    ip: str,
    *,
    address_id: int | None = None,
    flags: EndpointFlag | None = None,
    if_index: int = 0,
    port: int = 0,
) -> bytes:
    """The inside of an address nest.  An empty `ip` names none."""
    parts = []
    if ip:
        family = socket.AF_INET6 if is_ipv6(ip) else socket.AF_INET
        kind = AddrAttr.ADDR6 if is_ipv6(ip) else AddrAttr.ADDR4
        parts = [u16(AddrAttr.FAMILY, family), attribute(kind, socket.inet_pton(family, ip))]
    if address_id is not None:
        parts.append(u8(AddrAttr.ID, address_id))
    if flags is not None:
        parts.append(u32(AddrAttr.FLAGS, flags))
    if if_index:
        parts.append(s32(AddrAttr.IF_IDX, if_index))
    if port:
        parts.append(u16(AddrAttr.PORT, port))
    return b"".join(parts)


def _endpoints(reply: Reply) -> list[Endpoint]:
    found = []
    for part in reply.parts:
        outer = attributes(part, GENERIC_HEADER.size, len(part))
        inner = outer.get(Attr.ADDR, b"")
        found.append(decode_endpoint(inner))
    return found


def decode_endpoint(inner: bytes) -> Endpoint:
    """Reads the inside of an address nest that the kernel filled."""
    found = attributes(inner, 0, len(inner))
    if AddrAttr.ADDR6 in found:
        ip = unmapped(socket.inet_ntop(socket.AF_INET6, found[AddrAttr.ADDR6]))
    else:
        ip = socket.inet_ntop(socket.AF_INET, found[AddrAttr.ADDR4])
    return Endpoint(
        ip=ip,
        address_id=number(found[AddrAttr.ID]),
        flags=EndpointFlag(number(found.get(AddrAttr.FLAGS, b""))),
        if_index=number(found.get(AddrAttr.IF_IDX, b"")),
        port=number(found.get(AddrAttr.PORT, b"")),
    )
