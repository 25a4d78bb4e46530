# SPDX-License-Identifier: BSD-3-Clause
"""What all trace lines share.

A line is a struct.  Its text for people and its JSON come from the same members, so a file of
JSON lines can be shown later as the tool would have shown it.  Members have the units in their
names: ``_ns`` nanoseconds, ``_us`` microseconds, ``bytes_`` bytes; the rest are counts.  A value
that is not known is null.
"""

from msgspec import Struct

SCHEMA = 2
"""Raised whenever a member changes its name, its type or its meaning."""


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
        """For people: one line, or several of which all but the first are indented."""
        raise NotImplementedError


class SummaryLine(Line, frozen=True):
    """A line about the whole run, or about something that exists."""

    @property
    def has_time(self) -> bool:
        return False


class SubflowFields(Struct, frozen=True, kw_only=True):
    """Which subflow, as far as it is known."""

    token: str | None
    """The connection's local token, eight hexadecimal digits."""
    local: str | None = None
    """Address and port, ``10.0.0.1:80`` or ``[2001:db8::1]:80``."""
    remote: str | None = None
    local_id: int | None = None
    remote_id: int | None = None
    initial: bool | None = None
    """It was opened with MP_CAPABLE, and not with MP_JOIN."""
    pid: int | None = None
    """Of the process that opened the connection; on a server, of the listener's owner."""
    comm: str | None = None

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
    """One line about a subflow."""

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
    """What follows the first line of a text."""
    return "".join(f"\n    {line}" for line in lines)


def counted(counts: dict[str, int]) -> str:
    """Counts, one on each line below the first, the most frequent first."""
    return "".join(f"\n  {count:5}  {name}" for name, count in counts.items())


class StartedLine(Line, frozen=True):
    """The tool watches from now on."""

    tool: str
    netns: int
    """Inode of the network namespace."""
    means: list[str]
    """How the tool sees: hooks, filters, counters."""
    duration_s: float | None
    """None: until it is interrupted."""

    def text(self) -> str:
        end = "Ctrl-C ends it" if self.duration_s is None else f"{self.duration_s:g} s"
        means = ", ".join(self.means)
        return f"tracing {self.tool} in namespace {self.netns} by {means}; {end}"


class Overhead(Struct, frozen=True, kw_only=True):
    """What the BPF programs of a run cost, as the kernel measures it."""

    events: int
    """How often they ran."""
    ns_per_event: int
    cpu_percent: float
    """Of one processor."""


class AccountLine(SummaryLine, frozen=True):
    """The last line: what the run lost and what it cost."""

    lost: dict[str, int]
    """Records that were lost, by cause; empty if none was."""
    overhead: Overhead

    def text(self) -> str:
        lost = ", ".join(f"{count} {name}" for name, count in self.lost.items()) or "nothing"
        cost = self.overhead
        return (
            f"lost: {lost}; overhead: {cost.events} events, {cost.ns_per_event} ns each, "
            f"{cost.cpu_percent:.3f} % of one CPU"
        )
