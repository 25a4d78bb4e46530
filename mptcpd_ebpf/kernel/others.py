# SPDX-License-Identifier: BSD-3-Clause
"""Other path managers in the same network namespace, by name. Two managers in one namespace undo
each other's work. A subscriber of `mptcp_pm_events` manages connections or watches them;
NetworkManager and mptcpd may set endpoints without subscribing.  Subscribers are read from the
kernel's netlink socket list: netlink_diag, which shows all groups, or /proc/net/netlink, which
shows the first 32 (kernel: net/netlink/diag.c, af_netlink.c).
"""

import os
from collections.abc import Collection, Iterator
from struct import Struct
from typing import NamedTuple

from mptcpd_ebpf.kernel.generic import Family, family
from mptcpd_ebpf.kernel.netlink import Request, attributes
from mptcpd_ebpf.kernel.owners import comm, owners
from mptcpd_ebpf.kernel.pm import EVENT_GROUP, FAMILY
from mptcpd_ebpf.kernel.transport import NETLINK_GENERIC, NETLINK_SOCK_DIAG, Requester
from mptcpd_ebpf.runtime import netns, open_files

_SOCK_DIAG_BY_FAMILY = 20
_AF_NETLINK = 16
_NDIAG_SHOW_GROUPS = 0x2
_NETLINK_DIAG_GROUPS = 1
_REQUEST = Struct("=BBHIIII")
"""netlink_diag_req: family, protocol, padding, inode, what to show, cookie."""
_SOCKET = Struct("=BBBBIIIIII")
"""netlink_diag_msg: family, type, protocol, state, port, peer's port and group, inode, cookie."""

_KNOWN = {
    "mptcpd": "stop it: systemctl disable --now mptcp.service",
    "NetworkManager": (
        "keep it from setting endpoints: connection.mptcp-flags=disabled (0x1) on the "
        "connections, or in NetworkManager.conf"
    ),
}
"""Commands known to manage MPTCP endpoints, by the first 15 letters the kernel keeps of a name."""


class Manager(NamedTuple):
    """Another process that manages, or listens to, this namespace's MPTCP."""

    pid: int | None
    """None if the process cannot be seen from here."""
    comm: str | None
    subscribed: bool
    """It is subscribed to the path-manager events."""
    advice: str
    """What to do about it, one line."""


def others(ours: Collection[int] = ()) -> list[Manager]:
    """All that can be seen, without this process and those in `ours`, and without their sockets,
    which the service manager may hold too.  Empty on a kernel without MPTCP."""
    with Requester(NETLINK_GENERIC) as requester:
        found = requester.run(family(FAMILY))
    if found is None:
        return []
    managers = {}
    known_pids = {os.getpid(), *ours}
    inodes = _subscribed_inodes(found)
    for each in known_pids:
        inodes -= {inode for _mount, inode in open_files.visible(each)}
    known = owners(inodes)
    for inode in sorted(inodes):
        owner = known.get(inode)
        pid = owner.pid if owner else None
        if pid not in known_pids:
            name = owner.comm if owner else None
            managers[pid if pid is not None else -inode] = Manager(
                pid, name, True, _KNOWN.get(name or "", "it may give orders of its own")
            )
    for pid, name in _known_processes():
        managers.setdefault(pid, Manager(pid, name, False, _KNOWN[name]))
    return list(managers.values())


def _subscribed_inodes(mptcp: Family) -> set[int]:
    group = mptcp.groups[EVENT_GROUP]
    with Requester(NETLINK_SOCK_DIAG) as requester:
        body = _REQUEST.pack(_AF_NETLINK, NETLINK_GENERIC, 0, 0, _NDIAG_SHOW_GROUPS, 0, 0)
        reply = requester.ask(Request(_SOCK_DIAG_BY_FAMILY, body, dump=True, fixed=_REQUEST.size))
    if reply.errno == 0:
        return {inode for part in reply.parts for inode in _with_group(part, group)}
    with open(f"{netns.THREAD_NET}/netlink", encoding="ascii") as file:
        return parse_proc(file.read(), group)


def _with_group(part: bytes, group: int) -> Iterator[int]:
    inode = _SOCKET.unpack_from(part)[7]
    groups = attributes(part, _SOCKET.size, len(part)).get(_NETLINK_DIAG_GROUPS, b"")
    byte, bit = divmod(group - 1, 8)
    if byte < len(groups) and groups[byte] >> bit & 1:
        yield inode


def parse_proc(text: str, group: int) -> set[int]:
    """Inodes of generic netlink sockets in `group`, from /proc/net/netlink.

    That file shows groups 1 to 32 only; subscribers of higher groups are not listed.
    """
    if group > 32:
        return set()
    rows = (line.split() for line in text.splitlines()[1:])
    return {
        int(row[9])
        for row in rows
        if int(row[1]) == NETLINK_GENERIC and int(row[3], 16) >> (group - 1) & 1
    }


def _known_processes() -> Iterator[tuple[int, str]]:
    """Processes of this namespace that are known to manage endpoints."""
    here = netns.inode()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            pid = int(entry)
            name = comm(pid)
            if name in _KNOWN and netns.inode_of(pid) == here:
                yield pid, name
