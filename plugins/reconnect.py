# SPDX-License-Identifier: BSD-3-Clause
"""Makes subflows anew that were lost, and no others.

Which subflows a connection has is somebody else's choice: the application's, the peer's, a
person's by hand.  When one is lost while the connection lives, it is joined again between
the same two addresses, sooner or later by what took it:

* the peer reset it and said why (MP_TCPRST, RFC 8684, 3.6): at once if it called that
  transient, not at all if it forbids the path or a middlebox breaks it, else after a pause;
* it was reset without a word, as a NAT does whose binding is gone, or by a firewall: at
  once, for a new SYN makes a new binding;
* nothing came back until the kernel gave up: after a pause, for the path is down.

Pauses double with each failure.  What we or the peer closed in order is not lost.  Only the
client side acts.
"""

import errno
from collections.abc import Iterable, Iterator
from typing import Annotated, ClassVar, NamedTuple

from msgspec import Meta

from mptcpd_ebpf.plugin import (
    MS,
    SECOND,
    Command,
    Connection,
    Context,
    JoiningPlugin,
    Joins,
    Options,
    SockAddr,
    Subflow,
    Want,
)

TRANSIENT = 0x1
"""Flag T of MP_TCPRST: the cause may go away (RFC 8684, 3.6)."""
FOR_GOOD = {3: "administratively prohibited", 6: "middlebox interference"}
"""Reasons of MP_TCPRST against which trying again is no use."""


class ReconnectOptions(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be set under `plugins: reconnect:`."""

    first_pause_ms: Annotated[int, Meta(ge=1)] = 500
    """After a first failure; doubles with each."""
    longest_pause_s: Annotated[int, Meta(ge=1)] = 60


class Lost(NamedTuple):
    """Between which addresses a subflow was lost."""

    local_ip: str
    remote: SockAddr


class Reconnect(JoiningPlugin):
    name = "reconnect"
    Options: ClassVar[type[Options]] = ReconnectOptions

    options: ReconnectOptions

    def init(self, ctx: Context) -> Iterable[Command]:
        self.lost: dict[int, dict[Lost, str]] = {}
        """By token: what was lost, and how."""
        self.joins = Joins(
            self.ids,
            first_pause=self.options.first_pause_ms * MS,
            longest_pause=self.options.longest_pause_s * SECOND,
        )
        return ()

    def wants(self, ctx: Context, connection: Connection) -> Iterator[Want]:
        usable = [address.ip for address in ctx.world.usable_addresses()]
        for lost, how in self.lost.get(connection.token, {}).items():
            if lost.local_ip in usable:
                yield Want(lost.local_ip, lost.remote, f"it was lost: {how}")

    def new_subflow(
        self, ctx: Context, connection: Connection, subflow: Subflow
    ) -> Iterable[Command]:
        self.lost.get(connection.token, {}).pop(Lost(subflow.local.ip, subflow.remote), None)
        return super().new_subflow(ctx, connection, subflow)

    def subflow_closed(
        self, ctx: Context, connection: Connection, subflow: Subflow
    ) -> Iterable[Command]:
        if connection.server_side or connection.token not in ctx.world.connections:
            return
        name = Lost(subflow.local.ip, subflow.remote)
        lost = self.lost.setdefault(connection.token, {})
        cause = _cause(subflow)
        if self.joins.is_leaving(subflow) or (cause is None and name not in lost):
            # Closed in order; but a join of ours that failed is still to be made.
            yield from self.joins.closed(ctx, subflow)
        else:
            how, pause = cause or (lost[name], None)
            if pause == FOREVER:
                lost.pop(name, None)
                return
            lost[name] = how
            yield from self.joins.closed(ctx, subflow, pause=pause)
        yield from self.keep(ctx, connection)

    def connection_closed(self, ctx: Context, connection: Connection) -> Iterable[Command]:
        self.lost.pop(connection.token, None)
        return super().connection_closed(ctx, connection)


FOREVER = -1
"""A pause that does not end."""


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
            return "a reset without a word, perhaps of a NAT that forgot it", 0
        case errno.ETIMEDOUT:
            return "nothing came back until the kernel gave up", SECOND
        case other:
            return errno.errorcode.get(other, str(other)), None
