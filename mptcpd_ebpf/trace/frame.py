# SPDX-License-Identifier: BSD-3-Clause
"""What all trace tools share: the loop, the output, and the end of a run.

A tool is a function that opens its sources, registers them with the `Trace` and returns a
function that emits the summary.  The trace then waits on the sources until the time is over or
SIGINT or SIGTERM arrives, reads the remaining records, calls the summary, and reports what was
lost and what the tracing cost.  A signal that arrives while the sources are opened ends the run
as soon as they are open: an exception raised in a callback from libbpf would be lost.

Data flows one way: the tool emits a struct of `trace.lines`, which goes to the file of ``-o`` as
JSON, and to stdout as text or, with ``--json``, as JSON (`line_file`).
"""

import selectors
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, Self, TextIO, TypeVar

from mptcpd_ebpf.core.token import token_text
from mptcpd_ebpf.kernel import counters
from mptcpd_ebpf.probes import BpfUnavailable
from mptcpd_ebpf.runtime import netns
from mptcpd_ebpf.runtime.signals import PendingSignals
from mptcpd_ebpf.trace import line_file
from mptcpd_ebpf.trace.lines.base import AccountLine, AnyLine, Overhead, StartedLine
from mptcpd_ebpf.trace.scope import Directory, Scope, Subject
from mptcpd_ebpf.trace.trace_programs import Cost, TracePrograms

Summary = Callable[[], None]


class TraceSource(Protocol):
    """A source of records that has a cost in the kernel and may lose records."""

    def cost(self) -> Cost: ...

    @property
    def lost(self) -> dict[str, int]: ...

    def close(self) -> None: ...


class Readable(Protocol):
    def fileno(self) -> int: ...


S = TypeVar("S", bound=TraceSource)


class Trace:
    """One run of one tool.  A context manager that catches signals and closes its sources."""

    def __init__(
        self,
        tool: str,
        scope: Scope,
        *,
        as_json: bool = False,
        out: TextIO | None = None,
        file: Path | None = None,
        overwrite: bool = False,
    ) -> None:
        """`file`: also write the lines to it; it must not exist unless `overwrite` is set.

        Raises `Failure`.
        """
        self.tool = tool
        self.scope = scope
        self.directory = Directory()
        self.began = time.monotonic_ns()
        self.means: list[str] = []
        """The tool's sources, for the first line: BPF hooks, event groups, counters."""
        self._json = as_json
        self._out = out or sys.stdout
        self._sources: list[TraceSource] = []
        self._readers: list[tuple[Readable, Callable[[], None]]] = []
        self._timers: list[list[Any]] = []
        self._stack = ExitStack()
        self._before = counters.read()
        self.epoch_ns = time.time_ns() - self.began
        self._file: line_file.LineFile | None = None
        if file is not None:
            self._file = line_file.LineFile(file, tool, overwrite=overwrite)
            self._stack.callback(self._file.close)

    def __enter__(self) -> Self:
        self._stopped = self._stack.enter_context(PendingSignals(signal.SIGINT, signal.SIGTERM))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # --- for the tool

    def open(self, source: S) -> S:
        """Takes ownership of a source: its cost and losses are reported, and it is closed."""
        self._sources.append(source)
        self._stack.callback(source.close)
        return source

    def watch(self, readable: Readable, read: Callable[[], None]) -> None:
        """Calls `read` whenever `readable` has data."""
        self._readers.append((readable, read))

    def every(self, seconds: float, call: Callable[[], None]) -> None:
        """Calls `call` periodically."""
        self._timers.append([time.monotonic() + seconds, seconds, call])

    def admits(self, subject: Subject) -> bool:
        """Whether a subflow passes the filters; its process is looked up if one needs it."""
        if self.scope.needs_owner:
            self.directory.find_owner(subject)
        return self.scope.admits(subject)

    @staticmethod
    def now() -> int:
        """CLOCK_MONOTONIC, nanoseconds: the clock of all records."""
        return time.monotonic_ns()

    def counted(self) -> dict[str, int]:
        """Increments of the MPTcpExt counters since the trace began, without zeros."""
        now = counters.read()
        moved = {name: value - self._before.get(name, 0) for name, value in now.items()}
        return {name: value for name, value in moved.items() if value}

    def emit(self, line: AnyLine) -> None:
        """Writes a line to the file, if there is one, and prints it.  Raises `Failure`."""
        if self._file is not None:
            if not self._file.has_head:
                self._file.begin(self._head())
            self._file.put(line)
        if self._json:
            print(line_file.as_json(self.tool, line).decode(), file=self._out, flush=True)
        else:
            print(line_file.as_text(line, self.epoch_ns), file=self._out, flush=True)

    def _head(self) -> line_file.Head:
        scope = self.scope
        filters = line_file.Filters(
            pid=scope.pid,
            comm=scope.comm,
            cgroups=sorted(scope.cgroups),
            token=None if scope.token is None else token_text(scope.token),
            addr=None if scope.address is None else str(scope.address),
        )
        return line_file.Head(
            trace=self.tool,
            started=datetime.fromtimestamp((self.began + self.epoch_ns) / 1e9, UTC),
            epoch_ns=self.epoch_ns,
            filters=filters,
            means=self.means,
        )

    # --- the run

    def run(self, seconds: float | None, summary: Summary) -> None:
        """Reads until the time is over or a signal arrives, then emits the summary."""
        if self.scope.needs_owner:
            self._learn_owners()
        self.emit(
            StartedLine(
                at=self.now(),
                tool=self.tool,
                netns=netns.inode(),
                means=self.means,
                duration_s=seconds,
            )
        )
        self._loop(None if seconds is None else time.monotonic() + seconds)
        for _, read in self._readers:
            read()
        summary()
        self._account()

    def _learn_owners(self) -> None:
        """Learns the processes of connections now, and when a connection is opened: a process may
        have ended when its first line is due."""
        self.directory.look()
        try:
            constants = {"own_netns": netns.inode()}
            kernel = self.open(TracePrograms("trace", ("state_changed",), constants))
        except BpfUnavailable:  # then processes are only looked up
            return
        self.directory.look()

        def read() -> None:
            for record in kernel.read("trace_record"):
                self.directory.of_record(record)

        self.watch(kernel, read)

    def _loop(self, end: float | None) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._stopped, selectors.EVENT_READ)
            for readable, read in self._readers:
                selector.register(readable.fileno(), selectors.EVENT_READ, read)
            while end is None or time.monotonic() < end:
                deadlines = [timer[0] for timer in self._timers]
                if end is not None:
                    deadlines.append(end)
                wait = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
                for key, _ in selector.select(wait):
                    if key.data is None:
                        return
                    key.data()
                for timer in self._timers:
                    if timer[0] <= time.monotonic():
                        timer[0] = time.monotonic() + timer[1]
                        timer[2]()

    def _account(self) -> None:
        lost = {
            name: count for source in self._sources for name, count in source.lost.items() if count
        }
        costs = [source.cost() for source in self._sources]
        calls = sum(cost.calls for cost in costs)
        spent = sum(cost.nanoseconds for cost in costs)
        overhead = Overhead(
            events=calls,
            ns_per_event=round(spent / calls) if calls else 0,
            cpu_percent=100 * spent / max(1, self.now() - self.began),
        )
        self.emit(AccountLine(at=self.now(), lost=lost, overhead=overhead))
