# SPDX-License-Identifier: BSD-3-Clause
"""One subflow per network interface: mptcpd's "single subflow per interface".

A second subflow on an interface is closed, the newer one.  On the interfaces that have
none, a client creates one; a server, which may not reach through the client's NAT,
announces an address of each. It withdraws the address when it is removed or its interface cannot
be used, so that the peer closes its subflow there and joins again when the address is announced
again.
"""

from collections.abc import Iterable, Iterator

from mptcpd_ebpf.plugin import (
    AnnounceAddress,
    Command,
    Connection,
    Context,
    Decision,
    JoiningPlugin,
    LocalAddress,
    State,
    Subflow,
    Want,
    WithdrawAddress,
    join_target,
    same_family,
)


class Sspi(JoiningPlugin):
    name = "sspi"

    def init(self, ctx: Context) -> Iterable[Command]:
        self.announced: dict[int, dict[str, int]] = {}
        """By token: the addresses we announced, and their ids."""
        yield from self.reloaded(ctx)

    def reloaded(self, ctx: Context) -> Iterable[Command]:
        for connection in ctx.served():
            for subflow in connection.usable_subflows():
                yield from self._close_second(ctx, connection, subflow)
        yield from super().reloaded(ctx)

    def wants(self, ctx: Context, connection: Connection) -> Iterator[Want]:
        remote = join_target(connection)
        if connection.server_side or remote is None:
            return
        for address in self._one_per_free_interface(ctx, connection, remote.ip):
            name = ctx.world.interface_name(address.if_index)
            yield Want(address.ip, remote, f"{name} has no subflow")

    def keep(self, ctx: Context, connection: Connection) -> Iterator[Command]:
        yield from super().keep(ctx, connection)
        yield from self._withdraw(ctx, connection)
        if connection.server_side and connection.state is State.ESTABLISHED:
            yield from self._announce(ctx, connection)

    def _announce(self, ctx: Context, connection: Connection) -> Iterator[Command]:
        announced = self.announced.setdefault(connection.token, {})
        spoken_for = [ctx.world.interface_of(ip) for ip in announced]
        for address in self._one_per_free_interface(ctx, connection, connection.local.ip):
            if address.if_index in spoken_for:
                continue
            announced[address.ip] = self.ids.for_connection(connection, address.ip)
            yield AnnounceAddress(
                token=connection.token,
                ip=address.ip,
                address_id=announced[address.ip],
                if_index=address.if_index,
                reason=f"{ctx.world.interface_name(address.if_index)} has no subflow",
            )

    def _withdraw(self, ctx: Context, connection: Connection) -> Iterator[Command]:
        """Withdraws what cannot be joined any more; a subflow that is closing has withdrawn its
        id."""
        announced = self.announced.setdefault(connection.token, {})
        usable = [address.ip for address in ctx.world.usable_addresses(deprecated=True)]
        subflows = connection.subflows.values()
        leaving = [s.local.ip for s in subflows if self.reconciler.is_leaving(s)]
        for ip in [ip for ip in announced if ip not in usable]:
            address_id = announced.pop(ip)
            if ip not in leaving:
                reason = f"{ip} is not usable any more"
                yield WithdrawAddress(token=connection.token, address_id=address_id, reason=reason)

    def new_subflow(
        self, ctx: Context, connection: Connection, subflow: Subflow
    ) -> Iterable[Command]:
        yield from super().new_subflow(ctx, connection, subflow)
        yield from self._close_second(ctx, connection, subflow)

    def _close_second(
        self, ctx: Context, connection: Connection, subflow: Subflow
    ) -> Iterator[Command]:
        here = _interface(ctx, subflow)
        for other in connection.usable_subflows():
            if other is subflow:
                return
            same = here is not None and _interface(ctx, other) == here
            if same and not self.reconciler.is_leaving(other):
                name = ctx.world.interface_name(here)
                yield self.reconciler.destroy(subflow, f"{name} has a subflow already: {other}")
                return

    def _one_per_free_interface(
        self, ctx: Context, connection: Connection, like: str
    ) -> Iterator[LocalAddress]:
        """An address, of the family of `like`, of each interface without a subflow."""
        taken = [
            _interface(ctx, subflow)
            for subflow in connection.usable_subflows()
            # One that is being destroyed still holds its address id.
            if self.reconciler.counts(ctx.world, subflow) or self.reconciler.is_leaving(subflow)
        ]
        for address in ctx.world.usable_addresses():
            if address.if_index not in taken and same_family(address.ip, like):
                taken.append(address.if_index)
                yield address

    def answered(
        self, ctx: Context, decision: Decision, errno: int, explanation: str
    ) -> Iterable[Command]:
        command = decision.command
        if errno and isinstance(command, AnnounceAddress):
            self.announced.get(command.token, {}).pop(command.ip, None)
        yield from super().answered(ctx, decision, errno, explanation)

    def connection_closed(self, ctx: Context, connection: Connection) -> Iterable[Command]:
        self.announced.pop(connection.token, None)
        return super().connection_closed(ctx, connection)


def _interface(ctx: Context, subflow: Subflow) -> int | None:
    return subflow.if_index or ctx.world.interface_of(subflow.local.ip)
