# SPDX-License-Identifier: BSD-3-Clause
"""The journal stays within its size and age, and thinning loses no count."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mptcpd_ebpf.core.recording import Record
from mptcpd_ebpf.journal import retention
from mptcpd_ebpf.journal.store import Store
from mptcpd_ebpf.journal.writer import Bounds
from tests.core.scenario import alarm, created, gone, measured
from tests.journal.files import records, rows, writer

NOW = 472_222 * 3600.0
"""At the border of every step."""
HOUR, DAY = 3600.0, 86_400.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "journal.db")
    yield opened
    opened.close()


def sample(db: sqlite3.Connection, subflow: int, t: float, sent: int, srtt_us: int = 1) -> None:
    db.execute(
        "INSERT OR REPLACE INTO samples (subflow, t, srtt_us, srtt_max_us, bytes_sent) "
        "VALUES (?, ?, ?, ?, ?)",
        (subflow, t, srtt_us, srtt_us, sent),
    )


def test_old_samples_thin_out_to_coarser_steps(store: Store) -> None:
    for second in range(0, int(3 * DAY), 200):
        sample(store.db, 1, NOW - 3 * DAY + second, second)
    retention.thin(store.db, NOW)
    steps = "SELECT step_s, count(*) FROM samples GROUP BY step_s"
    found = dict(store.db.execute(steps).fetchall())
    assert found == {0: 18, 60: 23 * 18, 600: 2 * 144}
    retention.thin(store.db, NOW)
    assert dict(store.db.execute(steps).fetchall()) == found


def test_a_step_keeps_the_last_counters_and_the_greatest_rtt(store: Store) -> None:
    begin = (NOW - 2 * HOUR) // 60 * 60
    for number, srtt_us in enumerate((10, 900, 20)):
        sample(store.db, 1, begin + number, sent=number, srtt_us=srtt_us)
    retention.thin(store.db, NOW)
    kept = store.db.execute("SELECT t, step_s, bytes_sent, srtt_us, srtt_max_us FROM samples")
    assert kept.fetchall() == [(begin + 2, 60, 2, 20, 900)]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(0, int(9 * DAY)), st.integers(1, 10**6)),
        max_size=60,
    )
)
def test_thinning_loses_no_total_and_no_peak(
    tmp_path_factory: pytest.TempPathFactory, taken: list[tuple[int, int, int]]
) -> None:
    store = Store(tmp_path_factory.mktemp("thin") / "journal.db")
    sent = dict.fromkeys((1, 2, 3), 0)
    for subflow, age, srtt_us in sorted(taken, key=lambda each: -each[1]):
        sent[subflow] += 1
        sample(store.db, subflow, NOW - age, sent[subflow], srtt_us)
    totals = "SELECT subflow, max(bytes_sent), max(srtt_max_us) FROM samples GROUP BY subflow"
    before = store.db.execute(totals).fetchall()
    for passed in (0.0, HOUR, 8 * DAY):
        retention.thin(store.db, NOW + passed)
        assert store.db.execute(totals).fetchall() == before
    store.close()


def test_what_is_older_than_the_allowed_age_goes_and_what_is_open_stays(store: Store) -> None:
    add = (
        "INSERT INTO connections (id, run, token, local, remote, opened, closed) "
        "VALUES (?, 1, '', '', '', 0, ?)"
    )
    store.db.executemany(add, [(1, NOW - 3 * DAY), (2, NOW - DAY), (3, None)])
    retention.drop_older(store.db, NOW - 2 * DAY)
    assert store.db.execute("SELECT id FROM connections").fetchall() == [(2,), (3,)]


def test_a_full_file_loses_the_oldest_rows_of_what_fills_it(store: Store) -> None:
    store.db.execute("INSERT INTO paths VALUES (1, 1, 5, '', '', '', '', 'away', '', NULL)")
    for number in range(20_000):
        sample(store.db, 1, NOW + number, number)
    before = store.size()
    retention.shrink(store.db, store.size, before // 2)
    assert store.size() <= before // 2
    assert store.db.execute("SELECT count(*) FROM paths").fetchone() == (1,)
    newest, least = store.db.execute("SELECT max(t), min(t) FROM samples").fetchone()
    assert newest == NOW + 19_999
    assert least > NOW


def test_the_writer_holds_the_size_under_a_stream_of_records(tmp_path: Path) -> None:
    file = tmp_path / "journal.db"
    journal = writer(file, Bounds(max_mb=1))
    journal.start()
    closing: list[Record] = []
    for token in range(1, 6000):
        closing += records([created(token), alarm(measured(token=token)), gone(token)])
    for each in closing[:-3]:
        journal.publish(each)
    journal.close()
    assert (journal.problem, journal.dropped) == (None, 0)
    assert 0 < journal.size <= 1_000_000
    assert rows(file, "SELECT max(token) FROM connections") == [f"{5998:08x}"]
