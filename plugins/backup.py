# SPDX-License-Identifier: BSD-3-Clause
"""Hot standby: one interface carries the data, the others have subflows marked backup.

The kernel sends no new data on backup subflows while another one is usable (RFC 8684, 3.3.8), and
uses them as soon as there is none, without a handshake. When the primary interface works again,
its subflow is created again and the data returns.

Primary is the interface that the options name, and without one that on which the
connection started.  Only the client acts.
"""

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import ClassVar

from mptcpd_ebpf.plugin import (
    Command,
    Connection,
    Context,
    JoiningPlugin,
    Options,
    SetBackup,
    Subflow,
    Want,
    join_target,
)


class BackupOptions(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be set under `plugins: backup:`."""

    primary: str | None = None
    """Name of the interface that carries the data, ``*`` and ``?`` as in a shell; null: the
    one on which the connection started."""


class Backup(JoiningPlugin):
    name = "backup"
    Options: ClassVar[type[Options]] = BackupOptions

    options: BackupOptions

    def init(self, ctx: Context) -> Iterable[Command]:
        self.started_on: dict[int, int | None] = {}
        """By token: the interface on which a connection started, which may lose its address."""
        yield from super().init(ctx)

    def wants(self, ctx: Context, connection: Connection) -> Iterator[Want]:
        remote = join_target(connection)
        if connection.server_side or remote is None:
            return
        taken = [
            _interface(ctx, subflow)
            for subflow in connection.usable_subflows()
            if not self.joins.is_leaving(subflow)
        ]
        for address in ctx.world.usable_addresses():
            if address.if_index in taken or (":" in address.ip) != (":" in remote.ip):
                continue
            taken.append(address.if_index)
            name = ctx.world.interface_name(address.if_index)
            primary = self._is_primary(ctx, connection, address.if_index)
            role = "carries the data" if primary else "stands by"
            yield Want(address.ip, remote, f"{name} {role}", backup=not primary)

    def keep(self, ctx: Context, connection: Connection) -> Iterator[Command]:
        self.started_on.setdefault(connection.token, ctx.world.interface_of(connection.local.ip))
        yield from super().keep(ctx, connection)
        if not connection.server_side:
            yield from self._mark(ctx, connection)

    def new_subflow(
        self, ctx: Context, connection: Connection, subflow: Subflow
    ) -> Iterable[Command]:
        yield from super().new_subflow(ctx, connection, subflow)
        yield from self.keep(ctx, connection)

    def connection_closed(self, ctx: Context, connection: Connection) -> Iterable[Command]:
        self.started_on.pop(connection.token, None)
        return super().connection_closed(ctx, connection)

    def _mark(self, ctx: Context, connection: Connection) -> Iterator[Command]:
        """Gives each subflow the role of its interface; a standby needs another usable subflow."""
        roles = [
            (subflow, self._is_primary(ctx, connection, _interface(ctx, subflow)))
            for subflow in connection.usable_subflows()
        ]
        for subflow, primary in roles:
            if subflow.backup == (not primary) or (
                not primary and not any(role for _, role in roles)
            ):
                continue
            name = ctx.world.interface_name(_interface(ctx, subflow))
            yield SetBackup(
                token=subflow.token,
                local=subflow.local,
                remote=subflow.remote,
                backup=not primary,
                reason=f"{name} {'is' if primary else 'is not'} the primary interface",
            )

    def _is_primary(self, ctx: Context, connection: Connection, if_index: int | None) -> bool:
        if self.options.primary is None:
            return if_index == self.started_on[connection.token]
        return fnmatchcase(ctx.world.interface_name(if_index) or "", self.options.primary)


def _interface(ctx: Context, subflow: Subflow) -> int | None:
    return subflow.if_index or ctx.world.interface_of(subflow.local.ip)
