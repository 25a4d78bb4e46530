# SPDX-License-Identifier: BSD-3-Clause
"""An endpoint of the in-kernel path manager for every usable address; limits kept in step.

The kernel then joins from (flag subflow) or announces (flag signal) these addresses by
itself, in every connection.  It is what mptcpd's plugin of the same name does, with one
difference in method: nothing is done *because* of an event.  Every event about links,
addresses and routes is an occasion to compare what the table should hold with what it
holds, so an address that comes early, late or twice ends in the same table.

An endpoint that a person had the daemon remove is not made again while its address stays.
An endpoint that somebody else made is left alone: its address needs none of ours, its id
is never taken (the kernel chooses ids for us), and it is not removed with its address.
The table is read anew before anything is removed from it.
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from ipaddress import ip_address, ip_network
from typing import ClassVar

from msgspec import Struct, field

from mptcpd_ebpf.plugin import (
    CHANGEABLE,
    SECOND,
    AddEndpoint,
    ChangeEndpoint,
    Command,
    Context,
    Decision,
    DefaultRoute,
    Endpoint,
    EndpointFlag,
    FlagNames,
    FlushEndpoints,
    KernelCommand,
    Link,
    LocalAddress,
    Network,
    Options,
    Plugin,
    ReadEndpoints,
    RemoveEndpoint,
    SetLimits,
    WakeAt,
    endpoint_flags,
)

FEWEST_SUBFLOWS = 2
"""Of the limit, before there is any address: mptcpd's MPTCP_MIN_SUBFLOWS."""

LONGEST_PAUSE = 8 * SECOND
"""Nanoseconds before a removal that the guard refused is tried again."""


class FlagRule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Flags for the addresses that match everything that is given."""

    flags: FlagNames
    interface: str = "*"
    """Name of the interface; ``*`` and ``?`` as in a shell."""
    address: Network | None = None
    """An address or a network, ``fd00::/8``."""

    def fits(self, interface: str, ip: str) -> bool:
        if not fnmatchcase(interface, self.interface):
            return False
        return self.address is None or ip_address(ip) in ip_network(self.address)


class AddrAdvOptions(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be set under `plugins: addr_adv:`."""

    flags: FlagNames = field(default_factory=lambda: ["subflow"])
    """Of the endpoints: subflow, signal, backup, fullmesh (not with signal), laminar."""
    rules: list[FlagRule] = field(default_factory=list)
    """Flags by interface and address; the first that fits beats `flags`."""


class Wanted(Struct, frozen=True):
    """An endpoint that should exist."""

    ip: str
    if_index: int
    flags: EndpointFlag
    interface: str


class AddrAdv(Plugin):
    name = "addr_adv"
    mode = "kernel"
    Options: ClassVar[type[Options]] = AddrAdvOptions

    options: AddrAdvOptions

    def __init__(self, options: AddrAdvOptions | None = None) -> None:
        super().__init__(options)
        # Read once, since an endpoint is created as soon as its address comes.
        self._flags_by_rule = [(rule, endpoint_flags(rule.flags)) for rule in self.options.rules]
        self._usual_flags = endpoint_flags(self.options.flags)

    def init(self, ctx: Context) -> Iterator[Command]:
        self.told: dict[str, EndpointFlag] = {}
        """The flags that we gave each endpoint: later changes by others are kept."""
        self.limit: int | None = None
        """The limit that we last set: later changes by others are kept."""
        self.under_way: dict[str, None] = {}
        """Addresses whose endpoint was requested and is not answered yet."""
        self.rejected: dict[str, int | None] = {}
        """Addresses whose endpoint the kernel refused, and how full the table was (None: not read
        yet)."""
        self.declined: dict[str, None] = {}
        """Addresses whose endpoint the operator removed: they get none while they exist."""
        self.tries = 0
        """How often in a row a removal or change was refused."""
        yield ReadEndpoints(reason="what does the table hold already?")

    def reloaded(self, ctx: Context) -> Iterator[Command]:
        self.declined.clear()
        yield ReadEndpoints(reason="what does the table hold now?")

    # --- occasions to compare

    def new_interface(self, ctx: Context, link: Link) -> Iterator[Command]:
        yield from self._compare(ctx)

    def update_interface(self, ctx: Context, link: Link) -> Iterator[Command]:
        yield from self._compare(ctx)

    def delete_interface(self, ctx: Context, link: Link) -> Iterator[Command]:
        yield from self._compare(ctx)

    def new_local_address(self, ctx: Context, address: LocalAddress) -> Iterator[Command]:
        yield from self._compare(ctx)

    def delete_local_address(self, ctx: Context, address: LocalAddress) -> Iterator[Command]:
        self.declined.pop(address.ip, None)
        yield from self._compare(ctx)

    def new_default_route(self, ctx: Context, route: DefaultRoute) -> Iterator[Command]:
        yield from self._compare(ctx)

    def delete_default_route(self, ctx: Context, route: DefaultRoute) -> Iterator[Command]:
        yield from self._compare(ctx)

    def endpoints_read(self, ctx: Context) -> Iterator[Command]:
        yield from self._compare(ctx, fresh=True)

    def wake(self, ctx: Context) -> Iterator[Command]:
        yield from self._compare(ctx)

    def answered(
        self, ctx: Context, decision: Decision, errno: int, explanation: str
    ) -> Iterator[Command]:
        command = decision.command
        if isinstance(command, AddEndpoint):
            self.under_way.pop(command.ip, None)
            if errno:
                self.rejected[command.ip] = None
        if isinstance(command, AddEndpoint | ChangeEndpoint) and not errno:
            self.told[command.ip] = command.flags
        # `wake` retries a refused removal.
        removed = isinstance(command, RemoveEndpoint) and not errno
        if not self.under_way and (removed or isinstance(command, AddEndpoint)):
            yield ReadEndpoints(reason="which ids did the kernel choose?")

    def manual_command(self, ctx: Context, command: KernelCommand) -> tuple[()]:
        match command:
            case RemoveEndpoint():
                table = ctx.world.endpoints
                gone = [each.ip for each in table if each.address_id == command.address_id]
                self.declined |= dict.fromkeys(gone)
            case FlushEndpoints():
                self.declined |= dict.fromkeys(each.ip for each in ctx.world.endpoints)
            case AddEndpoint():
                self.declined.pop(command.ip, None)
        return ()

    def exit(self, ctx: Context) -> Iterator[Command]:
        if ctx.keep:
            return
        # The first is where connections start: if one must stay for a connection, then this.
        for endpoint in reversed(ctx.world.endpoints):
            if endpoint.ours:
                yield RemoveEndpoint(
                    address_id=endpoint.address_id, ip=endpoint.ip, reason="the daemon leaves"
                )
        before = ctx.world.limits_before
        if before is not None:
            yield SetLimits(
                subflows=before.subflows,
                add_addr_accepted=before.add_addr_accepted,
                reason="the daemon leaves; these were there before",
            )

    # --- comparing

    def _compare(self, ctx: Context, *, fresh: bool = False) -> Iterator[Command]:
        """Brings the table and the limits to what they should be; `fresh`: they were read just
        now."""
        if ctx.world.limits is None:
            return  # the first read is under way
        wanted = self._wanted(ctx)
        # The kernel joins from a new endpoint at once, so a limit that is short is raised
        # first; an endpoint does not wait for one that has room for it.
        steps = [self._keep_endpoints(ctx, wanted, fresh=fresh), self._keep_limits(ctx, wanted)]
        if ctx.world.limits.subflows < len(wanted):
            steps.reverse()
        for step in steps:
            yield from step

    def _keep_endpoints(
        self, ctx: Context, wanted: dict[str, Wanted], *, fresh: bool
    ) -> Iterator[Command]:
        surplus, changed = [], []
        for endpoint in ctx.world.endpoints:
            want = wanted.get(endpoint.ip)
            if not endpoint.ours:
                continue
            if want is None or want.if_index != endpoint.if_index:
                surplus.append(endpoint)
            elif want.flags == endpoint.flags:
                self.told[want.ip] = want.flags
            elif want.flags != self.told.get(want.ip):
                changed.append((endpoint, want))
        if (surplus or changed or self.rejected) and not fresh:
            yield ReadEndpoints(reason="look again before changing it")
            return
        self.tries = self.tries + 1 if surplus or changed else 0
        yield from self._remove(surplus)
        removed = {endpoint.ip: None for endpoint in surplus}
        for endpoint, want in changed:
            if (endpoint.flags ^ want.flags) & ~CHANGEABLE:
                yield from self._remove([endpoint])
                removed[endpoint.ip] = None
            else:
                yield ChangeEndpoint(
                    address_id=endpoint.address_id,
                    ip=endpoint.ip,
                    flags=want.flags,
                    reason=f"its flags for {want.interface} are other ones now",
                    routine=self.tries > 1,
                )
        if self.tries:
            # A removal was refused because a connection depends on it: it is tried again.
            pause = min(SECOND << self.tries, LONGEST_PAUSE)
            yield WakeAt(at=ctx.now + pause, reason="is it done?")
        self.told = {ip: flags for ip, flags in self.told.items() if ip in wanted}
        yield from self._add(ctx, wanted, removed, fresh=fresh)

    def _wanted(self, ctx: Context) -> dict[str, Wanted]:
        """The endpoints that should exist, by address."""
        held = {endpoint.ip for endpoint in ctx.world.endpoints if endpoint.ours}
        wanted: dict[str, Wanted] = {}
        for address in ctx.world.usable_addresses(deprecated=True):
            if address.ip in wanted or address.ip in self.declined:
                continue
            if address.deprecated and address.ip not in held:
                continue  # existing subflows may use it, new ones may not
            interface = ctx.world.interface_name(address.if_index) or ""
            flags = self._flags(interface, address.ip)
            wanted[address.ip] = Wanted(address.ip, address.if_index, flags, interface)
        return wanted

    def _flags(self, interface: str, ip: str) -> EndpointFlag:
        for rule, flags in self._flags_by_rule:
            if rule.fits(interface, ip):
                return flags
        return self._usual_flags

    def _remove(self, surplus: list[Endpoint]) -> Iterator[Command]:
        for endpoint in surplus:
            yield RemoveEndpoint(
                address_id=endpoint.address_id,
                ip=endpoint.ip,
                reason=f"{endpoint.ip} is not usable any more, or not the same",
                routine=self.tries > 1,
            )

    def _add(
        self, ctx: Context, wanted: dict[str, Wanted], removed: dict[str, None], *, fresh: bool
    ) -> Iterator[Command]:
        # An implicit endpoint was created by the kernel itself; ours replaces it.
        taken = {
            endpoint.ip
            for endpoint in ctx.world.endpoints
            if not endpoint.port
            and EndpointFlag.IMPLICIT not in endpoint.flags
            and endpoint.ip not in removed
        }
        fullness = len(ctx.world.endpoints) - len(removed)
        for ip, then in list(self.rejected.items()):
            if then is None and fresh:
                # An endpoint that is about to be removed still existed when this one was refused.
                then = self.rejected[ip] = len(ctx.world.endpoints)
            if ip not in wanted or (then is not None and fullness < then):
                del self.rejected[ip]  # it may be tried again
        for want in wanted.values():
            if want.ip in taken or want.ip in self.under_way or want.ip in self.rejected:
                continue
            self.under_way[want.ip] = None
            yield AddEndpoint(
                ip=want.ip,
                flags=want.flags,
                if_index=want.if_index,
                reason=f"{want.ip} on {want.interface} is usable",
            )

    def _keep_limits(self, ctx: Context, wanted: dict[str, Wanted]) -> Iterator[Command]:
        limit = min(FEWEST_SUBFLOWS + len(wanted), ctx.world.highest_limit)
        if limit == self.limit:
            return
        first, self.limit = self.limit is None, limit
        # A host that joins by itself counts as a client, which also joins announced addresses.
        joins = EndpointFlag.SUBFLOW in self._usual_flags
        accepted = limit if joins else 0
        now = ctx.world.limits
        # What was read is older than what we set since.
        if not first or now is None or (now.subflows, now.add_addr_accepted) != (limit, accepted):
            yield SetLimits(
                subflows=limit,
                add_addr_accepted=accepted,
                reason=f"{len(wanted)} usable address(es)",
            )
