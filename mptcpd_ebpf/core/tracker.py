# SPDX-License-Identifier: BSD-3-Clause
"""Events → model: keeps the World up to date, and reports what changed.

Netlink is the authority on what exists, the probes on its numbers, and the two
arrive in no given order.  So:

* a measurement of a subflow that netlink has not reported yet is kept until netlink reports it, or
for `GRACE`;
* a subflow is final when both sources have closed it, or `GRACE` after the first;
* older numbers never replace newer ones, and a final record is never overwritten.

Every interleaving of the same events ends in the same model. `pairing` keeps what waits.

`apply` and `expire` return the changes of the model, in the order in which they happened:
mostly a `Notice`, which names the plugin handler to call.
"""

import errno
from collections.abc import Callable
from typing import Any, NamedTuple

from msgspec.structs import replace

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core import network
from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.commands import (
    AnnounceAddress,
    ConnectionCommand,
    CreateSubflow,
    KernelCommand,
    ReportPath,
    SetBackup,
)
from mptcpd_ebpf.core.measurement import Measurement
from mptcpd_ebpf.core.model import Connection, PathReport, State, Subflow, SubflowKey, World
from mptcpd_ebpf.core.pairing import Closing, Pairing
from mptcpd_ebpf.core.plugin import Notice, Plugin
from mptcpd_ebpf.core.roles import Role
from mptcpd_ebpf.core.sighting import (
    SubflowName,
    add_up,
    from_join,
    from_measurement,
    is_about,
    is_live,
    is_still,
    name_of,
    state_of,
    take_over,
)

PATHS_REMEMBERED = 256
"""Above this number of reported paths, those that are active again are forgotten."""


class SubflowFinal(NamedTuple):
    """Netlink and probes have both closed a subflow, or one of them did not in time."""

    subflow: Subflow


class ModeRead(NamedTuple):
    """It is known which path manager has a connection (`Connection.in_kernel`)."""

    connection: Connection


Change = Notice | SubflowFinal | ModeRead


class Tracker:
    """Applies events to `world`, which nothing else writes."""

    def __init__(self) -> None:
        self.world = World()
        self._pairing = Pairing()
        self._joining: dict[SubflowName, None] = {}
        """Joins that a sample found under way; netlink reports those that succeed."""
        self._buried: dict[int, dict[SubflowKey, None]] = {}
        """By token: subflows that were taken for closed before netlink closed them, which may
        follow."""

    @property
    def deadline(self) -> int | None:
        """When `expire` has something to do, in CLOCK_MONOTONIC nanoseconds."""
        return self._pairing.deadline

    def apply(self, event: ev.Event, now: int) -> list[Change]:
        """Brings the world up to date with one event."""
        handler = _APPLY.get(type(event))
        if handler is not None:
            return handler(self, event, now)
        return list(network.apply(self.world, event, now))

    def expire(self, now: int) -> list[Change]:
        """Gives up waiting where `GRACE` has passed."""
        changes: list[Change] = []
        for entry in self._pairing.expired(now):
            if isinstance(entry, Closing):
                changes.append(SubflowFinal(entry.subflow))
                continue
            connection = self.world.connections[entry.subflow.token]
            changes += self._close_subflow(connection, entry.subflow, now)
            self._bury(entry.subflow)
        return changes

    # --- answers to commands

    def answered(self, command: KernelCommand, error: int, now: int) -> None:
        """Records what follows from the kernel's answer to a command; `error`: 0 or an errno."""
        if not isinstance(command, ConnectionCommand):
            return
        connection = self.world.connections.get(command.token)
        if connection is None:
            return
        if error:
            if isinstance(command, CreateSubflow) and error == errno.ENOTCONN:
                # A connection found by a snapshot, which has carried no data yet or is closing.
                connection.state = State.OPENING
            return
        connection.in_kernel = False
        match command:
            case CreateSubflow():
                connection.joins[command.local_ip, command.remote] = command.backup
                if command.local_id:
                    connection.local_ids[command.local_ip] = command.local_id
            case AnnounceAddress():
                connection.local_ids[command.ip] = command.address_id
            case SetBackup():
                subflow = connection.subflows.get((command.local, command.remote))
                if subflow is not None:
                    # The kernel reports only the peer's MP_PRIO, never ours.
                    subflow.backup, subflow.backup_set_at = command.backup, now

    # --- what plugins report

    def path_reported(self, plugin: str, report: ReportPath, now: int) -> None:
        """Records what a plugin uses a path for."""
        paths = self.world.paths
        name = (report.local_ip, report.remote_ip)
        held = paths.pop(name, None)
        if report.state is None:
            return
        since = held.since if held is not None and held.state is report.state else now
        paths[name] = PathReport(
            plugin,
            report.state,
            report.reason,
            since,
            report.probes_answered,
            report.probes_needed,
        )
        recovered = [each for each, path in paths.items() if path.state is Role.ACTIVE]
        for each in recovered[: len(paths) - PATHS_REMEMBERED]:
            del paths[each]

    def forget_paths(self, plugin: str) -> None:
        """A plugin has ended: what it reported is not true any more."""
        paths = self.world.paths
        for name in [name for name, report in paths.items() if report.plugin == plugin]:
            del paths[name]

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
    ) -> list[Change]:
        held = self.world.connections.get(event.token)
        if held is not None and (held.local, held.remote) == (event.local, event.remote):
            held.server_side, held.deny_join_id0 = event.server_side, event.deny_join_id0
            return []
        # The token is used again: the event that closed its former connection was lost.
        changes = self._connection_closed(ev.ConnectionClosed(token=event.token), now)
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
        changes.append(Notice(Plugin.new_connection, (connection,), connection))
        return changes

    def _established(self, event: ev.ConnectionEstablished, now: int) -> list[Change]:
        changes = self._created(event, now)
        connection = self.world.connections[event.token]
        if connection.state is not State.ESTABLISHED:
            connection.state = State.ESTABLISHED
            changes.append(Notice(Plugin.connection_established, (connection,), connection))
        return changes

    def _connection_closed(self, event: ev.ConnectionClosed, now: int) -> list[Change]:
        connection = self.world.connections.pop(event.token, None)
        if connection is None:
            return []
        changes = []
        for subflow in list(connection.subflows.values()):
            changes += self._close_subflow(connection, subflow, now)
        self._buried.pop(event.token, None)
        connection.state = State.CLOSED
        changes.append(Notice(Plugin.connection_closed, (connection,), connection))
        return changes

    def _announced(self, event: ev.AddressAnnounced, now: int) -> list[Change]:
        connection = self.world.connections.get(event.token)
        if connection is None:
            return []
        address = SockAddr(event.ip, event.port)
        connection.announced[event.address_id] = address
        return [Notice(Plugin.new_address, (connection, event.address_id, address), connection)]

    def _withdrawn(self, event: ev.AddressWithdrawn, now: int) -> list[Change]:
        connection = self.world.connections.get(event.token)
        if connection is None:
            return []
        address = connection.announced.pop(event.address_id, None)
        return [Notice(Plugin.address_removed, (connection, event.address_id, address), connection)]

    def _modes_read(self, event: ev.ModesRead, now: int) -> list[Change]:
        changes: list[Change] = []
        for mode in event.modes:
            connection = self.world.connections.get(mode.token)
            if connection is not None and connection.in_kernel is not mode.in_kernel:
                connection.in_kernel = mode.in_kernel
                changes.append(ModeRead(connection))
        return changes

    # --- subflows

    def _add_subflow(
        self, connection: Connection, subflow: Subflow, now: int, *, since: int = 0
    ) -> None:
        """`since`: when it was seen, if a measurement and not netlink reported it."""
        connection.subflows[subflow.key] = subflow
        self._unbury(subflow)
        self._learn_id(connection, subflow)
        early = self._pairing.claim(name_of(subflow), since)
        if early is not None:
            self._measure(subflow, early, now)

    def _learn_id(self, connection: Connection, subflow: Subflow) -> None:
        if subflow.local_id:
            connection.local_ids[subflow.local.ip] = subflow.local_id

    def _subflow_established(self, event: ev.SubflowEstablished, now: int) -> list[Change]:
        connection = self.world.connections.get(event.token)
        if connection is None:
            return []
        known = connection.subflows.get((event.local, event.remote))
        changes: list[Change] = []
        if known is not None and name_of(known) in self._joining:
            del self._joining[name_of(known)]
        elif known is not None and known.state is State.CLOSED:
            # The same addresses again: the event that closed the former subflow was lost.
            changes += self._close_subflow(connection, known, now)
            known = None
        elif known is not None:
            known.local_id, known.remote_id = event.local_id, event.remote_id
            self._learn_id(connection, known)
            return []
        subflow = known or from_join(event, self.world, now)
        subflow.local_id, subflow.remote_id = event.local_id, event.remote_id
        # The kernel reports only the peer's flag; ours is known from the command.
        subflow.backup |= connection.joins.pop((event.local.ip, event.remote), False)
        subflow.backup_by_peer, subflow.error = event.backup, event.error
        subflow.failed = False
        if known is None:
            self._add_subflow(connection, subflow, now)
        else:
            self._learn_id(connection, subflow)
            if subflow.state is State.OPENING:
                subflow.state = State.ESTABLISHED
        changes.append(Notice(Plugin.new_subflow, (connection, subflow), connection))
        return changes

    def _subflow_closed(self, event: ev.SubflowClosed, now: int) -> list[Change]:
        connection = self.world.connections.get(event.token)
        if connection is None:
            return []
        if event.remote.port == 0:
            event = _with_port(event, connection)
        subflow = connection.subflows.get((event.local, event.remote))
        if subflow is None:
            if self._unbury(event):
                return []
            # A failed join: netlink reports it with this event alone.
            subflow = from_join(event, self.world, now)
            subflow.state = State.OPENING
            self._add_subflow(connection, subflow, now)
        subflow.error = event.error
        subflow.reset_reason, subflow.reset_flags = event.reset_reason, event.reset_flags
        return self._close_subflow(connection, subflow, now)

    def _close_subflow(self, connection: Connection, subflow: Subflow, now: int) -> list[Change]:
        del connection.subflows[subflow.key]
        self._joining.pop(name_of(subflow), None)
        self._pairing.settle(subflow)
        if subflow.state is State.OPENING:
            connection.joins.pop((subflow.local.ip, subflow.remote), None)
            subflow.failed = True
        subflow.state = State.CLOSED
        changes: list[Change] = [Notice(Plugin.subflow_closed, (connection, subflow), connection)]
        if subflow.measured is not None and subflow.measured.closed:
            changes.append(SubflowFinal(subflow))
        else:
            self._pairing.closed(subflow, now)
        return changes

    def _bury(self, subflow: Subflow) -> None:
        self._buried.setdefault(subflow.token, {})[subflow.key] = None

    def _unbury(self, subflow: Subflow | ev.SubflowClosed) -> bool:
        """Netlink reports a name again; returns whether its subflow was taken for closed."""
        buried = self._buried.get(subflow.token, {})
        if (subflow.local, subflow.remote) not in buried:
            return False
        del buried[subflow.local, subflow.remote]
        if not buried:
            del self._buried[subflow.token]
        return True

    def _subflow_priority(self, event: ev.SubflowPriority, now: int) -> list[Change]:
        connection = self.world.connections.get(event.token)
        subflow = connection.subflows.get((event.local, event.remote)) if connection else None
        if connection is None or subflow is None:
            return []
        subflow.backup_by_peer = event.backup
        return [Notice(Plugin.subflow_priority, (connection, subflow), connection)]

    # --- the probes' numbers

    def _measure(self, subflow: Subflow, measured: Measurement, now: int) -> None:
        held = subflow.measured
        if held is not None and (held.closed or held.at > measured.at):
            return
        take_over(subflow, measured)
        connection = self.world.connections.get(measured.token)
        if connection is not None:
            add_up(connection, subflow, held, measured)
        if measured.closed and subflow.state is not State.CLOSED:
            subflow.failed = subflow.state is State.OPENING
            subflow.state = State.CLOSED
            self._pairing.ended(subflow, now)

    def _observe(
        self, measured: Measurement, now: int
    ) -> tuple[Connection | None, Subflow | None, list[Change]]:
        """Stores a measurement; returns the live connection and subflow it belongs to, if any."""
        closing = self._pairing.closing(measured)
        if closing is not None:
            self._measure(closing.subflow, measured, now)
            if not measured.closed:
                return None, None, []
            self._pairing.finish(closing)
            return None, None, [SubflowFinal(closing.subflow)]
        connection = self.world.connections.get(measured.token)
        key = (measured.local, measured.remote)
        subflow = connection.subflows.get(key) if connection is not None else None
        if subflow is not None:
            if is_about(measured, subflow):
                self._measure(subflow, measured, now)
                return connection, subflow, []
            if subflow.measured is not None and measured.at <= subflow.measured.at:
                return None, None, []
        self._pairing.keep(measured, now)
        return None, None, []

    def _alarm(self, event: ev.AlarmRaised, now: int) -> list[Change]:
        connection, subflow, changes = self._observe(event.measurement, now)
        if connection is not None and subflow is not None:
            changes.append(Notice(Plugin.alarm, (connection, subflow, event), connection))
        return changes

    def _ended_subflow(self, event: ev.SubflowEnded, now: int) -> list[Change]:
        return self._observe(event.measurement, now)[2]

    def _sampled(self, event: ev.Sampled, now: int) -> list[Change]:
        changes: list[Change] = []
        if event.with_owners:
            for known in self.world.connections.values():
                known.owner_asked = True
        for measured in event.measurements:
            connection = self.world.connections.get(measured.token)
            if (
                connection is not None
                and is_live(measured)
                and state_of(measured) is State.OPENING
                and (measured.local, measured.remote) not in connection.subflows
                and self._pairing.closing(measured) is None
            ):
                self._add_join(connection, measured, now)
            changes += self._observe(measured, now)[2]
        if self._joining:
            # A join that was under way and is not listed any more did not succeed.
            seen = {name_of(measured) for measured in event.measurements}
            for token, key in [name for name in self._joining if name not in seen]:
                connection = self.world.connections[token]
                subflow = connection.subflows[key]
                changes += self._close_subflow(connection, subflow, now)
                self._bury(subflow)
        changes.append(Notice(Plugin.sampled, ()))
        return changes

    def _add_join(self, connection: Connection, found: Measurement, now: int) -> None:
        subflow = from_measurement(found, self.world)
        self._joining[name_of(subflow)] = None
        self._add_subflow(connection, subflow, now, since=found.at)

    # --- the complete state, read again

    def _resynchronised(self, event: ev.Resynchronised, now: int) -> list[Change]:
        return (
            network.resynchronise(self.world, event, now)
            + self._resync_gone(event, now)
            + self._resync_present(event, now)
        )

    def _resync_gone(self, event: ev.Resynchronised, now: int) -> list[Change]:
        changes: list[Change] = []
        tokens = {live.token: (live.local, live.remote) for live in event.connections}
        live = {name_of(found): found for found in event.subflows if is_live(found)}
        for token, connection in list(self.world.connections.items()):
            if tokens.get(token) != (connection.local, connection.remote):
                changes += self._connection_closed(ev.ConnectionClosed(token=token), now)
                continue
            for subflow in list(connection.subflows.values()):
                found = live.get(name_of(subflow))
                if found is None or not is_still(subflow, found):
                    changes += self._close_subflow(connection, subflow, now)
                    self._bury(subflow)
        return changes

    def _resync_present(self, event: ev.Resynchronised, now: int) -> list[Change]:
        changes: list[Change] = []
        fresh: dict[int, None] = {}
        for live in event.connections:
            if live.token not in self.world.connections:
                connection = Connection(live.token, live.local, live.remote)
                connection.server_side, connection.owner = live.server_side, live.owner
                self.world.connections[live.token] = connection
                fresh[live.token] = None
        for found in event.subflows:
            owner = self.world.connections.get(found.token)
            if owner is not None and is_live(found):
                changes += self._resync_subflow(owner, found, now, told=found.token not in fresh)
        for live in event.connections:
            connection = self.world.connections[live.token]
            if live.token in fresh:
                changes.append(Notice(Plugin.new_connection, (connection,), connection))
            if connection.state is State.OPENING:
                # Not reported by a dump; the kernel refuses a join that comes too early.
                connection.state = State.ESTABLISHED
                changes.append(Notice(Plugin.connection_established, (connection,), connection))
        return changes

    def _resync_subflow(
        self, connection: Connection, found: Measurement, now: int, *, told: bool
    ) -> list[Change]:
        subflow = connection.subflows.get((found.local, found.remote))
        known = subflow is not None and subflow.state is State.ESTABLISHED
        if subflow is None:
            if state_of(found) is State.OPENING:
                self._add_join(connection, found, now)
            else:
                subflow = from_measurement(found, self.world)
                self._add_subflow(connection, subflow, now, since=found.at)
            subflow = connection.subflows[found.local, found.remote]
        elif state_of(found) is State.ESTABLISHED and subflow.state is State.OPENING:
            self._joining.pop(name_of(subflow), None)
            subflow.state = State.ESTABLISHED
        self._measure(subflow, found, now)
        subflow.error = 0
        if found.backup_by_peer is not None:
            subflow.backup_by_peer = found.backup_by_peer
        if told and subflow.state is State.ESTABLISHED and not known:
            return [Notice(Plugin.new_subflow, (connection, subflow), connection)]
        return []


def _with_port(event: ev.SubflowClosed, connection: Connection) -> ev.SubflowClosed:
    """The kernel has forgotten the remote port of a join that never succeeded."""
    for local, remote in connection.subflows:
        if local == event.local and remote.ip == event.remote.ip:
            return replace(event, remote=remote)
    return replace(event, remote=SockAddr(event.remote.ip, connection.remote.port))


_APPLY: dict[type[ev.Event], Callable[[Tracker, Any, int], list[Change]]] = {
    ev.ConnectionCreated: Tracker._created,
    ev.ConnectionEstablished: Tracker._established,
    ev.ConnectionClosed: Tracker._connection_closed,
    ev.AddressAnnounced: Tracker._announced,
    ev.AddressWithdrawn: Tracker._withdrawn,
    ev.ModesRead: Tracker._modes_read,
    ev.SubflowEstablished: Tracker._subflow_established,
    ev.SubflowClosed: Tracker._subflow_closed,
    ev.SubflowPriority: Tracker._subflow_priority,
    ev.AlarmRaised: Tracker._alarm,
    ev.SubflowEnded: Tracker._ended_subflow,
    ev.Sampled: Tracker._sampled,
    ev.Resynchronised: Tracker._resynchronised,
}
