# SPDX-License-Identifier: BSD-3-Clause
"""The in-kernel path manager's table: endpoints and limits.

The kernel sends no event when it changes, so it is read on demand (`ReadEndpoints`, answered by
`EndpointsRead`). Only endpoints that are `ours` may be changed or removed.
"""

from collections.abc import Iterable
from enum import IntFlag
from typing import Annotated

from msgspec import Meta, Struct

HIGHEST_LIMIT = 8
"""The highest limit that every kernel accepts (MPTCP_PM_ADDR_MAX of net/mptcp/protocol.h), and the
size of its table; Linux 7.3 accepts 64 and holds 255 endpoints."""


class EndpointFlag(IntFlag):
    """MPTCP_PM_ADDR_FLAG_* of include/uapi/linux/mptcp_pm.h."""

    SIGNAL = 1
    SUBFLOW = 2
    BACKUP = 4
    FULLMESH = 8
    IMPLICIT = 16
    LAMINAR = 32


CHANGEABLE = EndpointFlag.BACKUP | EndpointFlag.FULLMESH
"""The flags that the kernel can change in an existing endpoint."""


class Endpoint(Struct, frozen=True, kw_only=True):
    """An address the kernel's path manager may use: of the namespace, or of one connection."""

    ip: str
    address_id: int
    flags: EndpointFlag = EndpointFlag(0)
    if_index: int = 0
    """0 if it is bound to no interface."""
    port: int = 0
    ours: bool = False
    """This daemon, or an earlier one in this namespace, created it."""


class Limits(Struct, frozen=True, kw_only=True):
    """What the in-kernel path manager allows per connection; userspace mode ignores it."""

    subflows: int
    """Subflows beside the initial one."""
    add_addr_accepted: int
    """Announced addresses that are joined."""


def endpoint_flags(names: Iterable[str]) -> EndpointFlag:
    """Flags by the names that `ip mptcp endpoint` gives them.

    Raises ValueError for an unknown one and for pairs that the kernel refuses.
    """
    settable = [flag for flag in EndpointFlag if flag is not EndpointFlag.IMPLICIT]
    by_name = {(flag.name or "").lower(): flag for flag in settable}
    flags = EndpointFlag(0)
    for name in names:
        if name not in by_name:
            raise ValueError(f"{name!r} is no endpoint flag; there are {', '.join(by_name)}")
        flags |= by_name[name]
    if EndpointFlag.SIGNAL in flags and EndpointFlag.FULLMESH in flags:
        raise ValueError("signal and fullmesh exclude each other: fullmesh is for subflows")
    return flags


FlagNames = Annotated[list[str], Meta(extra={"check": endpoint_flags})]
"""In a configuration: flags by their names."""
