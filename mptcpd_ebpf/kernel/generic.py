# SPDX-License-Identifier: BSD-3-Clause
"""Generic netlink: the numbers that this kernel gave a family and its multicast groups.

(kernel: include/uapi/linux/genetlink.h, net/netlink/genetlink.c)
"""

import errno
from typing import NamedTuple

from mptcpd_ebpf.kernel.errors import KernelError, errno_words
from mptcpd_ebpf.kernel.netlink import (
    GENERIC_HEADER,
    Operation,
    Request,
    attribute,
    attributes,
    number,
)

_GENL_ID_CTRL = 16
_CTRL_CMD_GETFAMILY = 3
_CTRL_ATTR_FAMILY_ID = 1
_CTRL_ATTR_FAMILY_NAME = 2
_CTRL_ATTR_MCAST_GROUPS = 7
_CTRL_ATTR_MCAST_GRP_NAME = 1
_CTRL_ATTR_MCAST_GRP_ID = 2


class Family(NamedTuple):
    """A generic netlink family."""

    id: int
    """Message type of its messages."""
    groups: dict[str, int]
    """Multicast group numbers by name."""


def family(name: str) -> Operation[Family | None]:
    """Asks for the family; the result is None if this kernel has none of that name."""
    body = GENERIC_HEADER.pack(_CTRL_CMD_GETFAMILY, 1, 0) + attribute(
        _CTRL_ATTR_FAMILY_NAME, name.encode() + b"\0"
    )
    reply = yield Request(_GENL_ID_CTRL, body, fixed=GENERIC_HEADER.size)
    if reply.errno == errno.ENOENT:
        return None
    if reply.errno or not reply.parts:
        raise KernelError(f"generic netlink family {name}: {errno_words(reply.errno)}")
    part = reply.parts[0]
    found = attributes(part, GENERIC_HEADER.size, len(part))
    groups: dict[str, int] = {}
    listed = found.get(_CTRL_ATTR_MCAST_GROUPS, b"")
    for entry in attributes(listed, 0, len(listed)).values():
        group = attributes(entry, 0, len(entry))
        label = group[_CTRL_ATTR_MCAST_GRP_NAME].rstrip(b"\0").decode()
        groups[label] = number(group[_CTRL_ATTR_MCAST_GRP_ID])
    return Family(number(found[_CTRL_ATTR_FAMILY_ID]), groups)
