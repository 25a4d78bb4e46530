# SPDX-License-Identifier: BSD-3-Clause
"""Lines of ``trace func``."""

from collections.abc import Iterable
from typing import Any

from msgspec import Struct

from mptcpd_ebpf.trace import words
from mptcpd_ebpf.trace.lines.base import AccountLine, Line, StartedLine, SubflowLine, SummaryLine
from mptcpd_ebpf.trace.lines.histograms import bars, quantile

_NAMED = 6
_CONNECTIONS_SHOWN = 10


class Task(Struct, frozen=True, kw_only=True):
    """The task that ran a function."""

    pid: int
    """Its process."""
    comm: str
    """Name of the task, at most 15 bytes."""


class CallLine(SubflowLine, frozen=True):
    """A call of a function."""

    function: str
    """Name of the kernel function."""
    shown: str
    """The call in C notation: ``mptcp_sendmsg(len=20) = 20``."""
    arguments: dict[str, Any]
    """Values by parameter; pointers as hexadecimal text."""
    types: dict[str, str]
    """C types by parameter."""
    returned: Any
    """The value that it returned; null if there is none or returns are not traced."""
    duration_ns: int | None
    """Nanoseconds that the call took; null if returns are not traced."""
    task: Task
    """The task that made the call."""

    def text(self) -> str:
        took = "" if self.duration_ns is None else f"  {words.duration(self.duration_ns)}"
        subflow = "" if self.local is None else f"  {self.shown_subflow}"
        return (
            f"{self.shown_token:<8}  {self.shown}{took}{subflow}  "
            f"on {self.task.comm}[{self.task.pid}]"
        )


class NotTracedLine(Line, frozen=True, tag="not_traced"):
    """Functions that match the pattern and cannot be traced."""

    functions: list[str]
    """Their names."""
    why: str
    """The reason, the same for all of them."""

    def text(self) -> str:
        return f"not traced: {listed(self.functions)}: {self.why}"


class Stack(Struct, frozen=True, kw_only=True):
    """A stack from which a function was called."""

    calls: int
    """Number of calls."""
    frames: list[str]
    """``function+offset``, the caller first."""


class FunctionLine(SummaryLine, frozen=True, tag="summary"):
    """The calls of one function during the run."""

    function: str
    """Name of the kernel function."""
    attach: str
    """How it was traced: ``fentry``, ``kprobe`` or ``tp_btf``."""
    all_namespaces: bool
    """Whether the calls of all network namespaces are counted, because no argument leads to one."""
    seconds: float
    """Duration of the run, seconds."""
    calls: int
    """Number of calls."""
    connections: dict[str, int]
    """Calls by token, the most first; ``none`` counts those that belong to no connection."""
    duration_ns: int | None = None
    """Sum over all calls, nanoseconds; null if returns are not traced."""
    longest_ns: int | None = None
    """The longest call, nanoseconds."""
    histogram: list[int] | None = None
    """Number of calls; slot i holds those that took 2^i to 2^(i+1) nanoseconds."""
    stacks: list[Stack] = []
    """The five most frequent stacks, the most frequent first."""

    def text(self) -> str:
        where = f"{self.attach}, all namespaces" if self.all_namespaces else self.attach
        rate = self.calls / self.seconds
        lines = [f"{self.calls:9}  {rate:9.1f} per s  {self.function}  ({where})"]
        if self.histogram is not None:
            mean = (self.duration_ns or 0) // self.calls
            lines.append(
                f"           mean {words.duration(mean)}, longest "
                f"{words.duration(self.longest_ns or 0)}, half below "
                f"{words.duration(quantile(self.histogram, 0.5))}, 99 % below "
                f"{words.duration(quantile(self.histogram, 0.99))}"
            )
            lines += [f"           {bar}" for bar in latency_bars(self.histogram)]
        if not self.all_namespaces:
            shown = list(self.connections.items())[:_CONNECTIONS_SHOWN]
            by = ", ".join(f"{token} {count}" for token, count in shown)
            lines.append(f"           by connection: {by}")
        for stack in self.stacks:
            lines.append(f"           {stack.calls} times from")
            lines += [f"               {frame}" for frame in stack.frames]
        return "\n".join(lines)


class NotCalledLine(SummaryLine, frozen=True, tag="not_called"):
    """Functions that were traced and not called."""

    not_called: list[str]
    """Their names."""

    def text(self) -> str:
        return f"not called: {listed(self.not_called)}"


def latency_bars(histogram: list[int]) -> list[str]:
    """A histogram of nanoseconds as text."""

    def bounds(low: int, high: int) -> str:
        return f"{words.duration(low):>9} … {words.duration(high):<9}"

    return [bar.rstrip() for bar in bars(histogram, bounds)]


def listed(names: Iterable[str]) -> str:
    """The first six names, and the number of the others."""
    every = list(names)
    more = f" and {len(every) - _NAMED} more" if len(every) > _NAMED else ""
    return ", ".join(every[:_NAMED]) + more


LINES = StartedLine | CallLine | NotTracedLine | FunctionLine | NotCalledLine | AccountLine
