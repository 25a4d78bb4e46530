# SPDX-License-Identifier: BSD-3-Clause
"""Opens the journal's file, for one writer or for any number of readers.

A file that cannot be used as it is, since it is damaged or a newer version wrote it, is renamed
and stays complete; the writer begins a new one.  A database of another program is not touched.
"""

import fcntl
import os
import sqlite3
import time
from pathlib import Path

from mptcpd_ebpf.journal.schema import APPLICATION_ID, TABLES, VERSION
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure

BUSY_MS = 5000
"""How long to wait for another process that writes, such as an operator's sqlite3."""


class Store:
    """The file, opened for writing: `db` is the connection, usable in the opening thread only."""

    def __init__(self, path: Path) -> None:
        """Raises `Failure`: the folder or file cannot be written, another process writes it, or it
        belongs to another program."""
        self.path = path
        self.note: str | None = None
        """What happened to a file that could not be used, in one line."""
        self._locks: list[int] = []
        """Descriptors of the file, which are closed last: closing one releases SQLite's locks."""
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.db = self._open()
        except OSError as error:
            self._unlock()
            raise Failure(f"journal: {path}: {error.strerror}", ExitCode.CONFIG) from None
        except sqlite3.Error as error:
            self._unlock()
            raise Failure(f"journal: {path}: {error}", ExitCode.CONFIG) from None
        except Failure:
            self._unlock()
            raise

    def _open(self) -> sqlite3.Connection:
        self._lock()
        problem = self._problem()
        if problem is not None:
            aside = self._set_aside()
            self.note = f"journal: {self.path} {problem}: kept as {aside}, a new one begins"
            self._lock()
        db = _connect(self.path)
        try:
            if db.execute("PRAGMA user_version").fetchone() == (0,):
                db.execute("PRAGMA auto_vacuum = INCREMENTAL")
                db.executescript(
                    f"BEGIN; PRAGMA application_id = {APPLICATION_ID}; {TABLES}"
                    f"PRAGMA user_version = {VERSION}; COMMIT"
                )
            # A commit is then in the file of the operating system, which a kill -9 cannot undo;
            # a power failure may cost the newest ones and never the file.
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA journal_size_limit = 4194304")
        except BaseException:
            db.close()
            raise
        return db

    def _problem(self) -> str | None:
        """Why an existing file cannot be continued; None if it can.  Raises `Failure`."""
        db = _connect(self.path)
        try:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            (application,) = db.execute("PRAGMA application_id").fetchone()
            tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if tables and application != APPLICATION_ID:
                raise Failure(
                    f"journal: {self.path} is a database of another program, which stays as it "
                    "is: name another file with journal.path",
                    ExitCode.CONFIG,
                )
            if version > VERSION:
                return f"was written by a newer version (schema {version}, this one is {VERSION})"
            damage = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            return None if damage == "ok" else f"is damaged ({damage.splitlines()[-1]})"
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and not _is_damage(error):
                raise
            return f"is damaged ({error})"
        finally:
            db.close()

    def _set_aside(self) -> Path:
        stamp = time.strftime("%Y%m%dT%H%M%S")
        number, aside = 0, self.path.with_name(f"{self.path.name}.{stamp}")
        while aside.exists():
            number += 1
            aside = self.path.with_name(f"{self.path.name}.{stamp}-{number}")
        for suffix in ("-wal", "-shm", ""):
            part = Path(f"{self.path}{suffix}")
            if part.exists():
                part.rename(f"{aside}{suffix}")
        return aside

    def size(self) -> int:
        """Bytes in use, without pages that are free for later rows."""
        values = [self.db.execute(f"PRAGMA {name}").fetchone()[0] for name in _PAGES]
        pages, free, page_size = values
        return int((pages - free) * page_size)

    def close(self) -> None:
        self.db.close()
        self._unlock()

    def _lock(self) -> None:
        """Creates the file if there is none, and locks it against other daemons.

        Raises OSError or `Failure`.  The -wal and -shm files that SQLite makes take over its mode.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._locks.append(os.open(self.path, flags, 0o600))
        try:
            fcntl.flock(self._locks[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failure(
                f"journal: another daemon writes {self.path}: name another file with journal.path",
                ExitCode.CONFIG,
            ) from None

    def _unlock(self) -> None:
        while self._locks:
            os.close(self._locks.pop())


_PAGES = ("page_count", "freelist_count", "page_size")


def read_only(path: Path) -> sqlite3.Connection:
    """The file for queries, also while a daemon writes it.  Raises `Failure`."""
    if not path.exists():
        raise Failure(
            f"no journal: {path} does not exist; the daemon writes one unless "
            "journal.enabled is false",
            ExitCode.NO_DAEMON,
        )
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        (application,) = db.execute("PRAGMA application_id").fetchone()
    except sqlite3.Error as error:
        code = ExitCode.PRIVILEGE if not os.access(path, os.R_OK) else ExitCode.CHECK_FAILED
        raise Failure(f"journal: {path}: {error}", code) from None
    if application != APPLICATION_ID or version != VERSION:
        db.close()
        raise Failure(
            f"journal: {path}: this version reads schema {VERSION} of the journal, the file has "
            f"{f'schema {version}' if application == APPLICATION_ID else 'none'}",
            ExitCode.CHECK_FAILED,
        )
    return db


def _connect(path: Path) -> sqlite3.Connection:
    # Transactions are written out (isolation_level); a batch is one of them.
    db = sqlite3.connect(path, isolation_level=None, cached_statements=64)
    db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
    return db


def _is_damage(error: sqlite3.Error) -> bool:
    return error.sqlite_errorcode in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
