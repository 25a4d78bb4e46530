# SPDX-License-Identifier: BSD-3-Clause
"""Records → rows: what the journal writes about each event.

Pure: ids are counted here, so that nothing is read back from the file.  Records may be missing,
after an overflow of the queue; the next `Resynchronised` repairs what is open and what is not.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.measurement import Measurement
from mptcpd_ebpf.core.model import SECOND, SubflowKey
from mptcpd_ebpf.core.recording import Record
from mptcpd_ebpf.core.sighting import is_live
from mptcpd_ebpf.core.token import token_text
from mptcpd_ebpf.journal.changes import Changes, seconds
from mptcpd_ebpf.journal.decision_rows import DecisionRows, Describe
from mptcpd_ebpf.journal.network_rows import KEPT, NetworkRows
from mptcpd_ebpf.journal.schema import COUNTERS, FIGURES

LATE = 10 * SECOND
"""Nanoseconds for which the end of a connection's subflows is awaited after its own, and a
final record waits for its connection."""
LINGER = 300 * SECOND
"""Nanoseconds for which the final record of a closed subflow is awaited while its connection lives:
on a dead path the kernel repeats the FIN for minutes."""
EARLY = 1000
"""Measurements that wait for their connection at most."""
ALARMS_PER_SECOND = 100
"""More are counted and not written: a fault of many subflows must not fill the file."""


_TOTALS = ("bytes_acked", "bytes_received", "reinjected")
"""Columns of `connections`: fields of a measurement that begin with ``connection_``."""


@dataclass(slots=True)
class _Subflow:
    id: int
    by_netlink: bool
    """Netlink has reported it, and not only a measurement."""
    closed: bool = False
    """By either source: its row says when."""
    closed_by_netlink: bool = False
    sampled: bool = False
    final: bool = False
    """Its row has the final values."""


@dataclass(slots=True)
class _Connection:
    id: int
    token: int
    local: SockAddr
    remote: SockAddr
    subflows: dict[SubflowKey, _Subflow] = field(default_factory=dict)
    late: deque[tuple[int, SubflowKey, _Subflow]] = field(default_factory=deque)
    """Closed subflows whose final record may follow, and until when."""
    totals: dict[str, int] = field(default_factory=dict)
    """The greatest numbers so far."""
    owned: bool = False
    """Its process is known."""
    until: int = 0
    """When a closed one is forgotten."""


class OpenRows(NamedTuple):
    """What an earlier run left open in the file."""

    connections: list[tuple[int, int, SockAddr, SockAddr]]
    """Id, token, addresses."""
    subflows: list[tuple[int, int, SockAddr, SockAddr]]
    """Id, id of the connection, addresses."""
    last_written: float


class Rows:
    """Turns the records of one run into changes of rows."""

    def __init__(
        self, run: int, ids: dict[str, int], left_open: OpenRows, describe: Describe
    ) -> None:
        """`ids`: the greatest id of each table."""
        self.changes = Changes()
        self._run = run
        self._ids = dict(ids)
        self._decisions = DecisionRows(self.changes, run, ids["decisions"], ids["paths"], describe)
        self._network = NetworkRows(self.changes, run, ids["events"])
        self._live: dict[int, _Connection] = {}
        self._ending: OrderedDict[int, _Connection] = OrderedDict()
        self._early: dict[tuple[int, SubflowKey], tuple[int, Measurement, float]] = {}
        """Final records without a connection, each with its time and until when it is kept."""
        self._second = 0
        self._alarms = 0
        self.alarms_left_out = 0
        self._left_open = left_open
        for number, token, local, remote in left_open.connections:
            self._live[token] = _Connection(number, token, local, remote)
        by_id = {each.id: each for each in self._live.values()}
        for number, connection, local, remote in left_open.subflows:
            if connection in by_id:
                known = _Subflow(number, by_netlink=True, sampled=True)
                by_id[connection].subflows[local, remote] = known

    def of(self, record: Record, epoch_ns: int) -> None:
        """Takes in a record; `epoch_ns` makes nanoseconds since 1970 of its times."""
        t = seconds(record.now + epoch_ns)
        # First, so that the names of interfaces are known.
        self._network.of(record.event, t)
        handler = _EVENTS.get(type(record.event))
        if handler is not None:
            handler(self, record.event, t, record.now)
        for decision in record.decisions:
            self._decisions.decided(decision, seconds(decision.at + epoch_ns))
        while self._ending and next(iter(self._ending.values())).until <= record.now:
            self._ending.popitem(last=False)

    def sampled(self, measured: Iterable[Measurement], epoch_ns: int) -> None:
        """One sample of each live subflow that is known."""
        for each in measured:
            connection = self._live.get(each.token)
            subflow = connection.subflows.get((each.local, each.remote)) if connection else None
            if connection is None or subflow is None or subflow.closed or not is_live(each):
                continue
            self._owner(connection, each)
            subflow.sampled = True
            values = [getattr(each, name) for name in COUNTERS]
            t = seconds(each.at + epoch_ns)
            head = [subflow.id, t, each.srtt_us, each.srtt_us, each.cwnd, each.in_flight]
            self.changes.sample(head + values)

    # --- connections and subflows

    def _new(self, table: str) -> int:
        self._ids[table] += 1
        return self._ids[table]

    def _created(
        self, event: ev.ConnectionCreated | ev.ConnectionEstablished, t: float, now: int
    ) -> None:
        held = self._live.get(event.token)
        if held is not None and (held.local, held.remote) == (event.local, event.remote):
            return
        self._connection_closed(ev.ConnectionClosed(token=event.token), t, now)
        self._add(event.token, event.local, event.remote, event.server_side, t)
        connection = self._live[event.token]
        self._subflow(connection, event.local, event.remote, event.if_index, t, now, initial=True)

    def _add(
        self, token: int, local: SockAddr, remote: SockAddr, server: bool | None, t: float | None
    ) -> None:
        number = self._new("connections")
        self._ending.pop(token, None)
        self._live[token] = _Connection(number, token, local, remote)
        row = {
            "run": self._run,
            "token": token_text(token),
            "local": str(local),
            "remote": str(remote),
            "server_side": server,
            "opened": t,
        }
        self.changes.insert("connections", number, row)

    def _connection_closed(self, event: ev.ConnectionClosed, t: float, now: int) -> None:
        connection = self._live.pop(event.token, None)
        if connection is None:
            return
        for subflow in connection.subflows.values():
            if not subflow.closed:
                self._close(subflow, t)
        self.changes.update("connections", connection.id, {"closed": t})
        connection.until = now + LATE
        self._ending.pop(event.token, None)
        self._ending[event.token] = connection

    def _subflow(
        self,
        connection: _Connection,
        local: SockAddr,
        remote: SockAddr,
        if_index: int | None,
        opened: float | None,
        now: int,
        *,
        initial: bool = False,
        by_netlink: bool = True,
    ) -> None:
        number = self._new("subflows")
        connection.subflows[local, remote] = _Subflow(number, by_netlink)
        row = {
            "connection": connection.id,
            "token": token_text(connection.token),
            "local": str(local),
            "remote": str(remote),
            "local_ip": local.ip,
            "remote_ip": remote.ip,
            "interface": self._network.interface(if_index, local.ip),
            "initial": initial,
            "opened": opened,
        }
        self.changes.insert("subflows", number, row)
        early = self._early.pop((connection.token, (local, remote)), None)
        if early is not None and now < early[0]:
            self._final(connection, connection.subflows[local, remote], *early[1:])

    def _joined(self, event: ev.SubflowEstablished, t: float, now: int) -> None:
        connection = self._live.get(event.token)
        if connection is None:
            return
        known = connection.subflows.get((event.local, event.remote))
        if known is not None and not known.closed_by_netlink:
            again = known.by_netlink and known.closed  # the event that closed it was lost
            known.by_netlink = True
            if not again:
                return
        self._subflow(connection, event.local, event.remote, event.if_index, t, now)
        if event.backup:
            self._backup(connection, event)

    def _backup(
        self, connection: _Connection, event: ev.SubflowEstablished | ev.SubflowPriority
    ) -> None:
        subflow = connection.subflows[event.local, event.remote]
        self.changes.update("subflows", subflow.id, {"backup": event.backup})

    def _priority(self, event: ev.SubflowPriority, t: float, now: int) -> None:
        connection = self._live.get(event.token)
        if connection is not None and (event.local, event.remote) in connection.subflows:
            self._backup(connection, event)

    def _left(self, event: ev.SubflowClosed, t: float, now: int) -> None:
        connection = self._live.get(event.token)
        if connection is None:
            return
        # The kernel has forgotten the port of a join that never succeeded.
        remote = SockAddr(event.remote.ip, event.remote.port or connection.remote.port)
        known = connection.subflows.get((event.local, remote))
        failed = known is None or known.closed_by_netlink
        if failed:
            self._subflow(connection, event.local, remote, event.if_index, None, now)
        subflow = connection.subflows[event.local, remote]
        subflow.closed_by_netlink = True
        if not subflow.closed:
            self._close(subflow, t)
        row = {"failed": failed, "error": event.error, "reset_reason": event.reset_reason}
        self.changes.update("subflows", subflow.id, row)
        connection.late.append((now + LINGER, (event.local, remote), subflow))
        # A connection may have any number of them.
        while connection.late[0][0] <= now:
            _, key, forgotten = connection.late.popleft()
            if connection.subflows.get(key) is forgotten:
                del connection.subflows[key]

    def _close(self, subflow: _Subflow, t: float) -> None:
        """The last sample counts as final until the final record comes, if it does."""
        subflow.closed = True
        self.changes.update("subflows", subflow.id, {"closed": t})
        if subflow.sampled and not subflow.final:
            self.changes.from_sample(subflow.id)

    def _ended(self, event: ev.SubflowEnded, t: float, now: int) -> None:
        measured = event.measurement
        key = (measured.local, measured.remote)
        connection = self._live.get(measured.token) or self._ending.get(measured.token)
        if connection is None:
            if len(self._early) >= EARLY:
                self._early.clear()
            self._early[measured.token, key] = (now + LATE, measured, t)
            return
        subflow = connection.subflows.get(key)
        if subflow is None or subflow.final:
            opened = measured.opened_at
            if opened is not None and now - opened > LINGER:
                return  # it closed long ago and was forgotten
            self._subflow(
                connection,
                *key,
                measured.if_index,
                None if opened is None else t - (now - opened) / 1e9,
                now,
                initial=bool(measured.initial),
                by_netlink=False,
            )
            subflow = connection.subflows[key]
        self._final(connection, subflow, measured, t)

    def _final(
        self, connection: _Connection, subflow: _Subflow, measured: Measurement, t: float
    ) -> None:
        subflow.final = True
        row = {name: getattr(measured, name) for name in FIGURES}
        if measured.backup is not None:
            row["backup"] = measured.backup
        if not subflow.closed:
            subflow.closed = True
            row["closed"] = t
        self.changes.final(subflow.id, row)
        self._owner(connection, measured)
        totals = {
            name: value
            for name in _TOTALS
            if (value := getattr(measured, f"connection_{name}")) is not None
            and value >= connection.totals.get(name, 0)
        }
        if totals:
            connection.totals.update(totals)
            self.changes.update("connections", connection.id, totals)

    def _owner(self, connection: _Connection, measured: Measurement) -> None:
        owner = measured.owner
        if connection.owned or owner is None or owner.pid is None:
            return
        connection.owned = True
        row = {"pid": owner.pid, "comm": owner.comm}
        self.changes.update("connections", connection.id, row)

    # --- alarms and answers

    def _alarm(self, event: ev.AlarmRaised, t: float, now: int) -> None:
        if now // SECOND != self._second:
            self._second, self._alarms = now // SECOND, 0
        self._alarms += 1
        if self._alarms > ALARMS_PER_SECOND:
            self.alarms_left_out += 1
            return
        measured = event.measurement
        connection = self._live.get(measured.token)
        key = (measured.local, measured.remote)
        subflow = connection.subflows.get(key) if connection else None
        row = {
            "t": t,
            "subflow": subflow.id if subflow else None,
            "token": token_text(measured.token),
            "local": str(measured.local),
            "remote": str(measured.remote),
            "interface": self._network.interface(measured.if_index, measured.local.ip),
            "kind": event.kind.value,
            "value": event.value,
            "threshold": event.limit,
            "srtt_us": measured.srtt_us,
            "in_flight": measured.in_flight,
        }
        self.changes.insert("alarms", self._new("alarms"), row)

    def _answered(self, event: ev.CommandAnswered, t: float, now: int) -> None:
        self._decisions.answered(event, t)

    # --- the complete state, read again

    def _resynchronised(self, event: ev.Resynchronised, t: float, now: int) -> None:
        present = {live.token: live for live in event.connections}
        # What ended while no daemon ran ended at an unknown time after the last run.
        gone_at = self._left_open.last_written if event.at_start else t
        for token, connection in list(self._live.items()):
            live = present.get(token)
            if live is None or (live.local, live.remote) != (connection.local, connection.remote):
                self._connection_closed(ev.ConnectionClosed(token=token), gone_at, now)
        for live in event.connections:
            if live.token not in self._live:
                self._add(live.token, live.local, live.remote, live.server_side, None)
        found = {(each.token, (each.local, each.remote)): each for each in event.subflows}
        for token, connection in self._live.items():
            for key, subflow in connection.subflows.items():
                if (token, key) not in found and not subflow.closed:
                    self._close(subflow, gone_at)
        for (token, key), each in found.items():
            owner = self._live.get(token)
            if owner is None or not is_live(each):
                continue
            known = owner.subflows.get(key)
            if known is None or known.closed:
                opened = None if each.opened_at is None else t - (now - each.opened_at) / 1e9
                initial = bool(each.initial)
                self._subflow(owner, *key, each.if_index, opened, now, initial=initial)
            self._owner(owner, each)


_EVENTS: dict[type[ev.Event], Callable[[Rows, Any, float, int], None]] = {
    ev.ConnectionCreated: Rows._created,
    ev.ConnectionEstablished: Rows._created,
    ev.ConnectionClosed: Rows._connection_closed,
    ev.SubflowEstablished: Rows._joined,
    ev.SubflowClosed: Rows._left,
    ev.SubflowPriority: Rows._priority,
    ev.SubflowEnded: Rows._ended,
    ev.AlarmRaised: Rows._alarm,
    ev.CommandAnswered: Rows._answered,
    ev.Resynchronised: Rows._resynchronised,
}


def is_kept(record: Record) -> bool:
    """Whether a record may add anything to the journal."""
    kind = type(record.event)
    return bool(record.decisions) or kind in _EVENTS or kind in KEPT
