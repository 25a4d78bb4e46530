# SPDX-License-Identifier: BSD-3-Clause
"""Everything the core can ask for, as plain records.

Each command carries the reason for it in words.  Those under "the kernel's path
managers" become one generic netlink request each (include/uapi/linux/mptcp_pm.h);
those under "the daemon itself" never leave user space.
"""

from typing import Annotated

from msgspec import Meta, Struct

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.endpoints import EndpointFlag

Token = Annotated[int, Meta(ge=0, le=2**32 - 1)]
AddressId = Annotated[int, Meta(ge=0, le=255)]
Port = Annotated[int, Meta(ge=0, le=2**16 - 1)]
IfIndex = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Limit = Annotated[int, Meta(ge=0, le=2**32 - 1)]
"""What the attributes of include/uapi/linux/mptcp_pm.h can hold."""

MANUAL = "manual command"
"""The author of an operator's commands; no plugin can have this name, since it holds a space."""


class Command(Struct, frozen=True, kw_only=True, tag=True, tag_field="command"):
    """Base of all commands."""

    reason: str
    """Why, in one line for a person."""
    routine: bool = False
    """No news to a person, such as one of many trials: logged only for debugging."""


# --- the kernel's path managers: one connection (userspace mode)


class CreateSubflow(Command, frozen=True):
    """MPTCP_PM_CMD_SUBFLOW_CREATE: joins a connection from an address of ours (RFC 8684, 3.2).

    Only after ConnectionEstablished (ENOTCONN before), and only in a connection that began in
    userspace mode (EINVAL).  The kernel answers before the handshake: SubflowEstablished tells
    of the join, or SubflowClosed that the peer refused it.  It applies no limit of subflows.
    """

    token: Token
    local_ip: str
    """The kernel chooses the port."""
    local_id: AddressId
    """As the connection knows the address already, or one that is free there: 1…255, for 0 is the
    initial address.  EINVAL for another pair of address and id than the connection has."""
    remote: SockAddr
    """Another port than the connection's must have been announced by the peer."""
    remote_id: AddressId = 0
    """As announced by the peer; 0 is its initial address, or not known."""
    if_index: IfIndex = 0
    """0 leaves the interface to the routes."""
    backup: bool = False
    """Asks the peer, in the SYN, to send on it only while no other subflow can."""


class DestroySubflow(Command, frozen=True):
    """MPTCP_PM_CMD_SUBFLOW_DESTROY: closes a subflow of a connection in userspace mode.

    The initial one too.  What it has not delivered is sent again on the others.  ESRCH if there is
    no such subflow.
    """

    token: Token
    local: SockAddr
    """With its port, as SubflowEstablished tells it: 0 is EINVAL."""
    remote: SockAddr
    """With its port as well."""


class SetBackup(Command, frozen=True):
    """MPTCP_PM_CMD_SET_FLAGS with a token: sends MP_PRIO for one subflow (RFC 8684, 3.3.8).

    In userspace mode.  The peer then sends on it only while no other subflow can (or as on any
    other again); so do we on kernels from 6.11 on.
    """

    token: Token
    local: SockAddr
    """With its port."""
    remote: SockAddr
    """With its port."""
    backup: bool
    """False makes it like the others again."""


class AnnounceAddress(Command, frozen=True):
    """MPTCP_PM_CMD_ANNOUNCE: sends ADD_ADDR (RFC 8684, 3.4.1), in userspace mode.

    What was announced under an id is announced again as it was, or withdrawn first (EINVAL).
    """

    token: Token
    ip: str
    address_id: AddressId
    """1…255: 0, the initial address, is EINVAL."""
    port: Port = 0
    """Where the peer is to join; 0 names none, and it takes the connection's own."""
    listen: bool = False
    """The daemon listens at the port, so that joins find a door, until the address is withdrawn
    or the connection ends; with port 0 at one that the kernel chooses, which is announced.
    `PmClient` alone does not listen."""
    if_index: IfIndex = 0
    """0 if it is bound to no interface."""


class WithdrawAddress(Command, frozen=True):
    """MPTCP_PM_CMD_REMOVE: sends REMOVE_ADDR (RFC 8684, 3.4.2), in userspace mode.

    The peer closes the subflows of that id, and so do we.  EINVAL if nothing was announced or
    created under it.
    """

    token: Token
    address_id: AddressId


# --- the kernel's path managers: endpoints and limits (in-kernel mode)


class AddEndpoint(Command, frozen=True):
    """MPTCP_PM_CMD_ADD_ADDR: an address that the in-kernel path manager may use.

    In all its connections of the namespace, also those that live; connections in userspace mode
    do not look at it.  Linux tells EEXIST (address), EBUSY (id) and ERANGE (8 are there) apart,
    6.1 says EINVAL to all three.
    """

    ip: str
    address_id: AddressId = 0
    """0 lets the kernel choose."""
    flags: EndpointFlag = EndpointFlag.SUBFLOW
    """Without any, the endpoint only gives its address an id and its subflows their flags."""
    if_index: IfIndex = 0
    """0 binds it to no interface."""
    port: Port = 0
    """Announced with it, with flag signal alone, and listened at by the kernel; 0 names none."""


class RemoveEndpoint(Command, frozen=True):
    """MPTCP_PM_CMD_DEL_ADDR: takes an endpoint back, in-kernel mode.

    Its subflows are closed and its announcements withdrawn, a connection's last subflow among
    them.  The kernel takes some 8 ms.  EINVAL if there is none of that id.
    """

    address_id: AddressId
    ip: str = ""
    """Needed only for address id 0."""


class ChangeEndpoint(Command, frozen=True):
    """MPTCP_PM_CMD_SET_FLAGS: sets or clears backup and fullmesh of an endpoint, and with it of its
    subflows, in-kernel mode."""

    address_id: AddressId
    ip: str
    """The endpoint's: Linux 6.1 finds it by nothing else."""
    flags: EndpointFlag
    """What is neither backup nor fullmesh stays as it is."""


class FlushEndpoints(Command, frozen=True):
    """MPTCP_PM_CMD_FLUSH_ADDRS: removes all endpoints of the namespace, whoever made them.

    Their subflows are closed and their announcements withdrawn, as by RemoveEndpoint.
    """


class SetLimits(Command, frozen=True):
    """MPTCP_PM_CMD_SET_LIMITS: both limits of the in-kernel path manager.

    They hold per connection, from now on, also in connections that live; subflows above a limit
    stay.  Userspace mode knows none.  EINVAL above what the kernel
    allows: 8, or 64 on Linux 7.3.
    """

    subflows: Limit
    """Subflows beside the initial one."""
    add_addr_accepted: Limit
    """Announced addresses that are joined; 0 joins none."""


# --- the daemon itself


class RequestSample(Command, frozen=True):
    """Asks for a Sampled event with the exact present values."""

    with_owners: bool = False
    """Also who owns each connection, where that takes a look at every process."""


class ReadEndpoints(Command, frozen=True):
    """Asks for an EndpointsRead event: the in-kernel path manager's table as it is now."""


class WakeAt(Command, frozen=True):
    """Asks for the plugin's `wake` handler at `at` (CLOCK_MONOTONIC nanoseconds).

    With a token, for its `wake_connection` handler, unless the connection is closed by then.
    """

    at: int
    token: Token | None = None


TableCommand = AddEndpoint | RemoveEndpoint | ChangeEndpoint | FlushEndpoints | SetLimits

ConnectionCommand = CreateSubflow | DestroySubflow | SetBackup | AnnounceAddress | WithdrawAddress

KernelCommand = ConnectionCommand | TableCommand

AnyCommand = KernelCommand | RequestSample | ReadEndpoints | WakeAt


class Cause(Struct, frozen=True, kw_only=True):
    """What led to a decision."""

    seq: int
    """The number of the event (`Record.seq`)."""
    event: str
    """Its type: ``AlarmRaised`` …"""
    rule: str
    """The plugin handler, or the rule of the core, that answered it."""


class Decision(Struct, frozen=True, kw_only=True):
    """A command that the engine let through or refused, with its author and its cause."""

    id: int
    at: int
    """CLOCK_MONOTONIC, nanoseconds."""
    plugin: str
    cause: Cause
    command: AnyCommand
    refused: str | None = None
    """Why the engine kept it from the kernel, None if it did not."""
