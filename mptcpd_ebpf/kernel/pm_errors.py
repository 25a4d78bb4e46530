# SPDX-License-Identifier: BSD-3-Clause
"""Explains why the kernel refused a path-manager command. The kernel answers with an errno and
usually a short message; neither says what to do.  The tables below were read from
net/mptcp/pm_userspace.c, pm_kernel.c, pm_netlink.c and subflow.c: first what its messages mean,
then what an errno without a message means.
"""

import errno

from mptcpd_ebpf.kernel.errors import errno_words
from mptcpd_ebpf.kernel.pm import USERSPACE_NOT_SELECTED, Answer, Cmd

_WHAT = {
    Cmd.ADD_ADDR: "adding the endpoint",
    Cmd.DEL_ADDR: "removing the endpoint",
    Cmd.GET_ADDR: "reading the endpoints",
    Cmd.FLUSH_ADDRS: "flushing the endpoints",
    Cmd.SET_LIMITS: "setting the limits",
    Cmd.GET_LIMITS: "reading the limits",
    Cmd.SET_FLAGS: "changing the flags",
    Cmd.ANNOUNCE: "announcing the address",
    Cmd.REMOVE: "withdrawing the address",
    Cmd.SUBFLOW_CREATE: "creating the subflow",
    Cmd.SUBFLOW_DESTROY: "destroying the subflow",
}

_TOKEN = "no connection of this namespace has that token: it has closed, or never was there"
_MODE = (
    "the connection was created under the in-kernel path manager, and the mode of a connection "
    "never changes: only connections made after net.mptcp.path_manager=userspace can be managed"
)
_ID = (
    "this connection knows the address under another id, or the id for another address: "
    "use the pair it knows, or withdraw that one first"
)

_BY_MESSAGE = (
    # (what the kernel's message begins with, what it means)
    ("invalid token", _TOKEN),
    (f"invalid request; {USERSPACE_NOT_SELECTED}", _MODE),
    (USERSPACE_NOT_SELECTED, _MODE),
    ("did not match address and id", _ID),
    ("invalid addr id", "an announced address needs an id from 1 to 255"),
    (
        "address with id 0 not found",
        "no subflow of the connection has the address of its start any more",
    ),
    ("missing local or remote port", "both ports are needed to name a subflow"),
    ("families mismatch", "one address is IPv4 and the other IPv6, or the socket takes only one"),
    ("address families do not match", "one address is IPv4 and the other IPv6"),
    ("limit greater than maximum", "ask for less"),
    ("flags must have signal", "an endpoint with a port is announced, never a source of subflows"),
    ("flags mustn't have both signal and fullmesh", "fullmesh is for subflow endpoints"),
    ("can't create IMPLICIT endpoint", "only the kernel makes implicit endpoints"),
)

_UNREACHABLE = "there is no route from that local address to the peer"
_BY_ERRNO = {
    (Cmd.SUBFLOW_CREATE, errno.ENOTCONN): (
        "the connection is not fully established: wait for its ESTABLISHED event"
    ),
    (Cmd.SUBFLOW_CREATE, errno.EADDRNOTAVAIL): "the local address is not on this host (any more)",
    (Cmd.SUBFLOW_CREATE, errno.EADDRINUSE): "that local address and port are taken",
    (Cmd.SUBFLOW_CREATE, errno.ENETUNREACH): _UNREACHABLE,
    (Cmd.SUBFLOW_CREATE, errno.EHOSTUNREACH): _UNREACHABLE,
    (Cmd.SUBFLOW_CREATE, errno.ENODEV): "there is no interface with that index",
    (Cmd.SUBFLOW_CREATE, errno.EINVAL): (
        "the local address does not fit the interface or the peer's address"
    ),
    (Cmd.SUBFLOW_DESTROY, errno.ESRCH): (
        "the connection has no subflow between these addresses and ports: it has closed"
    ),
    (Cmd.REMOVE, errno.EINVAL): "nothing was announced or created under that id",
    (Cmd.SET_FLAGS, errno.EINVAL): (
        "there is no such endpoint; or, for one connection: it has closed, is not in userspace "
        "mode, or has no subflow between these addresses"
    ),
    (Cmd.ADD_ADDR, errno.EEXIST): "this address has an endpoint already",
    (Cmd.ADD_ADDR, errno.EBUSY): "this address id is another endpoint's",
    (Cmd.ADD_ADDR, errno.ERANGE): (
        "the kernel's endpoint table is full: remove an endpoint first (`mptcpd-ebpf endpoint del`)"
    ),
    # Linux 6.1 does not distinguish the next three.
    (Cmd.ADD_ADDR, errno.EINVAL): (
        "the address or the address id is an endpoint's already, or the kernel's endpoint table "
        "is full (`mptcpd-ebpf endpoint show`)"
    ),
    (Cmd.ADD_ADDR, errno.EADDRINUSE): "something listens on that address and port already",
    (Cmd.ADD_ADDR, errno.EADDRNOTAVAIL): "the address is not on this host",
    (Cmd.DEL_ADDR, errno.EINVAL): "there is no endpoint with that address id",
    (Cmd.GET_ADDR, errno.EOPNOTSUPP): (
        "this kernel (before 6.10) does not tell the addresses of one connection"
    ),
    (Cmd.GET_ADDR, errno.EINVAL): "there is no endpoint with that address id",
    (Cmd.SET_LIMITS, errno.EINVAL): "this kernel allows at most 8",
}
_ANY_COMMAND = {
    errno.EPERM: "CAP_NET_ADMIN is needed in the user namespace that owns this network namespace",
    errno.ENOMEM: "the socket's memory is used up",
    errno.ETIMEDOUT: "ask again",
    errno.EOPNOTSUPP: (
        "this kernel does not know the command: commands for one connection need Linux 5.19"
    ),
}


def explain(answer: Answer) -> str:
    """One line: what failed, the kernel's message, and what that means. Empty for success."""
    reply = answer.reply
    if reply.errno == 0:
        return ""
    means = next(
        (words for start, words in _BY_MESSAGE if reply.message.startswith(start)),
        _BY_ERRNO.get((answer.command, reply.errno)) or _ANY_COMMAND.get(reply.errno, ""),
    )
    said = f": {reply.message}" if reply.message else ""
    return f"{_WHAT[answer.command]}: {errno_words(reply.errno)}{said}" + (
        f"; {means}" if means else ""
    )
