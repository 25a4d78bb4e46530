# SPDX-License-Identifier: BSD-3-Clause
"""Keeps connections at the subflows they should have: creates what is missing, with retries.

A plugin states which subflows a connection should have (`Want`) whenever something may have
changed, and the missing joins are created at once.  After a failed join, or a subflow that closed
soon, the next try waits: the pause doubles with each failure and is shortened by up to a quarter
at random, so that many connections that lost the same path do not retry at the same moment.

The kernel repeats the SYN of an unanswered join for minutes.  Such a join is found in a dump of
the sockets and destroyed.

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
    WakeAt,
    WithdrawAddress,
)
from mptcpd_ebpf.core.model import MS, SECOND, Connection, State, Subflow, SubflowKey
from mptcpd_ebpf.core.plugin import Context

ANSWER_WITHIN = 3 * SECOND
"""Nanoseconds: an unanswered join has failed by then."""

SHORT_LIFE = 10 * SECOND
"""Nanoseconds: a subflow that closes sooner counts as one more failure of its path."""


STRAY = "the configuration does not allow its interface"
"""Why a subflow that `World.strays` names is destroyed."""


class Want(NamedTuple):
    """Subflows that should exist: `number` of them between two addresses."""

    local_ip: str
    remote: SockAddr
    reason: str
    backup: bool = False
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


@dataclass(slots=True)
class _State:
    """The joins of one connection."""

    slots: dict[Pair, _Slot] = field(default_factory=dict)
    leaving: dict[SubflowKey, None] = field(default_factory=dict)
    """Subflows that were destroyed and are not closed yet."""


class Joins:
    """The joins of all connections that a plugin serves.

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

    def keep(
        self, ctx: Context, connection: Connection, wants: Iterable[Want]
    ) -> Iterator[Command]:
        """Creates what is missing of `wants` and may be tried now; sets timers for the rest."""
        if connection.state is not State.ESTABLISHED:
            return
        state = self._state(connection.token)
        for want in wants:
            if is_ipv6(want.local_ip) != is_ipv6(want.remote.ip):
                continue
            pair = (want.local_ip, want.remote)
            known = pair in state.slots
            slot = state.slots.setdefault(pair, _Slot())
            existing = self._existing(connection, want)
            missing = want.number - slot.declined - slot.under_way - existing
            if missing <= 0:
                continue
            if not known and pair in connection.joins_under_way():
                # Requested before a reload, or by the operator: it gets its time to be answered.
                slot.under_way, slot.deadline = missing, ctx.now + ANSWER_WITHIN
                yield _wake(connection.token, slot.deadline)
                continue
            if slot.next_at > ctx.now:
                yield _wake(connection.token, slot.next_at)
                continue
            slot.under_way += missing
            slot.deadline = ctx.now + ANSWER_WITHIN
            again = f" (failed {slot.failures} time(s) before)" if slot.failures else ""
            for _ in range(missing):
                yield CreateSubflow(
                    token=connection.token,
                    local_ip=want.local_ip,
                    local_id=self._ids.for_connection(connection, want.local_ip),
                    remote=want.remote,
                    if_index=ctx.world.interface_of(want.local_ip) or 0,
                    backup=want.backup,
                    reason=want.reason + again,
                )
            yield _wake(connection.token, slot.deadline)

    def destroy(self, subflow: Subflow, reason: str) -> DestroySubflow:
        """Its end is then intended, and no failure."""
        self._state(subflow.token).leaving[subflow.key] = None
        return DestroySubflow(
            token=subflow.token, local=subflow.local, remote=subflow.remote, reason=reason
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

    def manual_command(self, command: ConnectionCommand) -> None:
        """A subflow that the operator destroyed is not created again, unless the operator does."""
        match command:
            case DestroySubflow():
                state = self._state(command.token)
                state.slots.setdefault((command.local.ip, command.remote), _Slot()).declined += 1
                state.leaving[command.local, command.remote] = None
            case CreateSubflow():
                slot = self._slot(command.token, (command.local_ip, command.remote))
                if slot is not None and slot.declined:
                    slot.declined -= 1

    def start_afresh(self, local_ip: str | None = None) -> None:
        """Forgets what the operator destroyed, from one address of ours or from all."""
        for state in self._states.values():
            for (ip, _), slot in state.slots.items():
                if local_ip in (ip, None):
                    slot.declined = 0

    def is_leaving(self, subflow: Subflow) -> bool:
        """Whether it was destroyed, and is not closed yet."""
        state = self._states.get(subflow.token)
        return state is not None and subflow.key in state.leaving

    # --- what happened

    def opened(self, subflow: Subflow) -> None:
        """A join succeeded."""
        slot = self._slot(subflow.token, _pair(subflow))
        if slot is not None and slot.under_way:
            slot.under_way -= 1

    def closed(
        self, ctx: Context, subflow: Subflow, *, pause: int | None = None
    ) -> Iterator[Command]:
        """A subflow closed, or a join failed.

        `pause` is how long to wait before the next try (nanoseconds), if the cause tells; it
        holds for a first failure, after which pauses grow as always.
        """
        state = self._state(subflow.token)
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
        command = decision.command
        if isinstance(command, DestroySubflow) and command.token in self._states:
            self._states[command.token].leaving.pop((command.local, command.remote), None)

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
            if not self._overdue:
                yield RequestSample(reason="find the unanswered joins, to destroy them")
            self._overdue[connection.token] = None

    def give_up(self, ctx: Context) -> Iterator[Command]:
        """After a sample: destroys joins that are still under way and have failed."""
        overdue, self._overdue = self._overdue, {}
        for token in overdue:
            connection = ctx.connections.get(token)
            for subflow in connection.subflows.values() if connection is not None else ():
                slot = self._slot(token, _pair(subflow))
                if (
                    subflow.state is State.OPENING
                    and not subflow.initial
                    and slot is not None
                    and not slot.under_way
                    and not self.is_leaving(subflow)
                ):
                    yield self.destroy(subflow, "the join was not answered")

    def _state(self, token: int) -> _State:
        state = self._states.get(token)
        if state is None:
            state = self._states[token] = _State()
        return state

    def _slot(self, token: int, pair: Pair) -> _Slot | None:
        state = self._states.get(token)
        return state.slots.get(pair) if state is not None else None

    def _existing(self, connection: Connection, want: Want) -> int:
        return sum(
            subflow.local.ip == want.local_ip
            and subflow.remote == want.remote
            and subflow.usable
            and not self.is_leaving(subflow)
            for subflow in connection.subflows.values()
        )

    def _back_off(self, ctx: Context, token: int, slot: _Slot, pause: int | None) -> WakeAt:
        if pause is None or slot.failures:
            pause = min(self._first << min(slot.failures, 20), self._longest)
        slot.failures += 1
        slot.next_at = ctx.now + pause - int(pause * ctx.random.random() / 4)
        return _wake(token, slot.next_at)


def _wake(token: int, at: int) -> WakeAt:
    return WakeAt(at=at, token=token, reason="a join is due")


def _pair(subflow: Subflow) -> Pair:
    return (subflow.local.ip, subflow.remote)


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
