# SPDX-License-Identifier: BSD-3-Clause
"""Brings connections to the subflows they should have: desired minus actual state is commands.

A plugin states which subflows a connection should have (`Want`) whenever something may have
changed.  What is missing is joined at once; a backup flag that differs is set.  After a failed
join, or a subflow that closed soon, the next try waits: the pause doubles with each failure and is
shortened by up to a quarter at random, so that many connections that lost the same path do not
retry at the same moment.

Special cases:

* An address that has just come waits for its default route for up to `ROUTE_WITHIN`, because a
  DHCP client sets the two one after the other.  A route that comes renews the joins from its
  interface, whose SYNs may have left by another one.
* The kernel repeats the SYN of an unanswered join for minutes.  Such a join is found in a dump of
  the sockets and destroyed.
* A suspect is a subflow that may never carry data again although nothing has closed it: its
  address or carrier was gone for a while, or nothing comes back on it.  It counts as missing, so
  that another is joined beside it, and is destroyed when a join of its connection is answered
  and nothing has come back on it meanwhile.
* What an operator destroyed is not created again, and a flag that an operator set is not changed.

State is kept per connection, and each connection has timers of its own, so that an event costs
time in the connections it concerns and not in all.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from mptcpd_ebpf.core.address import SockAddr, is_ipv6
from mptcpd_ebpf.core.address_ids import AddressIds
from mptcpd_ebpf.core.commands import (
    Command,
    ConnectionCommand,
    CreateSubflow,
    Decision,
    DestroySubflow,
    RequestSample,
    SetBackup,
    WakeAt,
    WithdrawAddress,
)
from mptcpd_ebpf.core.model import MS, SECOND, Connection, State, Subflow, SubflowKey, World
from mptcpd_ebpf.core.plugin import Context

ANSWER_WITHIN = 3 * SECOND
"""Nanoseconds: an unanswered join has failed by then."""

SHORT_LIFE = 10 * SECOND
"""Nanoseconds: a subflow that closes sooner counts as one more failure of its path."""

ROUTE_WITHIN = SECOND
"""Nanoseconds that a new address waits for a default route through its interface."""

FORSAKEN_PAUSE = 2 * SECOND
"""Nanoseconds between tries at most, while nothing carries a connection's data."""

TRUST = 10 * SECOND
"""Nanoseconds for which a suspect that answered after all is no suspect again."""

STRAY = "the configuration does not allow its interface"
"""Why a subflow that `World.strays` names is destroyed."""


class Want(NamedTuple):
    """Subflows that should exist: `number` of them between two addresses."""

    local_ip: str
    remote: SockAddr
    reason: str
    backup: bool | None = None
    """Their backup flag; None: regular when joined, and left as it is afterwards."""
    number: int = 1


Pair = tuple[str, SockAddr]
"""Our address; the peer's address and port."""


@dataclass(slots=True)
class _Slot:
    """What is known of the joins between two addresses in one connection."""

    under_way: int = 0
    deadline: int = 0
    failures: int = 0
    next_at: int = 0
    declined: int = 0
    """How many of the wanted ones the operator has destroyed."""
    unrouted: bool = False
    """The join under way was requested while its interface had no default route."""
    beside: bool = False
    """A join was requested beside a suspect; if that one answers after all, one is too many."""
    renewed: bool = False
    """A join was requested beside one that is not answered yet."""


@dataclass(slots=True)
class _State:
    """What is known of one connection."""

    slots: dict[Pair, _Slot] = field(default_factory=dict)
    leaving: dict[SubflowKey, None] = field(default_factory=dict)
    """Subflows that were destroyed and are not closed yet."""
    suspects: dict[SubflowKey, int] = field(default_factory=dict)
    """Subflows that may never carry data again, and since when."""
    replaced: bool = False
    """Another subflow was established beside the suspects."""
    trusted: dict[SubflowKey, int] = field(default_factory=dict)
    """Subflows that answered after all, and until when they are no suspects again."""
    pinned: dict[SubflowKey, None] = field(default_factory=dict)
    """Subflows whose backup flag an operator set."""
    manual_backup: dict[Pair, None] = field(default_factory=dict)
    """Between which addresses an operator joined on backup."""
    flagging: dict[SubflowKey, bool] = field(default_factory=dict)
    """Flags that were sent to the kernel and are not answered yet."""


class Reconciler:
    """The subflows of all connections that a plugin serves.

    `first_pause` and `longest_pause`: nanoseconds before the next try after a first failure, and
    at most.
    """

    def __init__(
        self, ids: AddressIds, *, first_pause: int = 500 * MS, longest_pause: int = 60 * SECOND
    ) -> None:
        self._ids = ids
        self._first = first_pause
        self._longest = longest_pause
        self._states: dict[int, _State] = {}
        """By token."""
        self._overdue: dict[int, None] = {}
        """Tokens of connections with unanswered joins, until a sample shows those."""

    # --- what exists

    def counts(self, world: World, subflow: Subflow) -> bool:
        """Whether the subflow is expected to carry data: it is usable, its address and interface
        are there, and it is neither being destroyed nor a suspect."""
        if not world.can_carry(subflow):
            return False
        state = self._states.get(subflow.token)
        return state is None or not (subflow.key in state.leaving or subflow.key in state.suspects)

    def carrying(self, world: World, connection: Connection) -> list[Subflow]:
        """The subflows of a connection that count."""
        return [each for each in connection.subflows.values() if self.counts(world, each)]

    def is_leaving(self, subflow: Subflow) -> bool:
        """Whether it was destroyed, and is not closed yet."""
        state = self._states.get(subflow.token)
        return state is not None and subflow.key in state.leaving

    def is_suspect(self, subflow: Subflow) -> bool:
        state = self._states.get(subflow.token)
        return state is not None and subflow.key in state.suspects

    def failures(self, token: int, local_ip: str, remote: SockAddr) -> int:
        """How often in a row joins between two addresses have failed in a connection."""
        slot = self._slot(token, (local_ip, remote))
        return slot.failures if slot is not None else 0

    def declines(self, token: int, local_ip: str) -> bool:
        """Whether an operator destroyed a subflow from this address."""
        state = self._states.get(token)
        return state is not None and any(
            slot.declined for (ip, _), slot in state.slots.items() if ip == local_ip
        )

    # --- what is wanted

    def keep(
        self, ctx: Context, connection: Connection, wants: Iterable[Want]
    ) -> Iterator[Command]:
        """Joins what is missing of `wants` and may be tried now, sets timers for the rest, and
        sets the backup flags that differ."""
        if connection.state is not State.ESTABLISHED:
            return
        wanted = [want for want in wants if is_ipv6(want.local_ip) == is_ipv6(want.remote.ip)]
        for want in wanted:
            existing = self._existing(ctx.world, connection, want)
            yield from self._end_surplus(connection, want, existing)
            yield from self._join_missing(ctx, connection, want, len(existing))
        yield from self.set_flags(ctx, connection, wanted)

    def _end_surplus(
        self, connection: Connection, want: Want, existing: list[Subflow]
    ) -> Iterator[Command]:
        """Destroys what was joined beside a suspect that answered after all."""
        slot = self._slot(connection.token, (want.local_ip, want.remote))
        if slot is not None and slot.beside and len(existing) > want.number:
            slot.beside = False
            for subflow in existing[want.number :]:
                yield self.destroy(subflow, "the one beside it answers again", routine=True)

    def _existing(self, world: World, connection: Connection, want: Want) -> list[Subflow]:
        return [
            subflow
            for subflow in connection.subflows.values()
            if subflow.local.ip == want.local_ip
            and subflow.remote == want.remote
            and self.counts(world, subflow)
        ]

    def _join_missing(
        self, ctx: Context, connection: Connection, want: Want, existing: int
    ) -> Iterator[Command]:
        state = self._state(connection.token)
        pair = (want.local_ip, want.remote)
        known = pair in state.slots
        slot = state.slots.setdefault(pair, _Slot())
        missing = want.number - slot.declined - slot.under_way - existing
        if missing <= 0 or not ctx.world.has_carrier(ctx.world.interface_of(want.local_ip)):
            return
        if not known and pair in connection.joins_under_way():
            # Requested before a reload, or by the operator: it gets its time to be answered.
            slot.under_way, slot.deadline = missing, ctx.now + ANSWER_WITHIN
            yield _wake(connection.token, slot.deadline)
            return
        next_at = max(slot.next_at, _routed_at(ctx.world, want.local_ip))
        if next_at > ctx.now:
            yield _wake(connection.token, next_at)
            return
        if_index = ctx.world.interface_of(want.local_ip)
        slot.unrouted = if_index is None or not ctx.world.has_default_route(if_index, want.local_ip)
        slot.beside = any(
            key[0].ip == want.local_ip and key[1] == want.remote for key in state.suspects
        )
        slot.under_way += missing
        slot.deadline = ctx.now + ANSWER_WITHIN
        again = f" (failed {slot.failures} time(s) before)" if slot.failures else ""
        for _ in range(missing):
            yield CreateSubflow(
                token=connection.token,
                local_ip=want.local_ip,
                local_id=self._ids.for_connection(connection, want.local_ip),
                remote=want.remote,
                if_index=if_index or 0,
                backup=bool(want.backup),
                reason=want.reason + again,
            )
        yield _wake(connection.token, slot.deadline)

    def set_flags(
        self, ctx: Context, connection: Connection, wants: Iterable[Want]
    ) -> Iterator[Command]:
        """Sets and clears the backup flags that differ from those wanted.

        Clears first: a subflow is demoted only while a regular one carries the data.
        """
        state = self._state(connection.token)
        flags = [
            (subflow, want)
            for want in wants
            if want.backup is not None
            for subflow in self._existing(ctx.world, connection, want)
        ]
        regular = {
            subflow.key: None
            for subflow in self.carrying(ctx.world, connection)
            if not subflow.backup and not subflow.backup_by_peer
        }
        for subflow, want in sorted(flags, key=lambda each: bool(each[1].backup)):
            flag = state.flagging.get(subflow.key, subflow.backup)
            by_operator = subflow.key in state.pinned or _pair(subflow) in state.manual_backup
            if flag == want.backup or by_operator:
                continue
            if want.backup:
                if not any(key != subflow.key for key in regular):
                    continue
                regular.pop(subflow.key, None)
            elif not subflow.backup_by_peer:
                regular[subflow.key] = None
            state.flagging[subflow.key] = bool(want.backup)
            yield mark(subflow, want.reason, backup=bool(want.backup))

    def destroy(self, subflow: Subflow, reason: str, *, routine: bool = False) -> DestroySubflow:
        """Its end is then intended, and no failure."""
        self._state(subflow.token).leaving[subflow.key] = None
        return DestroySubflow(
            token=subflow.token,
            local=subflow.local,
            remote=subflow.remote,
            reason=reason,
            routine=routine,
        )

    def leave(self, subflows: list[Subflow], reason: str) -> Iterator[Command]:
        """Destroys subflows whose path is gone; the peer is told first (`tell_peer`)."""
        by_token: dict[int, list[Subflow]] = {}
        for subflow in subflows:
            by_token.setdefault(subflow.token, []).append(subflow)
        for of_one in by_token.values():
            yield from tell_peer(of_one, reason)
            for subflow in of_one:
                yield self.destroy(subflow, reason)

    def withdraw_destroyed(
        self, ctx: Context, connection: Connection, subflow: Subflow, *, within: int
    ) -> Iterator[Command]:
        """Withdraws a destroyed subflow's address id over another path, so that the peer closes it.

        The FIN goes over the bad path and may take seconds, while the peer continues to send
        there. The kernel withdraws only ids that it knows, and destroying removed any but 0
        (mptcp_pm_nl_subflow_destroy_doit): a join, whose answer does not matter, adds it again.  It
        is destroyed if it is not answered `within` nanoseconds.
        """
        reason = "tell the peer over another path"
        if subflow.local_id != 0:
            slot = self._state(connection.token).slots.setdefault(_pair(subflow), _Slot())
            slot.under_way += 1
            slot.deadline = ctx.now + within
            yield CreateSubflow(
                token=connection.token,
                local_ip=subflow.local.ip,
                local_id=self._ids.for_connection(connection, subflow.local.ip),
                remote=subflow.remote,
                if_index=ctx.world.interface_of(subflow.local.ip) or 0,
                backup=True,
                reason=reason,
                routine=True,
            )
            yield _wake(connection.token, slot.deadline)
        yield WithdrawAddress(
            token=connection.token, address_id=subflow.local_id or 0, reason=reason, routine=True
        )

    def suspect(self, ctx: Context, subflow: Subflow) -> bool:
        """Marks a subflow as a suspect; False if it is one already, or is being destroyed."""
        state = self._state(subflow.token)
        if (
            subflow.key in state.suspects
            or subflow.key in state.leaving
            or state.trusted.get(subflow.key, 0) > ctx.now
        ):
            return False
        state.suspects[subflow.key] = ctx.now
        for (ip, _), slot in state.slots.items():
            if ip == subflow.local.ip:
                slot.next_at = slot.failures = 0
        return True

    def manual_command(self, command: ConnectionCommand) -> None:
        """A subflow that the operator destroyed is not created again, unless the operator does."""
        match command:
            case DestroySubflow():
                state = self._state(command.token)
                state.slots.setdefault((command.local.ip, command.remote), _Slot()).declined += 1
                state.leaving[command.local, command.remote] = None
            case CreateSubflow():
                if command.backup:
                    pair = (command.local_ip, command.remote)
                    self._state(command.token).manual_backup[pair] = None
                slot = self._slot(command.token, (command.local_ip, command.remote))
                if slot is not None and slot.declined:
                    slot.declined -= 1
            case SetBackup():
                self._state(command.token).pinned[command.local, command.remote] = None

    def start_afresh(self, local_ip: str | None = None) -> None:
        """Forgets what the operator did, at one address of ours or at all."""
        for state in self._states.values():
            for (ip, _), slot in state.slots.items():
                if local_ip in (ip, None):
                    slot.declined = 0
            for key in [key for key in state.pinned if local_ip in (key[0].ip, None)]:
                del state.pinned[key]
            for pair in [pair for pair in state.manual_backup if local_ip in (pair[0], None)]:
                del state.manual_backup[pair]

    # --- what happened

    def route_came(self, ctx: Context, if_index: int) -> None:
        """Joins from this interface may be tried at once; those that left without a default route
        count as unanswered."""
        for state in self._states.values():
            for (ip, _), slot in state.slots.items():
                if ctx.world.interface_of(ip) != if_index:
                    continue
                slot.next_at = slot.failures = 0
                if slot.under_way and slot.unrouted:
                    slot.under_way = 0
                    slot.renewed = True

    def path_works(self, local_ip: str, remote_ip: str) -> None:
        """Joins over this path may be tried at once."""
        for state in self._states.values():
            for (ip, remote), slot in state.slots.items():
                if ip == local_ip and remote.ip == remote_ip:
                    slot.next_at = slot.failures = 0

    def opened(self, ctx: Context, connection: Connection, subflow: Subflow) -> Iterator[Command]:
        """A join succeeded: the suspects of its connection are replaced."""
        state = self._state(subflow.token)
        slot = state.slots.get(_pair(subflow))
        if slot is not None and slot.under_way:
            slot.under_way -= 1
        if slot is not None and slot.renewed and not slot.under_way:
            slot.renewed = False
            yield from self.find_unanswered(connection.token)
        if not self.counts(ctx.world, subflow):
            return
        if state.suspects:
            state.replaced = True
            yield from self.find_unanswered(connection.token)

    def closed(
        self, ctx: Context, subflow: Subflow, *, pause: int | None = None
    ) -> Iterator[Command]:
        """A subflow closed, or a join failed.

        `pause` is how long to wait before the next try (nanoseconds), if the cause tells; it
        holds for a first failure, after which pauses grow as always.
        """
        state = self._state(subflow.token)
        state.suspects.pop(subflow.key, None)
        state.trusted.pop(subflow.key, None)
        state.pinned.pop(subflow.key, None)
        state.flagging.pop(subflow.key, None)
        if subflow.key in state.leaving:
            del state.leaving[subflow.key]
            return
        slot = state.slots.setdefault(_pair(subflow), _Slot())
        if subflow.failed:
            slot.under_way = max(slot.under_way - 1, 0)
        elif subflow.opened_at is None or ctx.now - subflow.opened_at >= SHORT_LIFE:
            slot.failures = 0
        yield self._back_off(ctx, subflow.token, slot, pause)

    def connection_closed(self, token: int) -> None:
        self._states.pop(token, None)
        self._overdue.pop(token, None)

    def answered(self, ctx: Context, decision: Decision, errno: int) -> Iterator[Command]:
        """The kernel's answer to one of our commands."""
        command = decision.command
        if isinstance(command, SetBackup):
            self._state(command.token).flagging.pop((command.local, command.remote), None)
        if errno and isinstance(command, DestroySubflow):
            self.refused(decision)
        if errno and isinstance(command, CreateSubflow):
            slot = self._slot(command.token, (command.local_ip, command.remote))
            if slot is not None and slot.under_way:
                slot.under_way -= 1
                connection = ctx.world.connections.get(command.token)
                if connection is not None and connection.state is State.ESTABLISHED:
                    yield self._back_off(ctx, command.token, slot, None)

    def refused(self, decision: Decision) -> None:
        """The guard kept a command from the kernel."""
        match decision.command:
            case DestroySubflow(token=token, local=local, remote=remote) if token in self._states:
                self._states[token].leaving.pop((local, remote), None)
            case SetBackup(token=token, local=local, remote=remote) if token in self._states:
                self._states[token].flagging.pop((local, remote), None)

    def expire(self, ctx: Context, connection: Connection) -> Iterator[Command]:
        """Time has passed: unanswered joins of the connection have failed.

        The plugin states again what it wants afterwards.
        """
        state = self._states.get(connection.token)
        if state is None:
            return
        late = [s for s in state.slots.values() if s.under_way and s.deadline <= ctx.now]
        for slot in late:
            slot.under_way = 0
            yield self._back_off(ctx, connection.token, slot, None)
        if late:
            yield from self.find_unanswered(connection.token)

    def find_unanswered(self, token: int) -> Iterator[RequestSample]:
        """One sample serves all connections that wait for one."""
        if not self._overdue:
            yield RequestSample(reason="find the unanswered joins, to destroy them")
        self._overdue[token] = None

    @property
    def sampled_for(self) -> list[int]:
        """Tokens of the connections for which a sample was requested."""
        return list(self._overdue)

    def give_up(self, ctx: Context) -> Iterator[Command]:
        """After a sample: destroys joins that are still under way and have failed, and suspects
        that are replaced, unless something has come back on them since."""
        overdue, self._overdue = self._overdue, {}
        for token in overdue:
            connection = ctx.connections.get(token)
            if connection is None:
                continue
            state = self._state(token)
            for subflow in list(connection.subflows.values()):
                slot = state.slots.get(_pair(subflow))
                if (
                    subflow.state is State.OPENING
                    and not subflow.initial
                    and slot is not None
                    and not slot.under_way
                    and subflow.key not in state.leaving
                ):
                    yield self.destroy(subflow, "the join was not answered")
            yield from self._end_suspicions(connection, state)

    def _end_suspicions(self, connection: Connection, state: _State) -> Iterator[Command]:
        for key, since in list(state.suspects.items()):
            subflow = connection.subflows.get(key)
            if subflow is None or subflow.answered_since(since):
                del state.suspects[key]
                state.trusted[key] = since + TRUST
            elif state.replaced:
                del state.suspects[key]
                yield self.destroy(subflow, "it is silent, and a new handshake was answered")
        state.replaced = bool(state.suspects) and state.replaced

    def _state(self, token: int) -> _State:
        state = self._states.get(token)
        if state is None:
            state = self._states[token] = _State()
        return state

    def _slot(self, token: int, pair: Pair) -> _Slot | None:
        state = self._states.get(token)
        return state.slots.get(pair) if state is not None else None

    def _back_off(self, ctx: Context, token: int, slot: _Slot, pause: int | None) -> WakeAt:
        if pause is None or slot.failures:
            pause = min(self._first << min(slot.failures, 20), self._longest)
            connection = ctx.world.connections.get(token)
            if connection is not None and not self.carrying(ctx.world, connection):
                pause = min(pause, FORSAKEN_PAUSE) if slot.failures else 0
        slot.failures += 1
        slot.next_at = ctx.now + pause - int(pause * ctx.random.random() / 4)
        return _wake(token, slot.next_at)


def _routed_at(world: World, local_ip: str) -> int:
    """When joins from an address may begin although its interface has no default route; 0 if they
    may now."""
    if_index = world.interface_of(local_ip)
    address = world.addresses.get((if_index, local_ip)) if if_index is not None else None
    if (
        address is None
        or address.since is None
        or world.has_default_route(address.if_index, local_ip)
    ):
        return 0
    return address.since + ROUTE_WITHIN


def _wake(token: int, at: int) -> WakeAt:
    return WakeAt(at=at, token=token, reason="a join is due")


def _pair(subflow: Subflow) -> Pair:
    return (subflow.local.ip, subflow.remote)


def mark(subflow: Subflow, reason: str, *, backup: bool, routine: bool = False) -> SetBackup:
    """Sets or clears the backup flag of a subflow."""
    return SetBackup(
        token=subflow.token,
        local=subflow.local,
        remote=subflow.remote,
        backup=backup,
        reason=reason,
        routine=routine,
    )


def tell_peer(subflows: Iterable[Subflow], reason: str) -> Iterator[WithdrawAddress]:
    """Withdraws, over other paths, the address ids of subflows that are about to be destroyed.

    A FIN does not arrive where the path is gone, and the peer would go on sending there for
    seconds.  Before the destruction, since the kernel forgets an id with its subflow.
    """
    ids = {(each.token, each.local_id): None for each in subflows}
    for token, local_id in ids:
        if local_id is not None:
            why = f"tell the peer over another path: {reason}"
            yield WithdrawAddress(token=token, address_id=local_id, reason=why, routine=True)
