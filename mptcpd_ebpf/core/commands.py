# SPDX-License-Identifier: BSD-3-Clause
"""Everything the core can request, as plain records.

Each command carries its reason in words.  Those under "the kernel's path
managers" become one generic netlink request each (include/uapi/linux/mptcp_pm.h);
those under "the daemon itself" never leave user space.
"""

from typing import Annotated

from msgspec import Meta, Struct

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.endpoints import EndpointFlag
from mptcpd_ebpf.core.roles import Role

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
    """Why, in one line."""
    routine: bool = False
    """One of many, such as a path probe: logged only for debugging."""


# --- the kernel's path managers: one connection (userspace mode)


class CreateSubflow(Command, frozen=True):
    """MPTCP_PM_CMD_SUBFLOW_CREATE: joins a connection from an address of ours (RFC 8684, 3.2).

    Only after ConnectionEstablished (ENOTCONN before), and only in a connection that began in
    userspace mode (EINVAL).  The kernel answers before the handshake: SubflowEstablished reports
    that the join succeeded, SubflowClosed that the peer refused it. No limit of subflows applies.
    """

    token: Token
    local_ip: str
    """The kernel chooses the port."""
    local_id: AddressId
    """The id under which the connection knows the address, or a free one: 1…255, since 0 is the
    initial address. EINVAL if it contradicts the connection's."""
    remote: SockAddr
    """Another port than the connection's must have been announced by the peer."""
    remote_id: AddressId = 0
    """As announced by the peer; 0 is its initial address, or not known."""
    if_index: IfIndex = 0
    """0: the routes choose the interface."""
    backup: bool = False
    """Asks the peer, in the SYN, to send on it only while no other subflow can carry data."""


class DestroySubflow(Command, frozen=True):
    """MPTCP_PM_CMD_SUBFLOW_DESTROY: closes a subflow of a connection in userspace mode.

    The initial one too. Unacknowledged data is sent again on the other subflows.  ESRCH if there is
    no such subflow.
    """

    token: Token
    local: SockAddr
    """With its port, as in SubflowEstablished: 0 is EINVAL."""
    remote: SockAddr
    """With its port as well."""


class SetBackup(Command, frozen=True):
    """MPTCP_PM_CMD_SET_FLAGS with a token: sends MP_PRIO for one subflow (RFC 8684, 3.3.8).

    In userspace mode.  The peer then sends on it only while no other subflow can carry data; this
    host does the same from Linux 6.11 on.
    """

    token: Token
    local: SockAddr
    """With its port."""
    remote: SockAddr
    """With its port."""
    backup: bool
    """False clears the flag."""


class AnnounceAddress(Command, frozen=True):
    """MPTCP_PM_CMD_ANNOUNCE: sends ADD_ADDR (RFC 8684, 3.4.1), in userspace mode.

    An id that was announced is announced again unchanged, or withdrawn first (else EINVAL).
    """

    token: Token
    ip: str
    address_id: AddressId
    """1…255: 0, the initial address, is EINVAL."""
    port: Port = 0
    """The port the peer joins; 0: none is named, and the peer uses the connection's."""
    listen: bool = False
    """The daemon listens on the port until the address is withdrawn or the connection is closed,
    so that joins are accepted. With port 0 the kernel chooses one, which is announced. `PmClient`
    alone does not listen."""
    if_index: IfIndex = 0
    """0 if it is bound to no interface."""


class WithdrawAddress(Command, frozen=True):
    """MPTCP_PM_CMD_REMOVE: sends REMOVE_ADDR (RFC 8684, 3.4.2), in userspace mode.

    Both sides close the subflows of that id.  EINVAL if nothing was announced or
    created under it.
    """

    token: Token
    address_id: AddressId


# --- the kernel's path managers: endpoints and limits (in-kernel mode)


class AddEndpoint(Command, frozen=True):
    """MPTCP_PM_CMD_ADD_ADDR: an address that the in-kernel path manager may use.

    It applies to all connections of the namespace that are in in-kernel mode, including those that
    exist. Errors: EEXIST (address), EBUSY (id), ERANGE (8 exist); Linux 6.1 returns EINVAL for all
    three.
    """

    ip: str
    address_id: AddressId = 0
    """0 lets the kernel choose."""
    flags: EndpointFlag = EndpointFlag.SUBFLOW
    """Without flags, the endpoint only assigns an id to its address."""
    if_index: IfIndex = 0
    """0 binds it to no interface."""
    port: Port = 0
    """With flag signal: announced with the address, and the kernel listens on it; 0: none."""


class RemoveEndpoint(Command, frozen=True):
    """MPTCP_PM_CMD_DEL_ADDR: removes an endpoint, in-kernel mode.

    Its subflows are closed and its announcements withdrawn, a connection's last subflow among
    them.  It takes some 8 ms. EINVAL if no endpoint has that id.
    """

    address_id: AddressId
    ip: str = ""
    """Needed only for address id 0."""


class ChangeEndpoint(Command, frozen=True):
    """MPTCP_PM_CMD_SET_FLAGS: sets or clears backup and fullmesh of an endpoint, and with it of its
    subflows, in-kernel mode."""

    address_id: AddressId
    ip: str
    """The endpoint's: Linux 6.1 finds it by its address only."""
    flags: EndpointFlag
    """Flags other than backup and fullmesh stay unchanged."""


class FlushEndpoints(Command, frozen=True):
    """MPTCP_PM_CMD_FLUSH_ADDRS: removes all endpoints of the namespace, including those of other
    programs.

    Their subflows are closed and their announcements withdrawn, as by RemoveEndpoint.
    """


class SetLimits(Command, frozen=True):
    """MPTCP_PM_CMD_SET_LIMITS: both limits of the in-kernel path manager.

    They apply per connection from now on, including existing connections; subflows above a limit
    stay. They do not apply in userspace mode.  EINVAL above what the kernel allows: 8, or 64 on
    Linux 7.3.
    """

    subflows: Limit
    """Subflows beside the initial one."""
    add_addr_accepted: Limit
    """Announced addresses that are joined; 0 joins none."""


# --- the daemon itself


class RequestSample(Command, frozen=True):
    """Asks for a Sampled event with the exact present values."""

    with_owners: bool = False
    """Also find the owner of each connection, which reads every process."""
    urgent: bool = False
    """Commands wait for it: it is taken at once, also if the last one took long."""


class ReadEndpoints(Command, frozen=True):
    """Asks for an EndpointsRead event: the in-kernel path manager's table as it is now."""


class ProbePath(Command, frozen=True):
    """Sends one SYN over a path, whose answer shows that the path works; no subflow is created.

    The plugin's `path_probed` handler gets the RTT, or None if nothing came within `within`.
    `answered` tells that it could not be sent: EPERM without CAP_NET_RAW, ENETUNREACH without a
    route. See docs/kernel.md for what the packet looks like.
    """

    local_ip: str
    remote: SockAddr
    """A connection's peer, where a SYN is answered."""
    within: Annotated[int, Meta(ge=1, le=10_000_000_000)]
    """Nanoseconds after which it counts as unanswered."""
    if_index: IfIndex = 0
    """0: the routes choose the interface."""
    full_size: bool = False
    """As large as the path's largest data segments, and not to be fragmented; otherwise without
    payload."""


class WakeAt(Command, frozen=True):
    """Asks for the plugin's `wake` handler at `at` (CLOCK_MONOTONIC nanoseconds).

    With a token, for its `wake_connection` handler, unless the connection is closed by then.
    """

    at: int
    token: Token | None = None


class SteerNewConnections(Command, frozen=True):
    """Starts new TCP and MPTCP connections of one family on another path than the default route's.

    Only to destinations that the default route leads to, and not those whose application bound
    its socket. Connections that exist stay where they are.
    """

    ipv6: bool
    local_ip: str | None = None
    """Where they start; None: the routes choose, as without the daemon."""
    interface: str = ""
    """The name of the interface of `local_ip`, to which their sockets are bound."""


class ReportPath(Command, frozen=True):
    """Records in the model what the plugin uses a path for (`World.paths`).

    Nothing is sent to the kernel. `core.paths.report_path` makes one for each change. `reason` is
    the cause of the state, not of the report.
    """

    local_ip: str
    remote_ip: str
    state: Role | None
    """None: the plugin does not know any more, and probes it no longer."""
    interface: str | None = None
    """Name of the interface that has the local address; None if none has it any more."""
    probes_answered: int = 0
    """Consecutive probes that were answered in time, while it is away…"""
    probes_needed: int = 0
    """…and how many end its absence."""
    lasted: int = 0
    """How long the former state lasted, nanoseconds; 0 if the report does not change the state."""


TableCommand = AddEndpoint | RemoveEndpoint | ChangeEndpoint | FlushEndpoints | SetLimits

ConnectionCommand = CreateSubflow | DestroySubflow | SetBackup | AnnounceAddress | WithdrawAddress

KernelCommand = ConnectionCommand | TableCommand

ActingCommand = KernelCommand | SteerNewConnections
"""What changes something in the kernel, and is answered at once."""

OwnCommand = RequestSample | ReadEndpoints | ReportPath
"""Commands that become decisions and never leave the daemon: no `CommandAnswered` follows."""

AnyCommand = KernelCommand | OwnCommand | ProbePath | SteerNewConnections | WakeAt


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
    """Why the engine did not send it to the kernel; None if it did."""
    waited: int = 0
    """Nanoseconds for which the budget held it back before that."""


class HeldBack(Struct, frozen=True, kw_only=True):
    """Commands of one author on one path that had to wait, within one second."""

    plugin: str
    path: str
    """In words, with the interface if it is known."""
    count: int
    """Held back within that second."""
    waiting: int
    """All that wait now."""
    per_second: int
    """What the budget lets pass."""
