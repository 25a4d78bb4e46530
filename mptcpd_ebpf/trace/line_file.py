# SPDX-License-Identifier: BSD-3-Clause
"""Lines as JSON and as text, and files of them: ``trace TOOL -o FILE`` and ``trace show FILE``.

Each line is one JSON object with ``schema``, ``trace`` (the tool), ``event`` (the kind of line)
and the members of the line's struct.  The first line of a file is a `Head`.
"""

import os
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

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


class Filters(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The filters of a run; without any, the tool traces all connections of the namespace."""

    pid: int | None = None
    """Only this process."""
    comm: str | None = None
    """Only processes of this name."""
    cgroups: list[int] = []
    """Only these cgroups: inodes of their cgroup v2 folders."""
    token: str | None = None
    """Only this connection: its local token, eight hexadecimal digits."""
    addr: str | None = None
    """Only subflows with this address, prefix, or address:port."""


class Head(Struct, frozen=True, kw_only=True):
    """The first line of a file."""

    schema: int = SCHEMA
    """Version of the lines."""
    trace: str
    """Name of the tool."""
    version: str = __version__
    """Version of mptcpd-ebpf that wrote the file."""
    started: datetime
    """When the run began (RFC 3339)."""
    epoch_ns: int
    """Nanoseconds to add to a line's `at` to get nanoseconds since 1970."""
    filters: Filters = Filters()
    """The filters of the run."""
    means: list[str] = []
    """The sources of the tool: BPF hooks, event groups, counters."""


def as_json(tool: str, line: AnyLine) -> bytes:
    """A line as JSON, without a line break."""
    return b'{"schema":%d,"trace":"%s",%s' % (
        SCHEMA,
        tool.encode(),
        msgspec.json.encode(line)[1:],
    )


def as_text(line: AnyLine, epoch_ns: int) -> str:
    """A line as text, with the local time of day if the line has a time."""
    if not line.has_time:
        return line.text()
    seconds, rest = divmod(line.at + epoch_ns, 1_000_000_000)
    clock = time.strftime("%H:%M:%S", time.localtime(seconds))
    return f"{clock}.{rest // 1000:06d}  {line.text()}"


def lines_of(tool: str) -> Any:
    """The union of a tool's line structs."""
    return import_module(f"mptcpd_ebpf.trace.lines.{tool}").LINES


def kinds_of(tool: str) -> list[str]:
    """The kinds of lines of a tool: values of ``event``."""
    return [str(kind.__struct_config__.tag) for kind in get_args(lines_of(tool))]


class LineFile:
    """A file that lines are written to, each with one system call.

    Nothing is buffered, so the file of a killed trace has every line that the trace printed.
    """

    def __init__(self, file: Path, tool: str, *, overwrite: bool = False) -> None:
        """Creates the file; only with `overwrite` it may exist already.  Raises `Failure`."""
        self._file = file
        self._tool = tool
        self._is_new = not overwrite
        self.has_head = False
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if overwrite else os.O_EXCL)
        try:
            self._descriptor = os.open(file, flags, 0o644)
        except FileExistsError:
            raise Failure(
                f"-o {file}: the file exists; name another one, or add --overwrite", ExitCode.USAGE
            ) from None
        except OSError as error:
            raise Failure(f"-o {file}: {error.strerror}", ExitCode.USAGE) from None

    def begin(self, head: Head) -> None:
        """Writes the head.  Raises `Failure`."""
        self.has_head = True
        self._write(msgspec.json.encode(head))

    def put(self, line: AnyLine) -> None:
        """Writes a line.  Raises `Failure`."""
        self._write(as_json(self._tool, line))

    def _write(self, line: bytes) -> None:
        left = line + b"\n"
        try:
            while left:  # a nearly full file system takes a part
                left = left[os.write(self._descriptor, left) :]
        except OSError as error:
            raise Failure(f"-o {self._file}: {error.strerror}", ExitCode.CHECK_FAILED) from None

    def close(self) -> None:
        """Closes the file, and removes a new one if nothing was written: the tool failed before."""
        os.close(self._descriptor)
        if self._is_new and not self.has_head:
            self._file.unlink(missing_ok=True)


def read(file: Path) -> tuple[Head, Iterator[AnyLine]]:
    """The head and the lines of a file.  Raises `Failure`, also during the iteration."""
    try:
        rows = file.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise Failure(f"{file}: {error.strerror}", ExitCode.USAGE) from None
    first = rows[0] if rows else b""
    try:
        known = msgspec.json.decode(first, type=_Version)
    except msgspec.DecodeError as error:
        raise _not_a_file(file, error) from None
    if known.schema != SCHEMA:
        raise Failure(
            f"{file}: it has schema {known.schema} and was written by version {known.version}; "
            f"this version, {__version__}, reads schema {SCHEMA}",
            ExitCode.USAGE,
        )
    try:
        head = msgspec.json.decode(first, type=Head)
    except msgspec.DecodeError as error:
        raise _not_a_file(file, error) from None
    if head.trace not in TOOLS:
        raise Failure(f"{file}:1: there is no tool 'trace {head.trace}'", ExitCode.USAGE)
    return head, _lines(file, head, rows[1:])


class _Version(Struct):
    """What the head of every schema has."""

    schema: int
    version: str


def _not_a_file(file: Path, error: Exception) -> Failure:
    return Failure(f"{file}:1: not a file of 'mptcpd-ebpf trace -o': {error}", ExitCode.USAGE)


def _lines(file: Path, head: Head, rows: Iterable[bytes]) -> Iterator[AnyLine]:
    decode = msgspec.json.Decoder(lines_of(head.trace)).decode
    for number, row in enumerate(rows, start=2):
        try:
            yield decode(row)
        except msgspec.DecodeError as error:
            if row.endswith(b"\n"):
                what = f"not a line of trace {head.trace}: {error}"
            else:
                what = "the last line is incomplete"
            raise Failure(f"{file}:{number}: {what}", ExitCode.CHECK_FAILED) from None
