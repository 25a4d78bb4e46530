# SPDX-License-Identifier: BSD-3-Clause
"""Writes the journal in a thread of its own: a slow disk delays no decision.

`publish` puts a record into a bounded queue; when that is full, the record is dropped and counted.
The thread writes what waits once a second in one transaction, takes the samples, and keeps the
file within its bounds.  sqlite3 releases the interpreter's lock while it works.
"""

import logging
import signal
import sqlite3
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

from msgspec import Struct

from mptcpd_ebpf.core.address import SockAddr, parse_sockaddr
from mptcpd_ebpf.core.measurement import Measurement
from mptcpd_ebpf.core.recording import Record
from mptcpd_ebpf.journal import retention
from mptcpd_ebpf.journal.changes import Statement
from mptcpd_ebpf.journal.decision_rows import Describe
from mptcpd_ebpf.journal.rows import OpenRows, Rows, is_kept
from mptcpd_ebpf.journal.store import Store
from mptcpd_ebpf.runtime.exit_codes import Failure

log = logging.getLogger("mptcpd-ebpf")

QUEUE = 20_000
"""Records that wait at most."""
_WAKE_AT = 2_000
"""Waiting records at which the thread does not wait for the next second."""
WRITE_S = 1.0
"""Seconds between two transactions, which a kill -9 can cost."""
_ALIVE_S = 10.0
"""Seconds after which a file without news says that the daemon still runs."""
MAINTAIN_S = 60.0
_SWITCH_S = 0.0005
"""Seconds for which the main thread waits at most while this one computes; 5 ms by default."""
_SAMPLE_SHARE = 0.005
"""Share of the time that samples may take: with many subflows they become rarer."""
_CLOSE_S = 5.0
"""Seconds to write what waits when the daemon ends."""

Sample = Callable[[], Iterable[Measurement]]
"""Measures all subflows now, from the writer's thread; raises OSError if that is impossible."""


class Bounds(Struct, frozen=True, kw_only=True):
    """How much the journal keeps."""

    max_mb: int = 64
    """Size of the file, 10^6 bytes."""
    max_age_days: int = 30
    sample_s: int = 10
    """Seconds between samples of every subflow."""


class Writer:
    """An observer (`daemon.observers.Observer`) that writes the journal."""

    def __init__(
        self,
        path: Path,
        bounds: Bounds,
        version: str,
        *,
        describe: Describe,
        sample: Sample,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self.dropped = 0
        """Records that found the queue full, or could not be written."""
        self.size = 0
        """Bytes of the file in use."""
        self.problem: str | None = None
        """Why nothing is written; None while all is well."""
        self._bounds = bounds
        self._version = version
        self._describe = describe
        self._sample = sample
        self._clock = clock
        self._queue: deque[tuple[Record, int]] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    def start(self) -> None:
        """Starts the thread, which opens the file; a failure is in the log and in `problem`."""
        sys.setswitchinterval(_SWITCH_S)
        # The daemon's signals are the main thread's, also those that end a plugin's handler.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def publish(self, record: Record) -> None:
        """Queues a record; never blocks."""
        if not is_kept(record) or not self._thread.is_alive():
            return
        if len(self._queue) >= QUEUE:
            self.dropped += 1
            return
        self._queue.append((record, time.time_ns() - time.monotonic_ns()))
        if len(self._queue) == _WAKE_AT:
            self._wake.set()

    def close(self) -> None:
        """Writes what waits and ends the thread."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)

    # --- the thread

    def _run(self) -> None:
        try:
            store = Store(self.path)
        except Failure as failure:
            self.problem = str(failure)
            log.error("%s; the daemon continues without a journal", failure)
            self._queue.clear()
            return
        if store.note:
            log.warning("%s", store.note)
        try:
            _Session(self, store).run()
        except Exception as error:
            # A damaged file is put aside at the next start.
            self.problem = f"journal: {self.path}: {error}"
            log.error("%s; the daemon continues without a journal", self.problem)
        finally:
            store.close()


_ALIVE = "UPDATE runs SET last_written = ?, records_dropped = ?, alarms_left_out = ? WHERE id = ?"


class _Session:
    """The writer's thread, with the file open."""

    def __init__(self, writer: Writer, store: Store) -> None:
        self._writer = writer
        self._store = store
        self._db = store.db
        self._run = self._begin_run()
        self._rows = Rows(self._run, _greatest(self._db), _left_open(self._db), writer._describe)
        self._alive_at = 0.0
        self._maintain_at = 0.0
        self._sample_at = time.monotonic() + writer._bounds.sample_s
        self._failing = False
        self._unwritten = 0

    def run(self) -> None:
        writer = self._writer
        stopping = False
        while not stopping:
            # Read first: what is published before the stop is written.
            stopping = writer._stopping
            if writer._queue or time.monotonic() >= self._alive_at:
                self._write(self._take())
            if time.monotonic() >= self._sample_at and not stopping:
                self._take_sample()
            if time.monotonic() >= self._maintain_at or writer.size > self._limit:
                self._maintain()
            if not stopping:
                writer._wake.wait(WRITE_S)
                writer._wake.clear()
        now = writer._clock()
        self._transaction(
            [Statement("UPDATE runs SET ended = ?, last_written = ? WHERE id = ?",
                       (now, now, self._run))]
        )  # fmt: skip

    @property
    def _limit(self) -> int:
        return self._writer._bounds.max_mb * 1_000_000

    def _begin_run(self) -> int:
        now = self._writer._clock()
        row = (now, now, self._writer._version)
        sql = "INSERT INTO runs (started, last_written, version) VALUES (?, ?, ?)"
        number = self._db.execute(sql, row).lastrowid
        assert number is not None
        return number

    def _take(self) -> Iterator[Statement]:
        """The statements of what waits now."""
        queue = self._writer._queue
        for _ in range(len(queue)):
            record, epoch_ns = queue.popleft()
            self._unwritten += 1
            self._rows.of(record, epoch_ns)
        yield from self._rows.changes.take()

    def _write(self, statements: Iterable[Statement]) -> None:
        if self._transaction(chain(statements, self._alive())):
            self._writer.size = self._store.size()
        self._alive_at = time.monotonic() + _ALIVE_S

    def _alive(self) -> Iterator[Statement]:
        writer = self._writer
        counts = (writer._clock(), writer.dropped, self._rows.alarms_left_out, self._run)
        yield Statement(_ALIVE, counts)

    def _transaction(self, statements: Iterable[Statement]) -> bool:
        """Whether all was written; a full disk costs the batch, and is reported once."""
        writer = self._writer
        self._unwritten = 0
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for sql, values in statements:
                self._db.execute(sql, values)
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            writer.dropped += self._unwritten
            if not self._failing:
                log.error("journal: %s: %s; records are lost until it can", writer.path, error)
            self._failing, writer.problem = True, f"journal: {writer.path}: {error}"
            return False
        if self._failing:
            log.info("journal: %s is written again; %d records lost", writer.path, writer.dropped)
            self._failing, writer.problem = False, None
        return True

    def _take_sample(self) -> None:
        writer = self._writer
        began = time.monotonic()
        try:
            measured = writer._sample()
        except OSError as error:
            log.debug("journal: no sample: %s", error)
            measured = ()
        self._rows.sampled(measured, time.time_ns() - time.monotonic_ns())
        self._write(self._rows.changes.take())
        took = time.monotonic() - began
        self._sample_at = began + max(writer._bounds.sample_s, took / _SAMPLE_SHARE)

    def _maintain(self) -> None:
        writer = self._writer
        now = writer._clock()
        oldest = now - writer._bounds.max_age_days * retention.DAY
        try:
            self._db.execute("BEGIN IMMEDIATE")
            retention.thin(self._db, now)
            retention.drop_older(self._db, oldest)
            self._db.execute("COMMIT")
            retention.shrink(self._db, self._store.size, self._limit)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            log.debug("journal: not thinned out now: %s", error)
        writer.size = self._store.size()
        self._maintain_at = time.monotonic() + MAINTAIN_S


def _greatest(db: sqlite3.Connection) -> dict[str, int]:
    tables = ("connections", "subflows", "alarms", "decisions", "paths", "events")
    return {
        table: db.execute(f"SELECT coalesce(max(id), 0) FROM {table}").fetchone()[0]
        for table in tables
    }


def _left_open(db: sqlite3.Connection) -> OpenRows:
    """The connections and subflows that were open when the last run ended."""
    (last_written,) = db.execute(
        "SELECT coalesce(max(last_written), 0) FROM runs WHERE id < (SELECT max(id) FROM runs)"
    ).fetchone()
    # A token that was used again since: its former connection has closed unseen.
    db.execute(
        "UPDATE connections SET closed = ? WHERE closed IS NULL AND id NOT IN "
        "(SELECT max(id) FROM connections GROUP BY token)",
        (last_written,),
    )
    db.execute(
        "UPDATE subflows SET closed = ? WHERE closed IS NULL AND connection IN "
        "(SELECT id FROM connections WHERE closed IS NOT NULL)",
        (last_written,),
    )
    connections = db.execute(
        "SELECT id, token, local, remote FROM connections WHERE closed IS NULL"
    )
    subflows = db.execute("SELECT id, connection, local, remote FROM subflows WHERE closed IS NULL")
    return OpenRows(
        [(number, int(token, 16), *_addresses(*pair)) for number, token, *pair in connections],
        [(number, parent, *_addresses(*pair)) for number, parent, *pair in subflows],
        last_written,
    )


def _addresses(local: str, remote: str) -> tuple[SockAddr, SockAddr]:
    return parse_sockaddr(local), parse_sockaddr(remote)
