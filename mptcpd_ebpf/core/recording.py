# SPDX-License-Identifier: BSD-3-Clause
"""What observers see of a run, how a file holds it, and how it is replayed.

A recording is lines of JSON: a `Head`, then a `Record` for each event, in the order in which the
engine took them.  The events alone decide: `replay` feeds them into a new engine, which comes to
the same decisions.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn

import msgspec
from msgspec import Struct

from mptcpd_ebpf.core.commands import AnyCommand, Decision, HeldBack
from mptcpd_ebpf.core.engine import Engine
from mptcpd_ebpf.core.events import AnyEvent, PluginExcluded
from mptcpd_ebpf.core.plugin_host import MakePlugin

SCHEMA = 1


class Head(Struct, frozen=True, kw_only=True):
    """The first line of a recording."""

    schema: int = SCHEMA
    version: str
    """Of the program that wrote it."""
    epoch_ns: int
    """To be added to the times of records to get nanoseconds since 1970."""
    netns: int
    """Inode of the network namespace."""


class Record(Struct, frozen=True, kw_only=True):
    """One event and the decisions it caused."""

    seq: int
    """From 1, without gaps."""
    now: int
    """CLOCK_MONOTONIC nanoseconds."""
    event: AnyEvent
    decisions: list[Decision]
    """Also those that were refused."""
    held: list[HeldBack] = []
    """Summaries of commands that wait and of which no decision tells yet."""


class RecordingError(ValueError):
    """A recording that cannot be read; the text names the line and the cause."""


encode: Callable[[Head | Record], bytes] = msgspec.json.Encoder().encode
_decode_head = msgspec.json.Decoder(Head).decode
_decode_record = msgspec.json.Decoder(Record).decode


def read(lines: Iterable[bytes]) -> tuple[Head, Iterator[Record]]:
    """The head and the records of a recording.  Raises RecordingError, also while iterating."""
    numbered = enumerate(lines, start=1)
    _, first = next(numbered, (1, b""))
    try:
        head = _decode_head(first)
    except msgspec.DecodeError as error:
        raise RecordingError(f"line 1: not the head of a recording: {error}") from None
    if head.schema != SCHEMA:
        raise RecordingError(
            f"line 1: schema {head.schema}, written by version {head.version}; "
            f"this version reads schema {SCHEMA}"
        )
    return head, _records(numbered)


def _records(numbered: Iterable[tuple[int, bytes]]) -> Iterator[Record]:
    expected = 1
    for number, line in numbered:
        try:
            record = _decode_record(line)
        except msgspec.DecodeError as error:
            what = "not a record" if line.endswith(b"\n") else "ends halfway, as after a crash"
            raise RecordingError(f"line {number}: {what}: {error}") from None
        if record.seq != expected:
            raise RecordingError(f"line {number}: event {record.seq} where {expected} was expected")
        expected += 1
        yield record


class _EndedError(Exception):
    """Stands for what ended a handler call in the recorded run."""


def replay(records: Iterable[Record], make: MakePlugin) -> Iterator[tuple[Record, list[Decision]]]:
    """Each record with what a new engine decides on its event.

    `make` returns the plugin of a spec.  A handler call that was ended in the recorded run, such
    as one that took too long, is ended here too.
    """
    recorded = list(records)
    cut = {each.event.call for each in recorded if isinstance(each.event, PluginExcluded)}

    def run(call: int, handler: Callable[[], list[AnyCommand]]) -> list[AnyCommand]:
        if call in cut:
            _end(call)
        return handler()

    engine = Engine(make, run)
    for record in recorded:
        yield record, engine.handle(record.event, record.now).decisions


def _end(call: int) -> NoReturn:
    raise _EndedError(f"handler call {call} was ended in the recorded run")
