# SPDX-License-Identifier: BSD-3-Clause
"""What nobody may do: take a connection's last usable subflow.

The guard checks each destructive command before it is sent. It takes into account those that
passed and that the kernel has not yet carried out, so that two commands in one turn cannot together
do what neither may do alone.

Commands on endpoints touch every connection of the namespace: the kernel closes or demotes
all subflows of an endpoint's address, the initial one too (net/mptcp/pm_kernel.c).  Only
an address that is no longer on this host carries nothing that could be lost, and a
connection that the userspace path manager has is passed over.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from mptcpd_ebpf.core.commands import (
    ChangeEndpoint,
    Command,
    DestroySubflow,
    FlushEndpoints,
    ProbePath,
    RemoveEndpoint,
    SetBackup,
    SteerNewConnections,
    WithdrawAddress,
)
from mptcpd_ebpf.core.endpoints import EndpointFlag
from mptcpd_ebpf.core.model import SECOND, Connection, Subflow, SubflowKey, World

SETTLE = SECOND
"""Nanoseconds after which a destruction that no event confirmed is no longer counted."""

Taking = SetBackup | DestroySubflow | WithdrawAddress
"""Commands that take subflows of one connection off their path."""

TableTaking = RemoveEndpoint | FlushEndpoints | ChangeEndpoint
"""Commands that do so in every connection of the namespace."""


def is_destructive(command: Command) -> bool:
    """Whether a command can make a connection worse; restoring and joining cannot."""
    match command:
        case SetBackup():
            return command.backup
        case ChangeEndpoint():
            return EndpointFlag.BACKUP in command.flags
        case _:
            return isinstance(
                command, DestroySubflow | WithdrawAddress | RemoveEndpoint | FlushEndpoints
            )


_OTHER: dict[type[Command], type[Command]] = {
    DestroySubflow: WithdrawAddress,
    WithdrawAddress: DestroySubflow,
}
"""Of the two commands that together close a subflow and tell the peer: the other one."""


@dataclass(slots=True)
class _Leaving:
    """A subflow that a command which has passed takes off its path."""

    until: int
    taken_by: dict[type[Command], None] = field(default_factory=dict)


class Guard:
    """Refuses what would make a connection worse."""

    def __init__(self) -> None:
        self._leaving: dict[tuple[int, SubflowKey], _Leaving] = {}

    def refusal(self, command: Command, world: World, now: int) -> str | None:
        """Why `command` must not be carried out; None if it may."""
        if isinstance(command, SteerNewConnections):
            return "no plugin decides where new connections start"
        if isinstance(command, ProbePath):
            led = any(_leads_to(each, command.remote.ip) for each in world.connections.values())
            return None if led else "no connection leads there"
        if not is_destructive(command):
            return None
        self._settle_due(now)
        if isinstance(command, Taking):
            return self._refusal_for_one(command, world)
        assert isinstance(command, TableTaking)
        return self._refusal_for_all(command, world)

    def passed(self, command: Command, world: World, now: int) -> None:
        """Counts what a command takes, until the kernel has reported it."""
        if not is_destructive(command):
            return
        kind = type(command)
        if isinstance(command, Taking):
            connection = world.connections[command.token]
            self._let_go(command.token, affected(command, connection), kind, now)
        elif isinstance(command, TableTaking):
            for connection, subflows in self._of_table(command, world):
                self._let_go(connection.token, subflows, kind, now)

    def taken_anew(self, command: Taking, connection: Connection) -> list[Subflow]:
        """The usable subflows that a command takes and no other command has just taken: destroying
        a subflow and withdrawing its address id, in either order, takes it once."""
        return [
            subflow
            for key, subflow in affected(command, connection).items()
            if subflow.usable and not self._is_taken_by_other(command, key)
        ]

    def _is_taken_by_other(self, command: Taking, key: SubflowKey) -> bool:
        leaving = self._leaving.get((command.token, key))
        other = _OTHER.get(type(command))
        return (
            leaving is not None
            and other in leaving.taken_by
            and type(command) not in leaving.taken_by
        )

    def _refusal_for_one(self, command: Taking, world: World) -> str | None:
        connection = world.connections.get(command.token)
        if connection is None:
            return "the connection is gone"
        taken = affected(command, connection)
        if not isinstance(command, WithdrawAddress) and not taken:
            return "the subflow is gone"
        if self._takes_the_last(connection, taken, demoting=isinstance(command, SetBackup)):
            return "it is the last usable subflow of the connection"
        return None

    def _refusal_for_all(self, command: TableTaking, world: World) -> str | None:
        demoting = isinstance(command, ChangeEndpoint)
        for connection, taken in self._of_table(command, world):
            if self._takes_the_last(connection, taken, demoting=demoting):
                return (
                    f"connection {connection.token:08x} has its last usable subflow "
                    f"on {next(iter(taken))[0].ip}"
                )
        return None

    def _of_table(
        self, command: TableTaking, world: World
    ) -> list[tuple[Connection, dict[SubflowKey, Subflow]]]:
        """Which subflows of which connections a command on endpoints takes."""
        affects = _of_endpoints(command, world)
        here = {address.ip for address in world.addresses.values()}
        found = []
        for connection in world.connections.values():
            if connection.in_kernel is False and not _of_all_modes(command):
                continue
            taken = {
                subflow.key: subflow
                for subflow in connection.subflows.values()
                if affects(subflow) and subflow.local.ip in here
            }
            found.append((connection, taken))
        return found

    def _takes_the_last(
        self, connection: Connection, affected: dict[SubflowKey, Subflow], *, demoting: bool
    ) -> bool:
        return any(subflow.usable for subflow in affected.values()) and not any(
            other.usable
            and not (demoting and (other.backup or other.backup_by_peer))
            and (other.token, other.key) not in self._leaving
            for other in connection.subflows.values()
            if other.key not in affected
        )

    def _let_go(
        self, token: int, taken: dict[SubflowKey, Subflow], kind: type[Command], now: int
    ) -> None:
        for key in taken:
            before = self._leaving.pop((token, key), None)
            taken_by = before.taken_by if before is not None else {}
            self._leaving[token, key] = _Leaving(now + SETTLE, taken_by | {kind: None})

    def settled(self, token: int, key: SubflowKey) -> None:
        """The kernel answered, and the model shows the result."""
        self._leaving.pop((token, key), None)

    def _settle_due(self, now: int) -> None:
        # All entries expire SETTLE after they were added, so the earliest come first.
        while self._leaving:
            name, leaving = next(iter(self._leaving.items()))
            if leaving.until > now:
                return
            del self._leaving[name]


def _leads_to(connection: Connection, ip: str) -> bool:
    return (
        connection.remote.ip == ip
        or any(address.ip == ip for address in connection.announced.values())
        or any(remote.ip == ip for _, remote in connection.subflows)
    )


def _of_endpoints(command: TableTaking, world: World) -> Callable[[Subflow], bool]:
    """Which subflows a command on endpoints touches, as far as the table was read."""
    ids, ips = _named(command, world)
    return lambda subflow: subflow.local.ip in ips or subflow.local_id in ids


def _named(command: TableTaking, world: World) -> tuple[set[int], set[str]]:
    """Address ids and addresses of the endpoints."""
    table = world.endpoints
    if isinstance(command, FlushEndpoints):
        return {e.address_id for e in table}, {e.ip for e in table}
    ids = {command.address_id}
    return ids, {e.ip for e in table if e.address_id in ids} | {command.ip}


def are_gone(command: TableTaking, world: World) -> bool:
    """Whether this host has none of the endpoints' addresses any more."""
    _, ips = _named(command, world)
    return not any(address.ip in ips for address in world.addresses.values())


def _of_all_modes(command: TableTaking) -> bool:
    """Address id 0 belongs to no endpoint, and older kernels apply its removal to every
    connection."""
    return isinstance(command, RemoveEndpoint) and command.address_id == 0


def affected(command: Taking, connection: Connection) -> dict[SubflowKey, Subflow]:
    """The subflows that a command takes, also those that cannot carry data."""
    if isinstance(command, WithdrawAddress):
        # An unknown address id may be this one.
        return {
            key: subflow
            for key, subflow in connection.subflows.items()
            if subflow.local_id in (command.address_id, None)
        }
    key = (command.local, command.remote)
    return {key: connection.subflows[key]} if key in connection.subflows else {}
