# SPDX-License-Identifier: BSD-3-Clause
"""What all trace lines share.

A line is a struct.  Its text and its JSON come from the same members, so `trace show` prints a
file of JSON lines as the tool printed them.  Names of members end with their unit (``_ns``
nanoseconds, ``_us`` microseconds, ``_s`` seconds), and every member has a docstring, from which
docs/trace-lines.md and the JSON Schema are made.  An unknown value is None, null in JSON.
"""

from msgspec import Struct

SCHEMA = 2
"""The version of all lines, increased when a member changes its name, its type or its meaning."""


def _tag(name: str) -> str:
    """``AddressLine`` as ``address``."""
    return name.removesuffix("Line").lower()


class Line(Struct, frozen=True, kw_only=True, tag_field="event", tag=_tag):
    """One line of a tool."""

    at: int
    """CLOCK_MONOTONIC nanoseconds."""

    @property
    def has_time(self) -> bool:
        """Whether the text begins with the time of day; a summary's does not."""
        return True

    def text(self) -> str:
        """The line as text; may span several lines."""
        raise NotImplementedError


class SummaryLine(Line, frozen=True):
    """A line about the whole run, or about an object that exists."""

    @property
    def has_time(self) -> bool:
        return False


class SubflowFields(Struct, frozen=True, kw_only=True):
    """The subflow that a line is about, as far as it is known."""

    token: str | None
    """The connection's local token, eight hexadecimal digits."""
    local: str | None = None
    """This host's address and port, ``10.0.0.1:80`` or ``[2001:db8::1]:80``."""
    remote: str | None = None
    """The peer's address and port."""
    local_id: int | None = None
    """Address id of `local`, 0 to 255."""
    remote_id: int | None = None
    """Address id of `remote`, 0 to 255."""
    initial: bool | None = None
    """Whether it was opened with MP_CAPABLE rather than MP_JOIN."""
    pid: int | None = None
    """The process that opened the connection; on a server, the one that opened the listener."""
    comm: str | None = None
    """Name of that process, at most 15 bytes."""

    @property
    def shown_token(self) -> str:
        return self.token or "token ?"

    @property
    def shown_subflow(self) -> str:
        return f"{self.local} → {self.remote}"

    @property
    def shown_owner(self) -> str:
        return shown_owner(self.pid, self.comm)


class SubflowLine(SubflowFields, frozen=True, kw_only=True, tag_field="event", tag=_tag):
    """A line about a subflow."""

    at: int
    """CLOCK_MONOTONIC nanoseconds."""

    @property
    def has_time(self) -> bool:
        return True

    def text(self) -> str:
        raise NotImplementedError


AnyLine = Line | SubflowLine


def shown_owner(pid: int | None, comm: str | None) -> str:
    """``python3[4711]``."""
    return "process unknown" if pid is None else f"{comm or '?'}[{pid}]"


def indented(lines: list[str]) -> str:
    """Lines to append to a text, indented."""
    return "".join(f"\n    {line}" for line in lines)


def counted(counts: dict[str, int]) -> str:
    """Counts to append to a text, one on each line, in the given order."""
    return "".join(f"\n  {count:5}  {name}" for name, count in counts.items())


class StartedLine(Line, frozen=True):
    """The first line: the tool is attached and traces from now on."""

    tool: str
    """Name of the tool."""
    netns: int
    """Inode of the network namespace."""
    means: list[str]
    """The sources of the tool: BPF hooks, event groups, counters."""
    duration_s: float | None
    """Seconds that the run takes; null: until it is interrupted."""

    def text(self) -> str:
        end = "Ctrl-C ends it" if self.duration_s is None else f"{self.duration_s:g} s"
        means = ", ".join(self.means)
        return f"tracing {self.tool} in namespace {self.netns} by {means}; {end}"


class Overhead(Struct, frozen=True, kw_only=True):
    """Cost of a run's BPF programs, as the kernel measures it."""

    events: int
    """Number of times that they ran."""
    ns_per_event: int
    """Mean run time, nanoseconds."""
    cpu_percent: float
    """Run time in percent of one CPU."""


class AccountLine(SummaryLine, frozen=True):
    """The last line: what the run lost and what it cost."""

    lost: dict[str, int]
    """Number of lost records by cause; empty if none was lost."""
    overhead: Overhead
    """Cost of the BPF programs."""

    def text(self) -> str:
        lost = ", ".join(f"{count} {name}" for name, count in self.lost.items()) or "nothing"
        cost = self.overhead
        return (
            f"lost: {lost}; overhead: {cost.events} events, {cost.ns_per_event} ns each, "
            f"{cost.cpu_percent:.3f} % of one CPU"
        )
