# SPDX-License-Identifier: BSD-3-Clause
"""A journal in a file of the test: written from records, read with plain SQL."""

import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.commands import Decision
from mptcpd_ebpf.core.measurement import Measurement
from mptcpd_ebpf.core.recording import Record
from mptcpd_ebpf.journal.writer import Bounds, Writer

NOW = time.monotonic_ns()
"""The time of records unless a test sets it…"""
STARTED = time.time()
"""…and of the writer's clock, by which it deletes what is old."""


def record(event: ev.AnyEvent, *decisions: Decision, now: int = NOW, seq: int = 1) -> Record:
    return Record(seq=seq, now=now, event=event, decisions=list(decisions))


def records(events: Iterable[Any], *, start: int = NOW, step: int = 1) -> list[Record]:
    """One record for each event, `step` nanoseconds apart."""
    return [
        record(event, now=start + number * step, seq=number + 1)
        for number, event in enumerate(events)
    ]


def writer(path: Path, bounds: Bounds | None = None, sample: Iterable[Measurement] = ()) -> Writer:
    measured = list(sample)
    return Writer(
        path,
        bounds or Bounds(),
        "0",
        describe=lambda decision: type(decision.command).__name__,
        sample=lambda: measured,
        clock=lambda: STARTED,
    )


def written(path: Path, published: Iterable[Record]) -> Writer:
    """A writer that has written these records and ended."""
    journal = writer(path)
    journal.start()
    for each in published:
        journal.publish(each)
    journal.close()
    return journal


def rows(path: Path, sql: str, *values: Any) -> list[Any]:
    """The rows of a query; one column is no tuple."""
    db = sqlite3.connect(path)
    try:
        found = db.execute(sql, values).fetchall()
    finally:
        db.close()
    return [row[0] if len(row) == 1 else row for row in found]
