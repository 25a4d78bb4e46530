# SPDX-License-Identifier: BSD-3-Clause
"""Joins that would leave by another interface than that of their address.

Linux 6.1 takes no interface with SUBFLOW_CREATE (mptcp_nl_cmd_sf_create in
net/mptcp/pm_userspace.c reads the address alone): it routes the join as any packet from that
address.  Rules and routes are often created a moment after the address, and some hosts have none
for it. The subflow then permanently uses a path that another one has already.
"""

import errno
import socket

from mptcpd_ebpf.core.commands import CreateSubflow
from mptcpd_ebpf.core.names import printable
from mptcpd_ebpf.kernel import route_messages as rt
from mptcpd_ebpf.kernel.pm_client import CommandAnswer
from mptcpd_ebpf.kernel.transport import NETLINK_ROUTE, Requester


def detour(command: CreateSubflow) -> CommandAnswer | None:
    """The refusal of a join whose route leads to another interface than the named one. None if it
    leads there, or if there is no route, which the kernel reports itself.
    """
    if not command.if_index:
        return None
    with Requester(NETLINK_ROUTE) as requester:
        reply = requester.ask(rt.find_route(command.local_ip, command.remote.ip))
    leaves_by = next(map(rt.out_interface, reply.parts), None)
    if leaves_by in (None, command.if_index):
        return None
    return CommandAnswer(
        errno.ENETUNREACH,
        f"the route from {command.local_ip} to {command.remote.ip} leaves by {_name(leaves_by)} "
        f"and not by {_name(command.if_index)}, to which this kernel binds no join: "
        f"give the address a rule and a table of its own ('ip rule add from {command.local_ip}')",
    )


def _name(if_index: int | None) -> str:
    try:
        return printable(socket.if_indextoname(if_index or 0))
    except OSError:  # it went meanwhile
        return f"interface {if_index}"
