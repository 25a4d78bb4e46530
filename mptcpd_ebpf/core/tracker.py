# SPDX-License-Identifier: BSD-3-Clause
"""Events → model: keeps the World true, and says what changed.

Netlink is the authority on what exists, the probes on its numbers, and the two
arrive in no given order.  So:

* a probe's word about a subflow that netlink has not named yet is kept aside until
  netlink names it, or for `GRACE`;
* a subflow is final when both said their last word, or `GRACE` after the first;
* older numbers never replace newer ones, and a last word is never unsaid.

Whatever the interleaving, the same events end in the same model.

`apply` and `expire` return notices: the name of a plugin handler (see `plugin`) and
its arguments, in the order in which things happened.
"""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, NamedTuple

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core import network
from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.measurement import Measurement
from mptcpd_ebpf.core.model import (
    Connection,
    State,
    Subflow,
    SubflowKey,
    World,
)
from mptcpd_ebpf.core.notice import Notice

GRACE = 1_000_000_000
"""Nanoseconds that one source waits for the other."""

TCP_ESTABLISHED, TCP_SYN_SENT, TCP_SYN_RECV, TCP_CLOSE_WAIT = 1, 2, 3, 8
_LIVE = {
    TCP_ESTABLISHED: State.ESTABLISHED,
    TCP_CLOSE_WAIT: State.ESTABLISHED,
    TCP_SYN_SENT: State.OPENING,
    TCP_SYN_RECV: State.OPENING,
}


class _Waiting(NamedTuple):
    """What one source said and the other has not yet answered."""

    deadline: int
    subject: Any


class Tracker:
    """Applies events to `world`."""

    def __init__(self) -> None:
        self.world = World()
        self._early: dict[tuple[int, SubflowKey], _Waiting] = {}
        """Measurements of subflows that netlink has not named."""
        self._closing: dict[tuple[int, SubflowKey], _Waiting] = {}
        """Subflows that netlink closed, waiting for the probes' last word."""
        self._ended: dict[tuple[int, SubflowKey], int] = {}
        """Deadlines of live subflows whose probes said their last word."""

    @property
    def deadline(self) -> int | None:
        """When `expire` has something to do, in CLOCK_MONOTONIC nanoseconds."""
        # Every deadline is set GRACE ahead, so each dict has its earliest first.
        first = [entry.deadline for entry in islice(self._early.values(), 1)]
        first += [entry.deadline for entry in islice(self._closing.values(), 1)]
        first += islice(self._ended.values(), 1)
        return min(first, default=None)

    def apply(self, event: ev.Event, now: int) -> list[Notice]:
        """Brings the world up to date with one event."""
        handler = _APPLY.get(type(event))
        if handler is not None:
            return handler(self, event, now)
        return network.apply(self.world, event)

    def expire(self, now: int) -> list[Notice]:
        """Gives up waiting where `GRACE` has passed."""
        notices: list[Notice] = []
        for name, entry in list(self._early.items()):
            if entry.deadline <= now:
                del self._early[name]
        for name, entry in list(self._closing.items()):
            if entry.deadline <= now:
                del self._closing[name]
                notices.append(Notice("subflow_final", (entry.subject,)))
        for (token, key), deadline in list(self._ended.items()):
            if deadline <= now:
                del self._ended[token, key]
                connection = self.world.connections.get(token)
                if connection is not None and key in connection.subflows:
                    subflow = connection.subflows.pop(key)
                    notices.append(Notice("subflow_closed", (connection, subflow), connection))
                    notices.append(Notice("subflow_final", (subflow,)))
        return notices

    # --- connections

    def _initial_subflow(self, connection: Connection, if_index: int | None, now: int) -> None:
        subflow = Subflow(
            connection.token,
            connection.local,
            connection.remote,
            initial=True,
            local_id=0,
            remote_id=0,
            if_index=if_index or self.world.interface_of(connection.local.ip),
            opened_at=now,
        )
        self._add_subflow(connection, subflow, now)

    def _created(
        self, event: ev.ConnectionCreated | ev.ConnectionEstablished, now: int
    ) -> list[Notice]:
        held = self.world.connections.get(event.token)
        if held is not None and (held.local, held.remote) == (event.local, event.remote):
            held.server_side, held.deny_join_id0 = event.server_side, event.deny_join_id0
            return []
        connection = Connection(
            event.token,
            event.local,
            event.remote,
            server_side=event.server_side,
            deny_join_id0=event.deny_join_id0,
            opened_at=now,
        )
        self.world.connections[event.token] = connection
        self._initial_subflow(connection, event.if_index, now)
        return [Notice("new_connection", (connection,), connection)]

    def _established(self, event: ev.ConnectionEstablished, now: int) -> list[Notice]:
        notices = self._created(event, now)
        connection = self.world.connections[event.token]
        if connection.state is not State.ESTABLISHED:
            connection.state = State.ESTABLISHED
            notices.append(Notice("connection_established", (connection,), connection))
        return notices

    def _connection_closed(self, event: ev.ConnectionClosed, now: int) -> list[Notice]:
        connection = self.world.connections.pop(event.token, None)
        if connection is None:
            return []
        notices = []
        for subflow in list(connection.subflows.values()):
            notices += self._close_subflow(connection, subflow, now)
        connection.state = State.CLOSED
        notices.append(Notice("connection_closed", (connection,), connection))
        return notices

    def _announced(self, event: ev.AddressAnnounced, now: int) -> list[Notice]:
        connection = self.world.connections.get(event.token)
        if connection is None:
            return []
        address = SockAddr(event.ip, event.port)
        connection.announced[event.address_id] = address
        return [Notice("new_address", (connection, event.address_id, address), connection)]

    def _withdrawn(self, event: ev.AddressWithdrawn, now: int) -> list[Notice]:
        connection = self.world.connections.get(event.token)
        if connection is None:
            return []
        address = connection.announced.pop(event.address_id, None)
        return [Notice("address_removed", (connection, event.address_id, address), connection)]

    # --- subflows

    def _add_subflow(self, connection: Connection, subflow: Subflow, now: int) -> None:
        name = (connection.token, subflow.key)
        connection.subflows[subflow.key] = subflow
        self._ended.pop(name, None)
        if subflow.local_id:
            connection.local_ids[subflow.local.ip] = subflow.local_id
        early = self._early.pop(name, None)
        if early is not None:
            self._measure(connection, subflow, early.subject, now)

    def _subflow_established(self, event: ev.SubflowEstablished, now: int) -> list[Notice]:
        connection = self.world.connections.get(event.token)
        if connection is None:
            return []
        key = (event.local, event.remote)
        known = connection.subflows.get(key)
        subflow = Subflow(
            event.token,
            *key,
            local_id=event.local_id,
            remote_id=event.remote_id,
            if_index=event.if_index or self.world.interface_of(event.local.ip),
            backup=event.backup,
            opened_at=now,
            error=event.error,
        )
        if known is not None and known.state is State.OPENING:
            subflow.measured = known.measured
            subflow.opened_at = known.opened_at
            subflow.backup = subflow.backup or known.backup
        elif known is not None and known.state is State.ESTABLISHED:
            known.local_id, known.remote_id = event.local_id, event.remote_id
            return []
        self._add_subflow(connection, subflow, now)
        return [Notice("new_subflow", (connection, subflow), connection)]

    def _subflow_closed(self, event: ev.SubflowClosed, now: int) -> list[Notice]:
        connection = self.world.connections.get(event.token)
        subflow = connection.subflows.get((event.local, event.remote)) if connection else None
        if connection is None or subflow is None:
            return []
        subflow.error = event.error
        subflow.reset_reason = event.reset_reason
        return self._close_subflow(connection, subflow, now)

    def _close_subflow(self, connection: Connection, subflow: Subflow, now: int) -> list[Notice]:
        name = (connection.token, subflow.key)
        del connection.subflows[subflow.key]
        subflow.state = State.CLOSED
        self._ended.pop(name, None)
        notices = [Notice("subflow_closed", (connection, subflow), connection)]
        if subflow.measured is not None and subflow.measured.closed:
            notices.append(Notice("subflow_final", (subflow,)))
        else:
            self._closing[name] = _Waiting(now + GRACE, subflow)
        return notices

    def _subflow_priority(self, event: ev.SubflowPriority, now: int) -> list[Notice]:
        connection = self.world.connections.get(event.token)
        subflow = connection.subflows.get((event.local, event.remote)) if connection else None
        if connection is None or subflow is None:
            return []
        subflow.backup_by_peer = event.backup
        return [Notice("subflow_priority", (connection, subflow), connection)]

    # --- the probes' numbers

    def _measure(
        self, connection: Connection, subflow: Subflow, measured: Measurement, now: int
    ) -> None:
        held = subflow.measured
        if held is not None and (held.closed or held.at > measured.at):
            return
        subflow.measured = measured
        if measured.opened_at is not None:
            subflow.opened_at = measured.opened_at
        if measured.subflow_id is not None and subflow.local_id is None:
            subflow.local_id = measured.local_id
        if measured.backup is not None:
            subflow.backup = measured.backup
        if connection.owner is None and measured.owner is not None:
            connection.owner = measured.owner
        if measured.connection_bytes_acked is not None:
            connection.bytes_acked = measured.connection_bytes_acked
        if measured.connection_reinjected is not None:
            connection.reinjected = measured.connection_reinjected
        connection.stalled_us = _sum_known(
            each.measured.stalled_us for each in connection.subflows.values() if each.measured
        )
        if measured.closed:
            subflow.state = State.CLOSED
            self._ended.setdefault((connection.token, subflow.key), now + GRACE)

    def _observe(
        self, measured: Measurement, now: int
    ) -> tuple[Connection | None, Subflow | None, list[Notice]]:
        """Files a measurement where it belongs; with it, whom it concerns if known."""
        key = (measured.local, measured.remote)
        name = (measured.token, key)
        connection = self.world.connections.get(measured.token)
        subflow = connection.subflows.get(key) if connection is not None else None
        if connection is not None and subflow is not None:
            self._measure(connection, subflow, measured, now)
            return connection, subflow, []
        closing = self._closing.get(name)
        if closing is not None:
            closing.subject.measured = measured
            if measured.closed:
                del self._closing[name]
                return None, None, [Notice("subflow_final", (closing.subject,))]
            return None, None, []
        held = self._early.get(name)
        if held is None or (not held.subject.closed and held.subject.at <= measured.at):
            self._early.pop(name, None)
            self._early[name] = _Waiting(now + GRACE, measured)
        return None, None, []

    def _alarm(self, event: ev.AlarmRaised, now: int) -> list[Notice]:
        connection, subflow, notices = self._observe(event.measurement, now)
        if connection is not None and subflow is not None:
            notices.append(Notice("alarm", (connection, subflow, event), connection))
        return notices

    def _ended_subflow(self, event: ev.SubflowEnded, now: int) -> list[Notice]:
        return self._observe(event.measurement, now)[2]

    def _sampled(self, event: ev.Sampled, now: int) -> list[Notice]:
        notices: list[Notice] = []
        opening: dict[tuple[int, SubflowKey], None] = {}
        for measured in event.measurements:
            key = (measured.local, measured.remote)
            connection = self.world.connections.get(measured.token)
            if measured.state == TCP_SYN_SENT and connection is not None:
                opening[measured.token, key] = None
                if key not in connection.subflows:
                    connection.subflows[key] = _from_measurement(measured, self.world)
            notices += self._observe(measured, now)[2]
        for connection in self.world.connections.values():
            for key, subflow in list(connection.subflows.items()):
                # A join that was seen opening and is not there any more never
                # succeeded; netlink may have nothing to say about it.
                if subflow.state is State.OPENING and (connection.token, key) not in opening:
                    del connection.subflows[key]
        notices.append(Notice("sampled", ()))
        return notices

    # --- the whole truth anew

    def _resynchronised(self, event: ev.Resynchronised, now: int) -> list[Notice]:
        return (
            network.resynchronise(self.world, event)
            + self._resync_gone(event, now)
            + self._resync_present(event, now)
        )

    def _resync_gone(self, event: ev.Resynchronised, now: int) -> list[Notice]:
        notices: list[Notice] = []
        tokens = {live.token: (live.local, live.remote) for live in event.connections}
        live_subflows = {
            (found.token, (found.local, found.remote))
            for found in event.subflows
            if found.state in _LIVE
        }
        for token, connection in list(self.world.connections.items()):
            if tokens.get(token) != (connection.local, connection.remote):
                notices += self._connection_closed(ev.ConnectionClosed(token=token), now)
                continue
            for key, subflow in list(connection.subflows.items()):
                if (token, key) not in live_subflows:
                    notices += self._close_subflow(connection, subflow, now)
        return notices

    def _resync_present(self, event: ev.Resynchronised, now: int) -> list[Notice]:
        notices: list[Notice] = []
        fresh: dict[int, Connection] = {}
        for live in event.connections:
            if live.token not in self.world.connections:
                connection = Connection(live.token, live.local, live.remote)
                connection.server_side = live.server_side
                connection.state = State.ESTABLISHED
                self.world.connections[live.token] = fresh[live.token] = connection
        for found in event.subflows:
            owner = self.world.connections.get(found.token)
            if owner is None or found.state not in _LIVE:
                continue
            key = (found.local, found.remote)
            if key not in owner.subflows:
                subflow = _from_measurement(found, self.world)
                self._add_subflow(owner, subflow, now)
                if found.token not in fresh and subflow.state is State.ESTABLISHED:
                    notices.append(Notice("new_subflow", (owner, subflow), owner))
            self._measure(owner, owner.subflows[key], found, now)
        for connection in fresh.values():
            notices.append(Notice("new_connection", (connection,), connection))
            notices.append(Notice("connection_established", (connection,), connection))
        return notices


def _from_measurement(found: Measurement, world: World) -> Subflow:
    return Subflow(
        found.token,
        found.local,
        found.remote,
        state=_LIVE[found.state or TCP_ESTABLISHED],
        initial=bool(found.initial),
        local_id=found.local_id,
        remote_id=found.remote_id,
        if_index=found.if_index or world.interface_of(found.local.ip),
        backup=bool(found.backup),
        backup_by_peer=bool(found.backup_by_peer),
        opened_at=found.opened_at,
    )


def _sum_known(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


_APPLY: dict[type[ev.Event], Callable[[Tracker, Any, int], list[Notice]]] = {
    ev.ConnectionCreated: Tracker._created,
    ev.ConnectionEstablished: Tracker._established,
    ev.ConnectionClosed: Tracker._connection_closed,
    ev.AddressAnnounced: Tracker._announced,
    ev.AddressWithdrawn: Tracker._withdrawn,
    ev.SubflowEstablished: Tracker._subflow_established,
    ev.SubflowClosed: Tracker._subflow_closed,
    ev.SubflowPriority: Tracker._subflow_priority,
    ev.AlarmRaised: Tracker._alarm,
    ev.SubflowEnded: Tracker._ended_subflow,
    ev.Sampled: Tracker._sampled,
    ev.Resynchronised: Tracker._resynchronised,
}
