# SPDX-License-Identifier: BSD-3-Clause
"""What no plugin may do: take a connection's last usable subflow, or act in a frenzy.

The guard looks at each destructive command before it leaves.  It counts what it has
let through and the kernel has not yet carried out, so two commands in one turn cannot
together do what neither may alone.
"""

from mptcpd_ebpf.core.commands import Command, DestroySubflow, SetBackup, WithdrawAddress
from mptcpd_ebpf.core.model import Connection, Subflow, SubflowKey, World
from mptcpd_ebpf.core.units import SECOND

SETTLE = SECOND
"""Nanoseconds after which a destruction that did not show is no longer reckoned with."""


class Guard:
    """Refuses what would make a connection worse."""

    def __init__(self, destructive_per_second: int) -> None:
        self._rate = destructive_per_second
        self._tokens = float(destructive_per_second)
        self._filled_at = 0
        self._leaving: dict[tuple[int, SubflowKey], int] = {}

    def refusal(self, command: Command, world: World, now: int) -> str | None:
        """Why `command` must not be carried out; None if it may."""
        demoting = isinstance(command, SetBackup) and command.backup
        if not (demoting or isinstance(command, DestroySubflow | WithdrawAddress)):
            return None
        assert isinstance(command, SetBackup | DestroySubflow | WithdrawAddress)
        connection = world.connections.get(command.token)
        if connection is None:
            return "the connection is gone"
        self._settle_due(now)
        affected = _affected(command, connection)
        if not isinstance(command, WithdrawAddress) and not affected:
            return "the subflow is gone"
        if any(subflow.usable for subflow in affected.values()) and not any(
            other.usable
            and not (demoting and (other.backup or other.backup_by_peer))
            and (other.token, other.key) not in self._leaving
            for other in connection.subflows.values()
            if other.key not in affected
        ):
            return "it is the last usable subflow of the connection"
        if not self._take_token(now):
            return f"more than {self._rate} destructive commands a second"
        for key in affected:
            self._leaving.pop((command.token, key), None)
            self._leaving[command.token, key] = now + SETTLE
        return None

    def settled(self, token: int, key: SubflowKey) -> None:
        """The kernel answered, and what it did (or refused) shows in the model already."""
        self._leaving.pop((token, key), None)

    def _settle_due(self, now: int) -> None:
        # Every entry was put in SETTLE ahead of its time, so the earliest come first.
        while self._leaving:
            name, until = next(iter(self._leaving.items()))
            if until > now:
                return
            del self._leaving[name]

    def _take_token(self, now: int) -> bool:
        refill = (now - self._filled_at) / SECOND * self._rate
        self._tokens = min(float(self._rate), self._tokens + refill)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def _affected(
    command: SetBackup | DestroySubflow | WithdrawAddress, connection: Connection
) -> dict[SubflowKey, Subflow]:
    if isinstance(command, WithdrawAddress):
        # An address id that nobody told may be the one.
        return {
            key: subflow
            for key, subflow in connection.subflows.items()
            if subflow.local_id in (command.address_id, None)
        }
    key = (command.local, command.remote)
    return {key: connection.subflows[key]} if key in connection.subflows else {}
