# SPDX-License-Identifier: BSD-3-Clause
"""The journal's file: its mode, what a kill -9 leaves, and files that cannot be used."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.measurement import Measurement
from mptcpd_ebpf.journal import writer as writing
from mptcpd_ebpf.journal.schema import VERSION
from mptcpd_ebpf.journal.store import Store, read_only
from mptcpd_ebpf.journal.writer import Bounds
from mptcpd_ebpf.runtime.exit_codes import Failure
from tests.core.scenario import FIBRE, TOKEN, created, gone, measured
from tests.journal.files import NOW, record, records, rows, writer, written
from tests.waiting import until


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "lib" / "journal.db"


def test_only_the_owner_can_read_it(file: Path) -> None:
    before = os.umask(0)
    try:
        journal = writer(file)
        journal.start()
        journal.publish(record(created()))
        until(lambda: journal.size, "the journal has been written", 10)
        modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in file.parent.iterdir()}
        journal.close()
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("journal.db", "journal.db-wal", "journal.db-shm"), 0o600)
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_samples_are_of_live_subflows_that_are_known(file: Path) -> None:
    taken = [measured(at=NOW, state=1, bytes_sent=7), measured(token=TOKEN + 1, state=1)]
    journal = writer(file, Bounds(sample_s=0), taken)
    journal.start()
    journal.publish(record(created()))
    until(lambda: file.exists() and _count(file, "samples"), "a sample has been written", 10)
    journal.close()
    assert rows(file, "SELECT DISTINCT subflow, bytes_sent FROM samples") == [(1, 7)]


def test_a_subflow_without_a_final_record_ends_with_its_last_sample(file: Path) -> None:
    journal = writer(file, Bounds(sample_s=0), [measured(at=NOW, state=1, bytes_sent=7)])
    journal.start()
    journal.publish(record(created()))
    until(lambda: file.exists() and _count(file, "samples"), "a sample has been written", 10)
    journal.publish(record(gone()))
    journal.publish(record(ev.Paused(), now=NOW + writing.QUEUE * 10**9))
    journal.close()
    assert rows(file, "SELECT bytes_sent FROM subflows") == [7]


WRITES_FOREVER = """
import itertools, sys, time
from pathlib import Path
from tests.core.scenario import created, gone
from tests.journal.files import record, writer
journal = writer(Path(sys.argv[1]))
journal.start()
for token in itertools.count(1):
    journal.publish(record(created(token % 2**32)))
    journal.publish(record(gone(token % 2**32)))
    if token % 2000 == 0:
        while journal._queue:
            time.sleep(0.01)
        print(token, flush=True)
"""


def test_what_was_written_before_a_kill_9_is_there(file: Path) -> None:
    for _ in range(3):
        before = _count(file, "connections") if file.exists() else 0
        child = subprocess.Popen(
            [sys.executable, "-c", WRITES_FOREVER, str(file)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        said = [child.stdout.readline() for _ in range(4)]
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        # The batch that was read from the queue last may not be committed yet.
        least = int(said[-2])
        assert rows(file, "PRAGMA integrity_check") == ["ok"]
        assert _count(file, "connections") - before >= least
    journal = written(file, [record(created())])
    assert journal.problem is None
    assert rows(file, "SELECT count(*), count(ended) FROM runs") == [(4, 1)]


@pytest.mark.parametrize("damage", [b"", b"\xff" * 300, "middle"])
def test_a_damaged_file_is_kept_and_a_new_one_begins(
    file: Path, damage: bytes | str, caplog: pytest.LogCaptureFixture
) -> None:
    written(file, records([created(token) for token in range(1, 3000)]))
    content = bytearray(file.read_bytes())
    if isinstance(damage, str):
        content[len(content) // 2 :] = b"\xa5" * (len(content) - len(content) // 2)
    else:
        content[: len(damage)] = damage
    if damage:
        file.write_bytes(content)
    caplog.clear()
    journal = written(file, [record(created())])
    assert journal.problem is None
    aside = [each for each in file.parent.iterdir() if each.name.startswith("journal.db.2")]
    if not damage:
        assert (aside, _count(file, "connections")) == ([], 3000)
        return
    assert _count(file, "connections") == 1
    (kept,) = aside
    assert kept.read_bytes() == content
    (message,) = [each.getMessage() for each in caplog.records]
    assert str(file) in message
    assert "is damaged" in message
    assert str(kept) in message


def test_a_file_of_a_newer_version_is_kept_and_a_new_one_begins(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written(file, [record(created())])
    rows(file, f"PRAGMA user_version = {VERSION + 1}")
    journal = written(file, [record(created())])
    assert journal.problem is None
    assert f"newer version (schema {VERSION + 1}, this one is {VERSION})" in caplog.text
    (kept,) = [each for each in file.parent.iterdir() if each.name.startswith("journal.db.2")]
    assert rows(kept, "SELECT count(*) FROM connections") == [1]
    assert rows(file, "SELECT count(*) FROM runs") == [1]


def test_a_database_of_another_program_is_not_touched(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.parent.mkdir()
    rows(file, "CREATE TABLE bookmarks (url TEXT)")
    content = file.read_bytes()
    journal = written(file, [record(created())])
    assert file.read_bytes() == content
    assert journal.problem is not None
    assert "another program" in journal.problem
    assert [each.levelname for each in caplog.records] == ["ERROR"]


def test_two_daemons_do_not_write_one_file(file: Path) -> None:
    store = Store(file)
    second = written(file, [record(created())])
    store.close()
    assert second.problem is not None
    assert "another daemon writes" in second.problem
    assert written(file, [record(created())]).problem is None


def test_a_folder_that_cannot_be_made_is_one_message(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "lib").write_text("a file")
    journal = written(tmp_path / "lib" / "journal.db", [record(created())])
    assert journal.problem is not None
    assert len(caplog.records) == 1


def test_a_full_queue_drops_records_and_counts_them(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "QUEUE", 10)
    resumed = threading.Event()

    def sample() -> list[Measurement]:
        assert resumed.wait(10)
        return []

    journal = writer(file, Bounds(sample_s=0))
    journal._sample = sample  # the thread waits in it
    journal.start()
    until(lambda: journal.size, "the file is open", 10)
    for token in range(1, 26):
        journal.publish(record(created(token)))
    resumed.set()
    journal.close()
    assert journal.dropped == 15
    assert rows(file, "SELECT count(*) FROM connections") == [10]
    assert rows(file, "SELECT records_dropped FROM runs") == [15]


def test_an_operators_lock_costs_nothing_but_time(file: Path) -> None:
    journal = writer(file)
    journal.start()
    until(lambda: journal.size, "the file is open", 10)
    operator = sqlite3.connect(file, isolation_level=None)
    operator.execute("BEGIN EXCLUSIVE")
    journal.publish(record(created()))
    operator.execute("COMMIT")
    operator.close()
    journal.close()
    assert (journal.problem, journal.dropped) == (None, 0)
    assert rows(file, "SELECT local FROM connections") == [str(FIBRE[0])]


def test_a_reader_does_not_stop_the_writer(file: Path) -> None:
    written(file, [record(created())])
    reader = read_only(file)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM connections").fetchone() == (1,)
    written(file, [record(created(TOKEN + 1))])
    assert reader.execute("SELECT count(*) FROM connections").fetchone() == (1,)
    reader.execute("COMMIT")
    assert reader.execute("SELECT count(*) FROM connections").fetchone() == (2,)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("DELETE FROM connections")
    reader.close()


def test_a_reader_is_told_why_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"no journal: .*none.db does not exist"):
        read_only(tmp_path / "none.db")
    (tmp_path / "text.db").write_text("no database, but long enough to be looked at" * 100)
    with pytest.raises(Failure, match="not a database"):
        read_only(tmp_path / "text.db")
    rows(tmp_path / "other.db", "CREATE TABLE bookmarks (url TEXT)")
    with pytest.raises(Failure, match="the file has none"):
        read_only(tmp_path / "other.db")


def _count(file: Path, table: str) -> int:
    try:
        return int(rows(file, f"SELECT count(*) FROM {table}")[0])
    except sqlite3.OperationalError:
        return 0  # not created yet
