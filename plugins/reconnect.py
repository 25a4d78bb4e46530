# SPDX-License-Identifier: BSD-3-Clause
"""Creates lost subflows again, and no others.

The application, the peer or the operator chooses which subflows a connection has. When one is lost
while the connection exists, the plugin joins again between the same two addresses. How soon
depends on the cause:

* the peer reset it and said why (MP_TCPRST, RFC 8684, 3.6): at once if the peer called it
transient, never if it prohibits the path or a middlebox breaks it, else after a pause;
* it was reset without a reason, as by a NAT that lost its binding or by a firewall: at once, since
a new SYN creates a new binding;
* nothing was acknowledged until the kernel gave up: after a pause, since the path is down;
* nothing is acknowledged, but the kernel has not given up yet, which takes a quarter of an hour
(the probes see the timeouts): a second subflow is joined between the same addresses. If its
handshake is answered, the silent one is destroyed: a NAT or firewall in between had lost its
state, or the path was down and is back. If the peer closes the new one at once, the plugin tries
again after a pause.

Pauses double with each failure. A subflow that either side closed in order is not lost. Only the
client side acts.
"""

import errno
from collections.abc import Iterable, Iterator
from typing import Annotated, ClassVar, NamedTuple

from msgspec import Meta

from mptcpd_ebpf.plugin import (
    MS,
    SECOND,
    SHORT_LIFE,
    AlarmKind,
    AlarmRaised,
    Command,
    Connection,
    Context,
    JoiningPlugin,
    KernelCommand,
    Options,
    Reconciler,
    SockAddr,
    Subflow,
    SubflowKey,
    Want,
)

TRANSIENT = 0x1
"""Flag T of MP_TCPRST: the cause may go away (RFC 8684, 3.6)."""
PROHIBITED = 3
FOR_GOOD = {PROHIBITED: "administratively prohibited", 6: "middlebox interference"}
"""Reasons of MP_TCPRST after which retrying is useless."""


class ReconnectOptions(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be set under `plugins: reconnect:`."""

    first_pause_ms: Annotated[int, Meta(ge=1)] = 500
    """After a first failure; doubles with each."""
    longest_pause_s: Annotated[int, Meta(ge=1)] = 60


class Pair(NamedTuple):
    """Between which addresses a subflow was lost, or is silent."""

    local_ip: str
    remote: SockAddr


class Lost(NamedTuple):
    """A subflow that is to be created again."""

    how: str
    backup: bool


class Reconnect(JoiningPlugin):
    name = "reconnect"
    Options: ClassVar[type[Options]] = ReconnectOptions

    options: ReconnectOptions

    def init(self, ctx: Context) -> Iterable[Command]:
        self.lost: dict[int, dict[Pair, Lost]] = {}
        """By token."""
        self.silent: dict[int, dict[SubflowKey, int]] = {}
        """By token: subflows without any answer, and how many there should be between their
        addresses while another one is tried."""
        self.successors: dict[int, set[SubflowKey]] = {}
        """By token: subflows that replaced a lost or silent one."""
        self.reconciler = Reconciler(
            self.ids,
            first_pause=self.options.first_pause_ms * MS,
            longest_pause=self.options.longest_pause_s * SECOND,
        )
        return ()

    def wants(self, ctx: Context, connection: Connection) -> Iterator[Want]:
        usable = [address.ip for address in ctx.world.usable_addresses()]
        for pair, lost in self.lost.get(connection.token, {}).items():
            if pair.local_ip in usable:
                yield Want(*pair, f"it was lost: {lost.how}", lost.backup)
        for subflow in self._silent(connection):
            number = self.silent[connection.token][subflow.key]
            if subflow.local.ip in usable:
                reason = f"{subflow} is silent; is a new handshake answered?"
                yield Want(subflow.local.ip, subflow.remote, reason, subflow.backup, number)

    def alarm(
        self, ctx: Context, connection: Connection, subflow: Subflow, alarm: AlarmRaised
    ) -> Iterable[Command]:
        silent = self.silent.setdefault(connection.token, {})
        if (
            connection.server_side
            or alarm.kind is not AlarmKind.TIMEOUTS
            or subflow.key in silent
            or self.reconciler.is_leaving(subflow)
            or (connection.deny_join_id0 and subflow.remote == connection.remote)
        ):
            return
        silent[subflow.key] = 1 + sum(
            _pair(other) == _pair(subflow) for other in connection.usable_subflows()
        )
        yield from self.keep(ctx, connection)

    def sampled(self, ctx: Context) -> Iterable[Command]:
        """A join beside a silent subflow was not answered: checks whether that one is still
        silent."""
        for connection in ctx.served():
            for subflow in self._silent(connection):
                if subflow.measured is not None and not subflow.measured.timeouts:
                    del self.silent[connection.token][subflow.key]
        return super().sampled(ctx)

    def new_subflow(
        self, ctx: Context, connection: Connection, subflow: Subflow
    ) -> Iterable[Command]:
        successors = self.successors.setdefault(connection.token, set())
        if self.lost.get(connection.token, {}).pop(_pair(subflow), None):
            successors.add(subflow.key)
        yield from super().new_subflow(ctx, connection, subflow)
        for other in self._silent(connection):
            if _pair(other) == _pair(subflow):
                del self.silent[connection.token][other.key]
                successors.add(subflow.key)
                reason = (
                    "it is silent, but a new handshake was answered: a NAT or firewall lost "
                    "its state, or the path was down"
                )
                yield self.reconciler.destroy(other, reason)

    def subflow_closed(
        self, ctx: Context, connection: Connection, subflow: Subflow
    ) -> Iterable[Command]:
        self.silent.get(connection.token, {}).pop(subflow.key, None)
        if connection.server_side or connection.token not in ctx.world.connections:
            return
        pair = _pair(subflow)
        lost = self.lost.setdefault(connection.token, {})
        cause = self._taken_back(ctx, subflow) or _cause(subflow)
        beside = any(_pair(other) == pair for other in self._silent(connection))
        if beside or self.reconciler.is_leaving(subflow) or (cause is None and pair not in lost):
            # It was tried beside a silent one, or closed in order. A failed join of ours is still
            # to be made.
            yield from self.reconciler.closed(ctx, subflow)
        else:
            how, pause = cause or (lost[pair].how, None)
            if pause == FOREVER:
                lost.pop(pair, None)
                return
            lost[pair] = Lost(how, lost[pair].backup if pair in lost else subflow.backup)
            yield from self.reconciler.closed(ctx, subflow, pause=pause)
        yield from self.keep(ctx, connection)

    def _taken_back(self, ctx: Context, subflow: Subflow) -> tuple[str, int | None] | None:
        """Whether the peer answered a successor's SYN and then closed it without a reason. A peer
        at its limit of subflows does so, and Linux 6.1 and 6.12 do while data waits out of order:
        neither is permanent.
        """
        successors = self.successors.get(subflow.token, set())
        if subflow.key not in successors:
            return None
        successors.remove(subflow.key)
        says_more = subflow.error or subflow.reset_reason not in (None, PROHIBITED)
        opened_at = subflow.opened_at
        if says_more or (opened_at is not None and ctx.now - opened_at >= SHORT_LIFE):
            return None
        return "the peer answered its successor, and closed it at once", None

    def manual_command(self, ctx: Context, command: KernelCommand) -> Iterable[Command]:
        """A subflow that the operator destroys is not lost."""
        return ()

    def _silent(self, connection: Connection) -> list[Subflow]:
        keys = self.silent.get(connection.token, {})
        return [connection.subflows[key] for key in keys if key in connection.subflows]

    def connection_closed(self, ctx: Context, connection: Connection) -> Iterable[Command]:
        self.lost.pop(connection.token, None)
        self.silent.pop(connection.token, None)
        self.successors.pop(connection.token, None)
        return super().connection_closed(ctx, connection)


def _pair(subflow: Subflow) -> Pair:
    return Pair(subflow.local.ip, subflow.remote)


FOREVER = -1
"""A pause without end."""


def _cause(subflow: Subflow) -> tuple[str, int | None] | None:
    """How a subflow was lost, and how long to wait (None: as failures say); None: in order."""
    reason = subflow.reset_reason
    if reason is not None:
        words = FOR_GOOD.get(reason, f"reason {reason}")
        if reason in FOR_GOOD:
            return f"the peer reset it ({words})", FOREVER
        transient = (subflow.reset_flags or 0) & TRANSIENT
        return f"the peer reset it ({words})", 0 if transient else None
    match subflow.error:
        case 0:
            return None
        case errno.ECONNRESET | errno.EPIPE:
            return "a reset without a reason, perhaps by a NAT that lost its binding", 0
        case errno.ETIMEDOUT:
            return "nothing was acknowledged until the kernel gave up", SECOND
        case other:
            return errno.errorcode.get(other, str(other)), None
