# SPDX-License-Identifier: BSD-3-Clause
"""What happened, from the journal: paths that were left and came back, and what was done.

Runs in the process that asks, so that a query of a large file costs the daemon nothing.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct

from mptcpd_ebpf.core.filters import Filter
from mptcpd_ebpf.journal.entries import (
    AlarmEntry,
    ConnectionEntry,
    DaemonEntry,
    DecisionEntry,
    Entry,
    NetworkEntry,
    PathEntry,
    SubflowEntry,
)
from mptcpd_ebpf.journal.incidents import TOGETHER_S, Change, Move, incidents


class Query(Struct, frozen=True, kw_only=True):
    """What is asked of the journal."""

    since: float
    """Seconds since 1970."""
    only: Filter = Filter()
    path: str | None = None
    """An interface or a local address."""

    @property
    def by_connection(self) -> bool:
        """Whether single connections are asked for, with all that happened to them."""
        return self.only.token is not None or self.only.process is not None


def read(db: sqlite3.Connection, query: Query) -> list[Entry]:
    """The entries that the query asks for, oldest first."""
    tokens = _tokens(db, query) if query.by_connection else None
    found: list[Entry] = [*_paths(db, query, tokens)]
    if tokens is None:
        found += _network(db, query)
        if not _narrowed(query):
            found += _runs(db, query)
    else:
        found += _connections(db, query, tokens)
    found.sort(key=lambda entry: entry.t)
    return found


def _narrowed(query: Query) -> bool:
    only = query.only
    return any((query.path, only.address, only.interface, only.state))


def _fits_path(query: Query, interface: str | None, *ips: str | None) -> bool:
    """Whether an interface and addresses, the local one first, are asked for."""
    only = query.only
    return (
        (query.path is None or query.path in (interface, ips[0]))
        and only.fits_interface(interface)
        and only.fits_address(ips)
    )


def _tokens(db: sqlite3.Connection, query: Query) -> dict[str, None]:
    rows = db.execute(
        "SELECT token, pid, comm FROM connections WHERE closed IS NULL OR closed >= ?",
        (query.since,),
    )
    return {
        token: None
        for token, pid, comm in rows
        if query.only.fits_token(token) and query.only.fits_process(pid, comm)
    }


def _paths(db: sqlite3.Connection, query: Query, tokens: dict[str, None] | None) -> list[PathEntry]:
    columns = "t, plugin, interface, local_ip, remote_ip, state, reason"
    changes = [Change(*row) for row in db.execute(f"SELECT {columns} FROM paths ORDER BY t, id")]
    moves = [
        Move(*row)
        for row in db.execute(
            "SELECT t, token, local_ip, remote_ip FROM decisions AS d "
            "WHERE action = 'DestroySubflow' "
            "AND NOT routine AND refused IS NULL AND errno = 0 AND t >= ? "
            # A join that was not answered is destroyed too, and moves nothing.
            "AND EXISTS (SELECT 1 FROM subflows AS s WHERE s.token = d.token "
            "AND s.local = d.local AND s.remote = d.remote AND s.opened IS NOT NULL) ORDER BY t",
            (min((change.t for change in changes), default=0) - TOGETHER_S,),
        )
    ]
    starts = [start for (start,) in db.execute("SELECT started FROM runs ORDER BY started")]
    return [
        entry
        for entry in incidents(changes, moves, starts)
        if (entry.ended is None or entry.ended >= query.since)
        and _fits_path(query, entry.interface, entry.local_ip, *entry.peers)
        and query.only.fits_state(entry.state)
        and (tokens is None or _concerns(db, entry, tokens))
    ]


def _concerns(db: sqlite3.Connection, entry: PathEntry, tokens: dict[str, None]) -> bool:
    """Whether one of these connections had a subflow on the path while it was left."""
    rows = db.execute(
        "SELECT token, remote_ip FROM subflows WHERE local_ip = ? AND opened <= ? + 1 "
        "AND coalesce(closed, ?) >= ? - 1",
        (entry.local_ip, entry.t, entry.t, entry.t),
    )
    return any(token in tokens and remote in entry.peers for token, remote in rows)


def _network(db: sqlite3.Connection, query: Query) -> list[Entry]:
    rows = db.execute(
        "SELECT t, kind, what, interface, ip, detail FROM events "
        "WHERE t >= ? AND what != 'present' ORDER BY id",
        (query.since,),
    )
    found: list[Entry] = []
    for t, kind, what, interface, ip, detail in rows:
        if kind == "daemon":
            if not _narrowed(query) and what not in ("configured", "stopping"):
                found.append(DaemonEntry(t=t, what=what, detail=detail))
        elif query.only.state is None and _fits_path(query, interface, ip):
            found.append(
                NetworkEntry(
                    t=t, subject=kind, what=what, interface=interface, ip=ip, detail=detail
                )
            )
    return found


def _runs(db: sqlite3.Connection, query: Query) -> list[Entry]:
    found: list[Entry] = []
    rows = db.execute(
        "SELECT started, last_written, ended, version, id = (SELECT max(id) FROM runs) FROM runs"
    )
    for started, last_written, ended, version, newest in rows:
        if started >= query.since:
            found.append(DaemonEntry(t=started, what="started", detail=f"version {version}"))
        if ended is not None and ended >= query.since:
            found.append(DaemonEntry(t=ended, what="stopped", detail=None))
        elif ended is None and not newest and last_written >= query.since:
            found.append(DaemonEntry(t=last_written, what="killed", detail=None))
    return found


def _connections(db: sqlite3.Connection, query: Query, tokens: dict[str, None]) -> list[Entry]:
    found: list[Entry] = []
    for token in tokens:
        found += _connection(db, query, token)
    return found


def _connection(db: sqlite3.Connection, query: Query, token: str) -> list[Entry]:
    found: list[Entry] = []
    narrowed = _narrowed(query)

    def add(entry: Entry) -> None:
        if entry.t >= query.since:
            found.append(entry)

    def fits(interface: str | None, local: str | None, remote: str | None) -> bool:
        local_ip = local.rpartition(":")[0].strip("[]") if local else None
        return not narrowed or _fits_path(query, interface, local_ip, remote)

    names: tuple[str, ...] = (
        "token",
        "local",
        "remote",
        "pid",
        "comm",
        "bytes_acked",
        "bytes_received",
    )
    for opened, closed, *values in _rows(db, "connections", ("opened", "closed", *names), token):
        fields = dict(zip(names, values, strict=True))
        unknown = {**fields, "bytes_acked": None, "bytes_received": None}
        if opened is not None:
            add(ConnectionEntry(t=opened, what="opened", **unknown))
        if closed is not None:
            add(ConnectionEntry(t=closed, what="closed", **fields))
    names = (
        "token", "local", "remote", "interface", "error", "reset_reason", "srtt_us", "bytes_acked",
        "bytes_received", "retransmits", "segments_out",
    )  # fmt: skip
    for opened, closed, failed, *values in _rows(
        db, "subflows", ("opened", "closed", "failed", *names), token
    ):
        fields = dict(zip(names, values, strict=True))
        if not fits(fields["interface"], fields["local"], fields["remote"]):
            continue
        if opened is not None:
            unknown = {name: value if name in names[:4] else None for name, value in fields.items()}
            add(SubflowEntry(t=opened, what="opened", **unknown))
        if closed is not None:
            add(SubflowEntry(t=closed, what="failed" if failed else "closed", **fields))
    names = (
        "t", "token", "local", "remote", "interface", "value", "threshold", "srtt_us", "in_flight",
    )  # fmt: skip
    # After its end a subflow is silent, since its FIN is not answered: that is no news.
    closed = "(SELECT closed FROM subflows WHERE id = subflow)"
    for alarm, late, *values in _rows(db, "alarms", ("kind", f"t > {closed}", *names), token):
        if late:
            continue
        fields = dict(zip(names, values, strict=True))
        if fits(fields["interface"], fields["local"], fields["remote"]):
            add(AlarmEntry(alarm=alarm, **fields))
    names = (
        "t", "plugin", "action", "description", "token", "local", "remote", "reason", "refused",
        "errno", "explanation",
    )  # fmt: skip
    for cause, local_ip, routine, *values in _rows(
        db, "decisions", ("cause_event", "local_ip", "routine", *names), token
    ):
        fields = dict(zip(names, values, strict=True))
        if not routine and (not narrowed or _fits_path(query, None, local_ip, fields["remote"])):
            add(DecisionEntry(cause=cause, **fields))
    return found


def _rows(db: sqlite3.Connection, table: str, columns: Sequence[str], token: str) -> Iterable[Any]:
    return db.execute(f"SELECT {', '.join(columns)} FROM {table} WHERE token = ?", (token,))
