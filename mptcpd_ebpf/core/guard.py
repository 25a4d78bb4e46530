# SPDX-License-Identifier: BSD-3-Clause
"""What no plugin may do: take a connection's last usable subflow, or exceed the command rate.

The guard checks each destructive command before it is sent. It takes into account those that it
has passed and the kernel has not yet carried out, so that two commands in one turn cannot together
do what neither may do alone.

Commands on endpoints touch every connection of the namespace: the kernel closes or demotes
all subflows of an endpoint's address, the initial one too (net/mptcp/pm_kernel.c).  Only
an address that is no longer on this host carries nothing that could be lost, and a
connection that the userspace path manager has is passed over.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf

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


class Guard:
    """Refuses what would make a connection worse."""

    def __init__(self, destructive_per_second: int = 200) -> None:
        self._rate = destructive_per_second
        self._tokens = inf
        self._filled_at = 0
        self._limited = True
        self._leaving: dict[tuple[int, SubflowKey], int] = {}
        self._paid: dict[tuple[int, SubflowKey], None] = {}
        """Subflows that close because their address id was withdrawn, and are not destroyed yet."""

    def set_rate(self, destructive_per_second: int) -> None:
        """Commands a second; what was saved up beyond the new rate is lost."""
        self._rate = destructive_per_second
        self._tokens = min(self._tokens, float(destructive_per_second))

    @contextmanager
    def without_rate(self) -> Iterator[None]:
        """Within, no rate applies: a plugin that ends puts back all that it created."""
        self._limited = False
        try:
            yield
        finally:
            self._limited = True

    def refusal(self, command: Command, world: World, now: int) -> str | None:
        """Why `command` must not be carried out; None if it may."""
        match command:
            case SetBackup(backup=True) | DestroySubflow() | WithdrawAddress():
                return self._refusal_for_one(command, world, now)
            case RemoveEndpoint() | FlushEndpoints():
                return self._refusal_for_all(command, world, now)
            case ChangeEndpoint() if EndpointFlag.BACKUP in command.flags:
                return self._refusal_for_all(command, world, now)
            case SteerNewConnections():
                return "no plugin decides where new connections start"
            case ProbePath():
                led = any(_leads_to(each, command.remote.ip) for each in world.connections.values())
                return None if led else "no connection leads there"
            case _:
                return None

    def _refusal_for_one(
        self, command: SetBackup | DestroySubflow | WithdrawAddress, world: World, now: int
    ) -> str | None:
        connection = world.connections.get(command.token)
        if connection is None:
            return "the connection is gone"
        self._settle_due(now)
        affected = _affected(command, connection)
        if not isinstance(command, WithdrawAddress) and not affected:
            return "the subflow is gone"
        if self._takes_the_last(connection, affected, demoting=isinstance(command, SetBackup)):
            return "it is the last usable subflow of the connection"
        if not self._is_paid(command) and not self._take_token(now):
            return f"more than {self._rate} destructive commands a second"
        self._let_go(command.token, affected, now)
        if isinstance(command, WithdrawAddress):
            self._paid |= {(command.token, key): None for key in affected}
        return None

    def _is_paid(self, command: SetBackup | DestroySubflow | WithdrawAddress) -> bool:
        """Whether the subflow's address id was just withdrawn: both commands count once."""
        if not isinstance(command, DestroySubflow):
            return False
        name = (command.token, (command.local, command.remote))
        return self._paid.pop(name, name) is None

    def _refusal_for_all(
        self,
        command: RemoveEndpoint | FlushEndpoints | ChangeEndpoint,
        world: World,
        now: int,
    ) -> str | None:
        self._settle_due(now)
        demoting = isinstance(command, ChangeEndpoint)
        affects = _of_endpoints(command, world)
        here = {address.ip for address in world.addresses.values()}
        leaving = {}
        for connection in world.connections.values():
            if connection.in_kernel is False and not _of_all_modes(command):
                continue
            affected = {
                subflow.key: subflow
                for subflow in connection.subflows.values()
                if affects(subflow) and subflow.local.ip in here
            }
            if self._takes_the_last(connection, affected, demoting=demoting):
                return (
                    f"connection {connection.token:08x} has its last usable subflow "
                    f"on {next(iter(affected))[0].ip}"
                )
            leaving[connection.token] = affected
        if not self._take_token(now):
            return f"more than {self._rate} destructive commands a second"
        for token, affected in leaving.items():
            self._let_go(token, affected, now)
        return None

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

    def _let_go(self, token: int, affected: dict[SubflowKey, Subflow], now: int) -> None:
        for key in affected:
            self._leaving.pop((token, key), None)
            self._leaving[token, key] = now + SETTLE

    def settled(self, token: int, key: SubflowKey) -> None:
        """The kernel answered, and the model shows the result."""
        self._leaving.pop((token, key), None)
        self._paid.pop((token, key), None)

    def _settle_due(self, now: int) -> None:
        # All entries expire SETTLE after they were added, so the earliest come first.
        while self._leaving:
            name, until = next(iter(self._leaving.items()))
            if until > now:
                return
            del self._leaving[name]
            self._paid.pop(name, None)

    def _take_token(self, now: int) -> bool:
        if not self._limited:
            return True
        refill = (now - self._filled_at) / SECOND * self._rate
        self._tokens = min(float(self._rate), self._tokens + refill)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def _leads_to(connection: Connection, ip: str) -> bool:
    return (
        connection.remote.ip == ip
        or any(address.ip == ip for address in connection.announced.values())
        or any(remote.ip == ip for _, remote in connection.subflows)
    )


def _of_endpoints(
    command: RemoveEndpoint | ChangeEndpoint | FlushEndpoints, world: World
) -> Callable[[Subflow], bool]:
    """Which subflows a command on endpoints touches, as far as the table was read."""
    table = world.endpoints
    if isinstance(command, FlushEndpoints):
        ids, ips = {e.address_id for e in table}, {e.ip for e in table}
    else:
        ids = {command.address_id}
        ips = {e.ip for e in table if e.address_id in ids} | {command.ip}
    return lambda subflow: subflow.local.ip in ips or subflow.local_id in ids


def _of_all_modes(command: RemoveEndpoint | FlushEndpoints | ChangeEndpoint) -> bool:
    """Address id 0 belongs to no endpoint, and older kernels apply its removal to every
    connection."""
    return isinstance(command, RemoveEndpoint) and command.address_id == 0


def _affected(
    command: SetBackup | DestroySubflow | WithdrawAddress, connection: Connection
) -> dict[SubflowKey, Subflow]:
    if isinstance(command, WithdrawAddress):
        # An unknown address id may be this one.
        return {
            key: subflow
            for key, subflow in connection.subflows.items()
            if subflow.local_id in (command.address_id, None)
        }
    key = (command.local, command.remote)
    return {key: connection.subflows[key]} if key in connection.subflows else {}
