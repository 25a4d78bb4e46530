# SPDX-License-Identifier: BSD-3-Clause
"""Base of plugins that are defined by which subflows a connection should have.

Such a plugin states its `wants`. The base class asks for them whenever they may have changed, and
`Reconciler` does the rest: it creates what is missing, retries with pauses, and destroys unanswered
joins.

The base class also keeps connections alive over changes of the local network.  A subflow whose
address or carrier is gone is destroyed while another carries the data.  The last one stays, since
a connection without subflows ends after a minute; it is a suspect when its address or carrier
returns, or when nothing comes back on it, and another is joined beside it.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mptcpd_ebpf.core.address import SockAddr, is_ipv6
from mptcpd_ebpf.core.address_ids import AddressIds
from mptcpd_ebpf.core.commands import Command, ConnectionCommand, Decision, KernelCommand
from mptcpd_ebpf.core.events import AlarmRaised
from mptcpd_ebpf.core.measurement import AlarmKind
from mptcpd_ebpf.core.model import Connection, DefaultRoute, Link, LocalAddress, Subflow, World
from mptcpd_ebpf.core.plugin import Context, Plugin
from mptcpd_ebpf.core.reconciler import STRAY, Reconciler, Want


class JoiningPlugin(Plugin):
    """Derive from this and say in `wants` which subflows a connection should have.

    A handler that you override must call the one of this class too.
    """

    mode = "userspace"

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.ids = AddressIds()
        self.reconciler = Reconciler(self.ids)

    def wants(self, ctx: Context, connection: Connection) -> Iterable[Want]:
        """The subflows that an established connection should have."""
        raise NotImplementedError

    def keep(self, ctx: Context, connection: Connection) -> Iterator[Command]:
        """Destroys what cannot carry data any more, and joins what is missing."""
        yield from self._leave_dead(ctx, connection)
        yield from self.reconciler.keep(ctx, connection, self.wants(ctx, connection))

    def keep_all(self, ctx: Context) -> Iterator[Command]:
        for connection in ctx.served():
            yield from self.keep(ctx, connection)

    def init(self, ctx: Context) -> Iterable[Command]:
        yield from self._leave_strays(ctx)
        yield from self.keep_all(ctx)

    def reloaded(self, ctx: Context) -> Iterable[Command]:
        self.reconciler.start_afresh()
        yield from self._leave_strays(ctx)
        yield from self.keep_all(ctx)

    def connection_established(self, ctx: Context, connection: Connection) -> Iterable[Command]:
        yield from self.keep(ctx, connection)

    def connection_closed(self, ctx: Context, connection: Connection) -> Iterable[Command]:
        self.reconciler.connection_closed(connection.token)
        return ()

    def new_address(
        self, ctx: Context, connection: Connection, address_id: int, address: SockAddr
    ) -> Iterable[Command]:
        yield from self.keep(ctx, connection)

    def new_subflow(
        self, ctx: Context, connection: Connection, subflow: Subflow
    ) -> Iterable[Command]:
        yield from self.reconciler.opened(ctx, connection, subflow)
        yield from self._leave_dead(ctx, connection)

    def subflow_closed(
        self, ctx: Context, connection: Connection, subflow: Subflow
    ) -> Iterable[Command]:
        yield from self.reconciler.closed(ctx, subflow)
        if connection.token in ctx.world.connections:
            yield from self.keep(ctx, connection)

    # --- the local network

    def new_local_address(self, ctx: Context, address: LocalAddress) -> Iterable[Command]:
        """Joins from an address that came; a subflow that survived its absence is a suspect."""
        self._suspect(ctx, lambda s: s.local.ip == address.ip)
        yield from self.keep_all(ctx)

    def new_default_route(self, ctx: Context, route: DefaultRoute) -> Iterable[Command]:
        self.reconciler.route_came(ctx, route.if_index)
        yield from self.keep_all(ctx)

    def update_interface(self, ctx: Context, link: Link) -> Iterable[Command]:
        """Joins from an interface that is up again; leaves one that is not."""
        if link.up and link.running:
            yield from self._leave_strays(ctx)
            self._suspect(ctx, lambda s: ctx.world.interface_of(s.local.ip) == link.if_index)
        yield from self.keep_all(ctx)

    def delete_local_address(self, ctx: Context, address: LocalAddress) -> Iterable[Command]:
        self.reconciler.start_afresh(address.ip)
        yield from self.keep_all(ctx)

    def _leave_dead(self, ctx: Context, connection: Connection) -> Iterator[Command]:
        """Destroys subflows that cannot carry data where another one carries it."""
        world = ctx.world
        dead = [
            (subflow, why)
            for subflow in connection.usable_subflows()
            if (why := _why_dead(world, subflow)) and not self.reconciler.is_leaving(subflow)
        ]
        if dead and self.reconciler.carrying(world, connection):
            for subflow, why in dead:
                yield from self.reconciler.leave([subflow], why)

    def _leave_strays(self, ctx: Context) -> Iterator[Command]:
        for connection in ctx.served():
            strays = [s for s in ctx.world.strays(connection) if not self.reconciler.is_leaving(s)]
            yield from self.reconciler.leave(strays, STRAY)

    def _suspect(self, ctx: Context, concerned: Callable[[Subflow], bool]) -> None:
        """Subflows that were cut off for a while are suspects where nothing else carries data."""
        for connection in ctx.served():
            if connection.server_side:
                continue
            cut_off = [s for s in connection.usable_subflows() if concerned(s)]
            others = self.reconciler.carrying(ctx.world, connection)
            if cut_off and all(other in cut_off for other in others):
                for subflow in cut_off:
                    self.reconciler.suspect(ctx, subflow)

    # --- what the probes see

    def alarm(
        self, ctx: Context, connection: Connection, subflow: Subflow, alarm: AlarmRaised
    ) -> Iterable[Command]:
        """Joins anew beside the last subflow when nothing comes back on it."""
        if (
            connection.server_side
            or alarm.kind not in (AlarmKind.TIMEOUTS, AlarmKind.NO_PROGRESS)
            or any(s is not subflow for s in self.reconciler.carrying(ctx.world, connection))
        ):
            return
        if self.reconciler.suspect(ctx, subflow):
            yield from self.keep(ctx, connection)

    # --- the plugin's own requests

    def wake_connection(self, ctx: Context, connection: Connection) -> Iterable[Command]:
        yield from self.reconciler.expire(ctx, connection)
        yield from self.keep(ctx, connection)

    def sampled(self, ctx: Context) -> Iterable[Command]:
        tokens = self.reconciler.sampled_for
        yield from self.reconciler.give_up(ctx)
        for token in tokens:
            connection = ctx.connections.get(token)
            if connection is not None:
                yield from self.keep(ctx, connection)

    def answered(
        self, ctx: Context, decision: Decision, errno: int, explanation: str
    ) -> Iterable[Command]:
        yield from self.reconciler.answered(ctx, decision, errno)

    def refused(self, ctx: Context, decision: Decision) -> Iterable[Command]:
        self.reconciler.refused(decision)
        return ()

    def manual_command(self, ctx: Context, command: KernelCommand) -> Iterable[Command]:
        if isinstance(command, ConnectionCommand) and ctx.serves(command.token):
            self.reconciler.manual_command(command)
        return ()


def _why_dead(world: World, subflow: Subflow) -> str | None:
    """Why a subflow cannot carry data; None: it can, or its socket is about to close."""
    if world.can_carry(subflow) or not subflow.usable:
        return None
    if_index = world.interface_of(subflow.local.ip)
    if if_index is None:
        return f"address {subflow.local.ip} was removed"
    return f"interface {world.interface_name(if_index) or if_index} lost its carrier"


def same_family(ip: str, other: str) -> bool:
    return is_ipv6(ip) == is_ipv6(other)
