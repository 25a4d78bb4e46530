# SPDX-License-Identifier: BSD-3-Clause
"""Lines as JSON, and files of them: what ``trace TOOL -o FILE`` writes and ``trace show`` reads.

Each line is one JSON object with ``schema``, ``trace`` (the tool), ``event`` (the kind of line)
and the members of the line's struct.  A file begins with a `Head`.
"""

import os
import time
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from mptcpd_ebpf import __version__
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure
from mptcpd_ebpf.trace.lines.base import SCHEMA, AnyLine

TOOLS = (
    "life",
    "joins",
    "resets",
    "retrans",
    "rtt",
    "stalls",
    "sched",
    "fallback",
    "pm",
    "func",
    "doctor",
)


class Head(Struct, frozen=True, kw_only=True):
    """The first line of a file."""

    schema: int = SCHEMA
    trace: str
    """The tool."""
    version: str = __version__
    epoch_ns: int
    """To be added to the times of lines to get nanoseconds since 1970."""


def as_json(tool: str, line: AnyLine) -> bytes:
    """One line, without a line break."""
    return b'{"schema":%d,"trace":"%s",%s' % (
        SCHEMA,
        tool.encode(),
        msgspec.json.encode(line)[1:],
    )


def as_text(line: AnyLine, epoch_ns: int) -> str:
    """As people read it, with the time of day where the line has one."""
    if not line.has_time:
        return line.text()
    seconds, rest = divmod(line.at + epoch_ns, 1_000_000_000)
    clock = time.strftime("%H:%M:%S", time.localtime(seconds))
    return f"{clock}.{rest // 1000:06d}  {line.text()}"


def lines_of(tool: str) -> Any:
    """The union of a tool's lines."""
    return import_module(f"mptcpd_ebpf.trace.lines.{tool}").LINES


def schema() -> dict[str, Any]:
    """JSON Schema of every tool's lines, by tool."""
    return {tool: msgspec.json.schema(lines_of(tool)) for tool in TOOLS}


class LineFile:
    """A new file that lines are written to, one write each: a killed trace keeps them all."""

    def __init__(self, file: Path, tool: str, epoch_ns: int) -> None:
        """Raises `Failure` if the file exists already or cannot be created."""
        self._tool = tool
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            self._descriptor = os.open(file, flags, 0o644)
        except FileExistsError:
            raise Failure(
                f"-o {file}: the file exists already; name a new one", ExitCode.USAGE
            ) from None
        except OSError as error:
            raise Failure(f"-o {file}: {error.strerror}", ExitCode.USAGE) from None
        self._write(msgspec.json.encode(Head(trace=tool, epoch_ns=epoch_ns)))

    def put(self, line: AnyLine) -> None:
        self._write(as_json(self._tool, line))

    def _write(self, line: bytes) -> None:
        os.write(self._descriptor, line + b"\n")

    def close(self) -> None:
        os.close(self._descriptor)


def read(file: Path) -> tuple[Head, Iterator[AnyLine]]:
    """The head and the lines of a file.  Raises `Failure`, also while iterating."""
    try:
        rows = file.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise Failure(f"{file}: {error.strerror}", ExitCode.USAGE) from None
    try:
        head = msgspec.json.decode(rows[0] if rows else b"", type=Head)
    except msgspec.DecodeError as error:
        raise Failure(
            f"{file}:1: not a file of 'mptcpd-ebpf trace -o': {error}", ExitCode.USAGE
        ) from None
    if head.schema != SCHEMA or head.trace not in TOOLS:
        raise Failure(
            f"{file}:1: schema {head.schema} of trace {head.trace}, written by version "
            f"{head.version}; this version reads schema {SCHEMA}",
            ExitCode.USAGE,
        )
    return head, _lines(file, head, rows[1:])


def _lines(file: Path, head: Head, rows: Iterable[bytes]) -> Iterator[AnyLine]:
    decode = msgspec.json.Decoder(lines_of(head.trace)).decode
    for number, row in enumerate(rows, start=2):
        try:
            yield decode(row)
        except msgspec.DecodeError as error:
            whole = row.endswith(b"\n")
            what = f"not a line of trace {head.trace}: {error}" if whole else "ends halfway"
            raise Failure(f"{file}:{number}: {what}", ExitCode.CHECK_FAILED) from None
