# SPDX-License-Identifier: BSD-3-Clause
"""Manual commands: from plain fields to the kernel's command, and answers as plain data.

The fields are those of `core.commands`, written as the control socket writes them: tokens in
hexadecimal, addresses as text, endpoint flags by name.  Some can be left out: the address id of a
connection, and the reason.  An interface can be given by name (`interface`).

The daemon, and the commands that send to the kernel themselves, parse the same fields with the same
error messages, in the network namespace in which the command will be carried out.
"""

import errno
import socket
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from mptcpd_ebpf.control import describe, views
from mptcpd_ebpf.control.schema import SCHEMA, CarriedOut, Endpoints, LimitsView
from mptcpd_ebpf.core.address import SockAddr, canonical, parse_sockaddr
from mptcpd_ebpf.core.address_ids import HIGHEST_ID
from mptcpd_ebpf.core.commands import AddEndpoint, ChangeEndpoint, KernelCommand, SetLimits
from mptcpd_ebpf.core.endpoints import Endpoint, EndpointFlag, Limits, endpoint_flags
from mptcpd_ebpf.core.names import printable
from mptcpd_ebpf.core.token import token_of
from mptcpd_ebpf.kernel import diag, sysctl
from mptcpd_ebpf.kernel.errors import NetlinkRefused
from mptcpd_ebpf.kernel.pm_client import PmClient

REASON = "requested by the operator"

_ID_OF = {"CreateSubflow": ("local_id", "local_ip"), "AnnounceAddress": ("address_id", "ip")}
"""Commands whose address id can be left out: its field, and the field of its address."""


def parse(fields: Mapping[str, Any], pm: PmClient) -> KernelCommand:
    """The command that the fields describe; a missing address id is read through `pm`.

    Raises ValueError with the field and the cause, or what `address_id` raises.
    """
    plain = {"reason": REASON, **fields}
    for name, read in _READERS.items():
        if name in plain:
            plain[name] = read(plain[name])
    if plain.pop("interface", None) is not None:
        plain["if_index"] = _interface(fields["interface"])
    id_field, ip_field = _ID_OF.get(str(plain.get("command")), ("", ""))
    if id_field and id_field not in plain and {ip_field, "token"} <= plain.keys():
        plain[id_field] = address_id(pm, plain["token"], plain[ip_field])
    try:
        command: KernelCommand = msgspec.convert(plain, type=KernelCommand)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    unknown = plain.keys() - {"command", *command.__struct_fields__}
    if unknown:
        known = ", ".join(command.__struct_fields__)
        raise ValueError(f"{sorted(unknown)[0]}: no such field; the fields are {known}")
    return command


def address_id(pm: PmClient, token: int, ip: str) -> int:
    """The id that a connection uses for a local address, or the lowest unused id.

    The ids come from the kernel's list and from the live subflows: the list drops an address when
    one of its subflows is destroyed, and Linux before 6.10 has no list.
    Raises NetlinkRefused if there is no such connection, or ValueError if all 255 ids are in use.
    """
    live = [each for each in diag.subflows() if each.token == token]
    # 0 is the initial address; a join from it needs another id.
    known = {each.local.ip: each.local_id for each in live if each.local_id}
    try:
        known |= {each.ip: each.address_id for each in pm.connection_addresses(token)}
    except NetlinkRefused as refused:
        if refused.errno != errno.EOPNOTSUPP:
            where = f"the address ids of connection {token:08x}"
            raise NetlinkRefused(f"{where}: {refused}", refused.errno) from None
    if ip in known:
        return known[ip]
    taken = set(known.values())
    for free in range(1, HIGHEST_ID + 1):
        if free not in taken:
            return free
    raise ValueError(f"all {HIGHEST_ID} address ids of the connection are in use")


# --- answers


def carried_out(
    command: KernelCommand, through: str, errno: int | None, explanation: str
) -> CarriedOut:
    """The result of a command; `errno` is None if it was not sent to the kernel.

    Call it in the network namespace of the command.
    """
    return {
        "schema": SCHEMA,
        "action": describe.action(command),
        "command": views.fields(command),
        "through": through,
        "errno": errno,
        "explanation": explanation or None,
        "caveat": None if explanation else _caveat(command),
    }


def _caveat(command: KernelCommand) -> str | None:
    if not isinstance(command, AddEndpoint | ChangeEndpoint | SetLimits):
        return None
    path_manager = sysctl.PathManagerSetting().current()
    if path_manager == "kernel":
        return None
    return (
        f"no effect on new connections: they use the {path_manager} path manager "
        "(net.mptcp.path_manager, pm_type)"
    )


def endpoints(found: list[Endpoint]) -> Endpoints:
    """The in-kernel path manager's endpoints, read in the calling thread's namespace."""
    return {
        "schema": SCHEMA,
        "endpoints": [
            {
                "id": endpoint.address_id,
                "ip": endpoint.ip,
                "port": endpoint.port or None,
                "flags": views.flag_names(endpoint.flags),
                "interface": _interface_name(endpoint.if_index),
                "if_index": endpoint.if_index or None,
            }
            for endpoint in found
        ],
    }


def limits(found: Limits) -> LimitsView:
    return {
        "schema": SCHEMA,
        "subflows": found.subflows,
        "add_addr_accepted": found.add_addr_accepted,
    }


def _interface_name(if_index: int) -> str | None:
    if not if_index:
        return None
    try:
        return printable(socket.if_indextoname(if_index))
    except OSError:
        return None


# --- one field each


def _token(value: Any) -> int:
    try:
        return token_of(value)
    except ValueError as error:
        raise ValueError(f"token: {error}") from None


def _ip(value: Any) -> str:
    try:
        if "%" in value:
            raise ValueError
        return canonical(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is no IP address") from None


def _sockaddr(value: Any) -> SockAddr:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not an address with a port")
    address = parse_sockaddr(value)
    return SockAddr(_ip(address.ip), address.port)


def _flags(value: Any) -> EndpointFlag:
    if not isinstance(value, list):
        raise ValueError(f"flags: {value!r} is not a list of names")
    return endpoint_flags(value)


def _interface(value: Any) -> int:
    try:
        return socket.if_nametoindex(value)
    except (TypeError, ValueError, OSError):
        raise ValueError(f"interface: there is no {value!r} in this network namespace") from None


_READERS: dict[str, Callable[[Any], Any]] = {
    "token": _token,
    "ip": _ip,
    "local_ip": _ip,
    "local": _sockaddr,
    "remote": _sockaddr,
    "flags": _flags,
}
