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

BY_HAND = "by hand"
"""Stands for a plugin's name where a person asked; no plugin can have it, for its space."""


class Command(Struct, frozen=True, kw_only=True, tag=True, tag_field="command"):
    """Base of all commands."""

    reason: str
    """Why, in one line for a person."""
    routine: bool = False
    """No news to a person, such as one of many trials: logged only for debugging."""


# --- the kernel's path managers: one connection (userspace mode)


class CreateSubflow(Command, frozen=True):
    token: Token
    local_ip: str
    local_id: AddressId
    remote: SockAddr
    remote_id: AddressId = 0
    if_index: IfIndex = 0
    backup: bool = False


class DestroySubflow(Command, frozen=True):
    token: Token
    local: SockAddr
    remote: SockAddr


class SetBackup(Command, frozen=True):
    """Sends MP_PRIO for one subflow (RFC 8684, 3.3.8)."""

    token: Token
    local: SockAddr
    remote: SockAddr
    backup: bool


class AnnounceAddress(Command, frozen=True):
    """Sends ADD_ADDR (RFC 8684, 3.4.1)."""

    token: Token
    ip: str
    address_id: AddressId
    port: Port = 0
    """Where the peer is to join; 0 names none, and it takes the connection's own."""
    listen: bool = False
    """The daemon listens at the port, so that joins find a door, until the address is withdrawn
    or the connection ends; with port 0 at one that the kernel chooses, which is announced.
    `PmClient` alone does not listen."""
    if_index: IfIndex = 0


class WithdrawAddress(Command, frozen=True):
    """Sends REMOVE_ADDR (RFC 8684, 3.4.2): the peer closes the subflows of that id."""

    token: Token
    address_id: AddressId


# --- the kernel's path managers: endpoints and limits (in-kernel mode)


class AddEndpoint(Command, frozen=True):
    ip: str
    address_id: AddressId = 0
    """0 lets the kernel choose."""
    flags: EndpointFlag = EndpointFlag.SUBFLOW
    if_index: IfIndex = 0
    port: Port = 0


class RemoveEndpoint(Command, frozen=True):
    address_id: AddressId
    ip: str = ""
    """Needed only for address id 0."""


class ChangeEndpoint(Command, frozen=True):
    """Sets or clears backup and fullmesh of an endpoint, and with it of its subflows."""

    address_id: AddressId
    ip: str
    flags: EndpointFlag


class FlushEndpoints(Command, frozen=True):
    pass


class SetLimits(Command, frozen=True):
    subflows: Limit
    add_addr_accepted: Limit


# --- the daemon itself


class RequestSample(Command, frozen=True):
    """Asks for a Sampled event with the exact present values."""

    with_owners: bool = False
    """Also who owns each connection, where that takes a look at every process."""


class ReadEndpoints(Command, frozen=True):
    """Asks for an EndpointsRead event: the in-kernel path manager's table as it is now."""


class WakeAt(Command, frozen=True):
    """Asks for the plugin's `wake` handler at `at` (CLOCK_MONOTONIC nanoseconds)."""

    at: int


TableCommand = AddEndpoint | RemoveEndpoint | ChangeEndpoint | FlushEndpoints | SetLimits

ConnectionCommand = CreateSubflow | DestroySubflow | SetBackup | AnnounceAddress | WithdrawAddress

KernelCommand = ConnectionCommand | TableCommand

AnyCommand = KernelCommand | RequestSample | ReadEndpoints | WakeAt


class Decision(Struct, frozen=True, kw_only=True):
    """A command that the engine let through or refused, with its author."""

    id: int
    at: int
    """CLOCK_MONOTONIC, nanoseconds."""
    plugin: str
    command: AnyCommand
    refused: str | None = None
    """Why the engine kept it from the kernel, None if it did not."""
