# SPDX-License-Identifier: BSD-3-Clause
"""Keeps connections at the subflows they should have: joins what is missing, again and again.

A plugin says which subflows a connection should have (`Want`), whenever something may have
changed; the joins that are missing leave at once.  A join that fails, and a subflow that
does not live long, make the next try wait: the pause doubles with each failure and is
shortened by up to a quarter at random, so that many connections that lost the same path
do not come back in one moment.

The kernel goes on sending SYNs of a join that is not answered for minutes; such a join is
looked for in a reading of the sockets and given up.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
"""A join that is not answered by then has failed."""

SHORT_LIFE = 10 * SECOND
"""A subflow that closes sooner is one more failure of its path, not a loss that came by itself."""


STRAY = "its interface may not be used, by the configuration"
"""Why a subflow goes that `World.strays` names."""


class Want(NamedTuple):
    """Subflows that should be there: `number` of them between two addresses."""

    local_ip: str
    remote: SockAddr
    reason: str
    backup: bool = False
    number: int = 1


JoinName = tuple[int, str, SockAddr]
"""Token, our address, the peer's address and port."""


@dataclass(slots=True)
class _Slot:
    """What is known of the joins between two addresses in one connection."""

    under_way: int = 0
    deadline: int = 0
    failures: int = 0
    next_at: int = 0
    declined: int = 0
    """How many of those wanted a person had destroyed."""


class Joins:
    """The joins of all connections that a plugin serves.

    `first_pause` and `longest_pause`: nanoseconds before the next try after a first
    failure, and at most.
    """

    def __init__(
        self, ids: AddressIds, *, first_pause: int = 500 * MS, longest_pause: int = 60 * SECOND
    ) -> None:
        self._ids = ids
        self._first = first_pause
        self._longest = longest_pause
        self._slots: dict[JoinName, _Slot] = {}
        self._leaving: dict[tuple[int, SubflowKey], None] = {}

    def keep(
        self, ctx: Context, connection: Connection, wants: Iterator[Want] | list[Want]
    ) -> Iterator[Command]:
        """Joins what is missing of `wants` and may be tried now; asks to be woken for the rest."""
        if connection.state is not State.ESTABLISHED:
            return
        for want in wants:
            if is_ipv6(want.local_ip) != is_ipv6(want.remote.ip):
                continue
            name = (connection.token, want.local_ip, want.remote)
            known = name in self._slots
            slot = self._slots.setdefault(name, _Slot())
            wanted = want.number - slot.declined
            missing = wanted - slot.under_way - self._there(connection, want)
            if missing <= 0:
                continue
            if not known and (want.local_ip, want.remote) in connection.joins_under_way():
                # Asked for before a reload, or by a person: it gets its time to be answered.
                slot.under_way, slot.deadline = missing, ctx.now + ANSWER_WITHIN
                yield WakeAt(at=slot.deadline, reason="were the joins answered?")
                continue
            if slot.next_at > ctx.now:
                yield WakeAt(at=slot.next_at, reason="the next try")
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
            yield WakeAt(at=slot.deadline, reason="were the joins answered?")

    def destroy(self, subflow: Subflow, reason: str) -> DestroySubflow:
        """Its end is then our doing, and no failure."""
        self._leaving[subflow.token, subflow.key] = None
        return DestroySubflow(
            token=subflow.token, local=subflow.local, remote=subflow.remote, reason=reason
        )

    def leave(self, subflows: list[Subflow], reason: str) -> Iterator[Command]:
        """Destroys subflows whose path is gone; the peer is told first (`tell_peer`)."""
        for token in dict.fromkeys(subflow.token for subflow in subflows):
            of_one = [subflow for subflow in subflows if subflow.token == token]
            yield from tell_peer(of_one, reason)
            for subflow in of_one:
                yield self.destroy(subflow, reason)

    def manual_command(self, command: ConnectionCommand) -> None:
        """What a person had destroyed is not made again, unless he makes it."""
        match command:
            case DestroySubflow():
                name = (command.token, command.local.ip, command.remote)
                self._slots.setdefault(name, _Slot()).declined += 1
                self._leaving[command.token, (command.local, command.remote)] = None
            case CreateSubflow():
                slot = self._slots.get((command.token, command.local_ip, command.remote))
                if slot is not None and slot.declined:
                    slot.declined -= 1

    def start_afresh(self, local_ip: str | None = None) -> None:
        """Forgets what a person had destroyed, from one address of ours or from all."""
        for (_, ip, _), slot in self._slots.items():
            if local_ip in (ip, None):
                slot.declined = 0

    def is_leaving(self, subflow: Subflow) -> bool:
        """Whether it was destroyed, and is not gone yet."""
        return (subflow.token, subflow.key) in self._leaving

    # --- what happened

    def opened(self, subflow: Subflow) -> None:
        """A join succeeded."""
        slot = self._slots.get(_name(subflow))
        if slot is not None and slot.under_way:
            slot.under_way -= 1

    def closed(
        self, ctx: Context, subflow: Subflow, *, pause: int | None = None
    ) -> Iterator[Command]:
        """A subflow is gone, or a join failed.

        `pause` is how long to wait before the next try (nanoseconds), if the cause tells; it
        holds for a first failure, after which pauses grow as always.
        """
        name = (subflow.token, subflow.key)
        if name in self._leaving:
            del self._leaving[name]
            return
        slot = self._slots.setdefault(_name(subflow), _Slot())
        if subflow.failed:
            slot.under_way = max(slot.under_way - 1, 0)
        elif subflow.opened_at is None or ctx.now - subflow.opened_at >= SHORT_LIFE:
            slot.failures = 0
        yield from self._back_off(ctx, slot, pause)

    def connection_closed(self, token: int) -> None:
        self._slots = {name: slot for name, slot in self._slots.items() if name[0] != token}
        self._leaving = {name: None for name in self._leaving if name[0] != token}

    def answered(self, ctx: Context, decision: Decision, errno: int) -> Iterator[Command]:
        """The kernel's answer to one of our commands."""
        command = decision.command
        if errno and isinstance(command, DestroySubflow):
            self.refused(decision)
        if errno and isinstance(command, CreateSubflow):
            slot = self._slots.get((command.token, command.local_ip, command.remote))
            if slot is not None and slot.under_way:
                slot.under_way -= 1
                connection = ctx.world.connections.get(command.token)
                if connection is not None and connection.state is State.ESTABLISHED:
                    yield from self._back_off(ctx, slot, None)

    def refused(self, decision: Decision) -> None:
        """The engine kept a command from the kernel."""
        command = decision.command
        if isinstance(command, DestroySubflow):
            self._leaving.pop((command.token, (command.local, command.remote)), None)

    def expire(self, ctx: Context) -> Iterator[Command]:
        """Time has passed: joins that were not answered have failed.

        The plugin says again what it wants afterwards.
        """
        late = [s for s in self._slots.values() if s.under_way and s.deadline <= ctx.now]
        for slot in late:
            slot.under_way = 0
            yield from self._back_off(ctx, slot, None)
        if late:
            yield RequestSample(reason="find the joins that were not answered, to give them up")
        for slot in self._slots.values():
            if slot.under_way:
                yield WakeAt(at=slot.deadline, reason="were the joins answered?")

    def give_up(self, ctx: Context) -> Iterator[Command]:
        """After a sample: destroys joins that are still under way and nobody waits for."""
        for connection in ctx.served():
            for subflow in connection.subflows.values():
                slot = self._slots.get(_name(subflow))
                if (
                    subflow.state is State.OPENING
                    and not subflow.initial
                    and slot is not None
                    and not slot.under_way
                    and not self.is_leaving(subflow)
                ):
                    yield self.destroy(subflow, "the join was not answered")

    def _there(self, connection: Connection, want: Want) -> int:
        return sum(
            subflow.local.ip == want.local_ip
            and subflow.remote == want.remote
            and subflow.usable
            and not self.is_leaving(subflow)
            for subflow in connection.subflows.values()
        )

    def _back_off(self, ctx: Context, slot: _Slot, pause: int | None) -> Iterator[Command]:
        if pause is None or slot.failures:
            pause = min(self._first << min(slot.failures, 20), self._longest)
        slot.failures += 1
        slot.next_at = ctx.now + pause - int(pause * ctx.random.random() / 4)
        yield WakeAt(at=slot.next_at, reason="the next try")


def _name(subflow: Subflow) -> JoinName:
    return (subflow.token, subflow.local.ip, subflow.remote)


def tell_peer(subflows: Iterable[Subflow], reason: str) -> Iterator[WithdrawAddress]:
    """Withdraws, over other paths, the address ids of subflows that are about to be destroyed.

    No FIN arrives where the path is gone, and the peer would go on sending there until it
    loses patience.  Before, not after: the kernel forgets an id when its subflow is destroyed.
    """
    ids = {(each.token, each.local_id): None for each in subflows}
    for token, local_id in ids:
        if local_id is not None:
            why = f"tell the peer over another path: {reason}"
            yield WithdrawAddress(token=token, address_id=local_id, reason=why, routine=True)
