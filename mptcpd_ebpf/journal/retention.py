# SPDX-License-Identifier: BSD-3-Clause
"""Keeps the journal within its size and age: old samples thin out, the oldest rows go.

Counters are cumulative, so the last sample of a step has everything that the step's samples
counted; of their RTTs the greatest is kept beside the last.
"""

import sqlite3
from collections.abc import Callable

HOUR, DAY = 3600, 86_400

STEPS = ((HOUR, 60), (DAY, 600), (7 * DAY, 3600))
"""Samples older than the first number of seconds are kept once in the second number of seconds."""

ROUTINE_S = HOUR
"""Probes of a path that is away: how long their decisions and subflows are kept."""

_TIMES = {
    "samples": "t",
    "alarms": "t",
    "decisions": "t",
    "paths": "t",
    "events": "t",
    "subflows": "closed",
    "connections": "closed",
}
"""The column that says how old a row is; a row without it belongs to something that is open."""

_KEPT_SHARE = 0.9
"""Of the allowed size, after rows were deleted for it."""


def thin(db: sqlite3.Connection, now: float) -> None:
    """Thins out samples, and removes what only debugging needs for a while."""
    for age, step in STEPS:
        # Whole steps only, so that a later call does not thin the same step again.
        until = (now - age) // step * step
        db.execute("DROP TABLE IF EXISTS temp.step")
        db.execute(
            """
            CREATE TEMP TABLE step AS SELECT subflow, t,
                max(srtt_max_us) OVER bucket AS worst,
                t = max(t) OVER bucket AS last
            FROM samples WHERE step_s < :step AND t < :until
            WINDOW bucket AS (PARTITION BY subflow, CAST(t / :step AS INTEGER))
            """,
            {"step": step, "until": until},
        )
        db.execute(
            "DELETE FROM samples WHERE (subflow, t) IN (SELECT subflow, t FROM step WHERE NOT last)"
        )
        db.execute(
            """
            UPDATE samples SET step_s = ?, srtt_max_us = step.worst FROM step
            WHERE step.last AND samples.subflow = step.subflow AND samples.t = step.t
            """,
            (step,),
        )
        db.execute("DROP TABLE temp.step")
    before = now - ROUTINE_S
    db.execute("DELETE FROM decisions WHERE routine AND t < ?", (before,))
    db.execute(
        "DELETE FROM subflows WHERE closed < ? AND NOT initial "
        "AND coalesce(bytes_acked, 0) = 0 AND coalesce(bytes_received, 0) = 0",
        (before,),
    )


def drop_older(db: sqlite3.Connection, than: float) -> None:
    """Deletes every row that is older, except of what is still open."""
    for table, column in _TIMES.items():
        db.execute(f"DELETE FROM {table} WHERE {column} < ?", (than,))
    db.execute("DELETE FROM runs WHERE last_written < ?", (than,))


def shrink(db: sqlite3.Connection, size: Callable[[], int], limit: int) -> None:
    """Deletes the oldest rows until the file's used size is below its limit, bytes.

    A quarter of the table with the most rows at a time: a burst of one kind does not push out the
    history of the others.
    """
    if size() <= limit:
        return
    while size() > limit * _KEPT_SHARE:
        rows, table = max(
            (db.execute(f"SELECT count({column}) FROM {table}").fetchone()[0], table)
            for table, column in _TIMES.items()
        )
        if rows == 0:
            break
        column = _TIMES[table]
        (edge,) = db.execute(
            f"SELECT {column} FROM {table} WHERE {column} IS NOT NULL ORDER BY {column} "
            "LIMIT 1 OFFSET ?",
            (rows // 4,),
        ).fetchone()
        db.execute(f"DELETE FROM {table} WHERE {column} <= ?", (edge,))
    db.execute("PRAGMA incremental_vacuum").fetchall()
