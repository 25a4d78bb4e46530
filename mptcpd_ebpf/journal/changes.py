# SPDX-License-Identifier: BSD-3-Clause
"""New and changed rows that wait for the next transaction.

What happens to a row until then is one statement: of a short connection, most of what the journal
costs.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

from mptcpd_ebpf.journal.schema import COUNTERS

Row = dict[str, Any]


class Statement(NamedTuple):
    """SQL and its parameters."""

    sql: str
    values: Sequence[Any]


class Changes:
    """Rows by table and id."""

    def __init__(self) -> None:
        self._new: dict[tuple[str, int], Row] = {}
        self._changed: dict[tuple[str, int], Row] = {}
        self._samples: list[Sequence[Any]] = []
        self._unfinished: dict[int, None] = {}

    def insert(self, table: str, number: int, row: Row) -> None:
        """A new row; `row` belongs to this object from now on."""
        self._new[table, number] = row

    def update(self, table: str, number: int, row: Row) -> None:
        """Other values of a row."""
        new = self._new.get((table, number))
        if new is not None:
            new.update(row)
            return
        changed = self._changed.get((table, number))
        if changed is None:
            self._changed[table, number] = row
        else:
            changed.update(row)

    def sample(self, values: Sequence[Any]) -> None:
        """A row of `samples`, in the order of `SAMPLE`."""
        self._samples.append(values)

    def from_sample(self, subflow: int) -> None:
        """The last sample of a subflow becomes its final values, until `final`."""
        self._unfinished[subflow] = None

    def final(self, subflow: int, row: Row) -> None:
        """The final values of a subflow."""
        self._unfinished.pop(subflow, None)
        self.update("subflows", subflow, row)

    def take(self) -> Iterator[Statement]:
        """The statements that write all that waits."""
        new, self._new = self._new, {}
        changed, self._changed = self._changed, {}
        samples, self._samples = self._samples, []
        unfinished, self._unfinished = self._unfinished, {}
        for (table, number), row in new.items():
            yield Statement(_insert(table, tuple(row)), [number, *row.values()])
        for (table, number), row in changed.items():
            yield Statement(_update(table, tuple(row)), [*row.values(), number])
        for values in samples:
            yield Statement(SAMPLE, values)
        for subflow in unfinished:
            yield Statement(FROM_SAMPLE, (subflow,))


@cache
def _insert(table: str, columns: tuple[str, ...]) -> str:
    marks = ", ".join("?" * (len(columns) + 1))
    return f"INSERT INTO {table} (id, {', '.join(columns)}) VALUES ({marks})"


@cache
def _update(table: str, columns: tuple[str, ...]) -> str:
    return f"UPDATE {table} SET {', '.join(f'{name} = ?' for name in columns)} WHERE id = ?"


_SAMPLED = ("subflow", "t", "srtt_us", "srtt_max_us", "cwnd", "in_flight", *COUNTERS)
SAMPLE = (
    f"INSERT OR REPLACE INTO samples ({', '.join(_SAMPLED)}) "
    f"VALUES ({', '.join('?' * len(_SAMPLED))})"
)
FROM_SAMPLE = (
    f"UPDATE subflows SET (srtt_us, {', '.join(COUNTERS)}) = "
    f"(SELECT srtt_us, {', '.join(COUNTERS)} FROM samples WHERE subflow = subflows.id "
    "ORDER BY t DESC LIMIT 1) WHERE id = ?"
)
"""For a subflow whose final record never came, as after a restart of the daemon."""


def seconds(ns: int) -> float:
    """Nanoseconds as seconds, rounded to microseconds."""
    return round(ns / 1e9, 6)
