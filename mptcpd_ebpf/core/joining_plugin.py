# SPDX-License-Identifier: BSD-3-Clause
"""Base of plugins that are defined by which subflows a connection should have.

Such a plugin states its `wants`. The base class asks for them whenever they may have changed, and
`Joins` does the rest: it creates what is missing, retries with pauses, and destroys unanswered
joins.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.address_ids import AddressIds
from mptcpd_ebpf.core.commands import Command, ConnectionCommand, Decision, KernelCommand
from mptcpd_ebpf.core.joins import STRAY, Joins, Want
from mptcpd_ebpf.core.model import Connection, DefaultRoute, Link, LocalAddress, Subflow
from mptcpd_ebpf.core.plugin import Context, Plugin


class JoiningPlugin(Plugin):
    """Derive from this and say in `wants` which subflows a connection should have.

    A handler that you override must call the one of this class too.
    """

    mode = "userspace"

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.ids = AddressIds()
        self.joins = Joins(self.ids)

    def wants(self, ctx: Context, connection: Connection) -> Iterable[Want]:
        """The subflows that an established connection should have."""
        raise NotImplementedError

    def keep(self, ctx: Context, connection: Connection) -> Iterator[Command]:
        """Joins what is missing."""
        yield from self.joins.keep(ctx, connection, self.wants(ctx, connection))

    def keep_all(self, ctx: Context) -> Iterator[Command]:
        for connection in ctx.served():
            yield from self.keep(ctx, connection)

    def init(self, ctx: Context) -> Iterable[Command]:
        yield from self._leave_strays(ctx)
        yield from self.keep_all(ctx)

    def reloaded(self, ctx: Context) -> Iterable[Command]:
        self.joins.start_afresh()
        yield from self._leave_strays(ctx)
        yield from self.keep_all(ctx)

    def connection_established(self, ctx: Context, connection: Connection) -> Iterable[Command]:
        yield from self.keep(ctx, connection)

    def connection_closed(self, ctx: Context, connection: Connection) -> Iterable[Command]:
        self.joins.connection_closed(connection.token)
        return ()

    def new_address(
        self, ctx: Context, connection: Connection, address_id: int, address: SockAddr
    ) -> Iterable[Command]:
        yield from self.keep(ctx, connection)

    def new_subflow(
        self, ctx: Context, connection: Connection, subflow: Subflow
    ) -> Iterable[Command]:
        self.joins.opened(subflow)
        return ()

    def subflow_closed(
        self, ctx: Context, connection: Connection, subflow: Subflow
    ) -> Iterable[Command]:
        yield from self.joins.closed(ctx, subflow)
        if connection.token in ctx.world.connections:
            yield from self.keep(ctx, connection)

    def new_local_address(self, ctx: Context, address: LocalAddress) -> Iterable[Command]:
        yield from self.keep_all(ctx)

    def new_default_route(self, ctx: Context, route: DefaultRoute) -> Iterable[Command]:
        yield from self.keep_all(ctx)

    def update_interface(self, ctx: Context, link: Link) -> Iterable[Command]:
        """Joins from an interface that is up again; destroys the subflows of one that is not."""
        if link.up and link.running:
            yield from self._leave_strays(ctx)
            yield from self.keep_all(ctx)
            return
        there = self._from(ctx, lambda s: s.if_index == link.if_index)
        yield from self.joins.leave(there, f"interface {link.name} lost its carrier")

    def delete_local_address(self, ctx: Context, address: LocalAddress) -> Iterable[Command]:
        self.joins.start_afresh(address.ip)
        there = self._from(ctx, lambda s: s.local.ip == address.ip)
        yield from self.joins.leave(there, f"address {address.ip} was removed")

    def _leave_strays(self, ctx: Context) -> Iterator[Command]:
        for connection in ctx.served():
            strays = [s for s in ctx.world.strays(connection) if not self.joins.is_leaving(s)]
            yield from self.joins.leave(strays, STRAY)

    def _from(self, ctx: Context, concerns: Callable[[Subflow], bool]) -> list[Subflow]:
        return [
            subflow
            for connection in ctx.served()
            for subflow in connection.usable_subflows()
            if concerns(subflow) and not self.joins.is_leaving(subflow)
        ]

    def wake_connection(self, ctx: Context, connection: Connection) -> Iterable[Command]:
        yield from self.joins.expire(ctx, connection)
        yield from self.keep(ctx, connection)

    def sampled(self, ctx: Context) -> Iterable[Command]:
        yield from self.joins.give_up(ctx)

    def answered(
        self, ctx: Context, decision: Decision, errno: int, explanation: str
    ) -> Iterable[Command]:
        yield from self.joins.answered(ctx, decision, errno)

    def refused(self, ctx: Context, decision: Decision) -> Iterable[Command]:
        self.joins.refused(decision)
        return ()

    def manual_command(self, ctx: Context, command: KernelCommand) -> Iterable[Command]:
        if isinstance(command, ConnectionCommand) and ctx.serves(command.token):
            self.joins.manual_command(command)
        return ()
