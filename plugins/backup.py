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
    SockAddr,
    Subflow,
    Want,
    join_target,
    same_family,
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
        seen: dict[int | None, None] = {}
        for subflow in self.reconciler.carrying(ctx.world, connection):
            if_index = _interface(ctx, subflow)
            seen[if_index] = None
            yield self._want(ctx, connection, subflow.local.ip, if_index, subflow.remote)
        for address in ctx.world.usable_addresses():
            if address.if_index not in seen and same_family(address.ip, remote.ip):
                seen[address.if_index] = None
                yield self._want(ctx, connection, address.ip, address.if_index, remote)

    def _want(
        self,
        ctx: Context,
        connection: Connection,
        local_ip: str,
        if_index: int | None,
        remote: SockAddr,
    ) -> Want:
        name = ctx.world.interface_name(if_index)
        primary = self._is_primary(ctx, connection, if_index)
        role = "carries the data" if primary else "stands by"
        return Want(local_ip, remote, f"{name} {role}", backup=not primary)

    def keep(self, ctx: Context, connection: Connection) -> Iterator[Command]:
        self.started_on.setdefault(connection.token, ctx.world.interface_of(connection.local.ip))
        yield from super().keep(ctx, connection)

    def new_subflow(
        self, ctx: Context, connection: Connection, subflow: Subflow
    ) -> Iterable[Command]:
        yield from super().new_subflow(ctx, connection, subflow)
        yield from self.keep(ctx, connection)

    def connection_closed(self, ctx: Context, connection: Connection) -> Iterable[Command]:
        self.started_on.pop(connection.token, None)
        return super().connection_closed(ctx, connection)

    def _is_primary(self, ctx: Context, connection: Connection, if_index: int | None) -> bool:
        if self.options.primary is None:
            return if_index == self.started_on[connection.token]
        return fnmatchcase(ctx.world.interface_name(if_index) or "", self.options.primary)


def _interface(ctx: Context, subflow: Subflow) -> int | None:
    return subflow.if_index or ctx.world.interface_of(subflow.local.ip)
