# SPDX-License-Identifier: BSD-3-Clause
"""Attaches to kernel functions, each in the cheapest way that this kernel supports for it.

The ways in order (the programs are in bpf/trace_func.bpf.c):

``fentry``  (with ``fexit`` for the return) if the kernel's BTF has the function;
``kprobe``  (with ``kretprobe``) if it has not, or the kernel refuses the first;
``tp_btf``  a tracepoint inside the function, which sees calls but not their return.
"""

import errno
import struct
from dataclasses import dataclass, field
from pathlib import Path

from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure
from mptcpd_ebpf.trace.func_targets import MPTCP_TRACEPOINTS, Function, SubjectKind, subject
from mptcpd_ebpf.trace.lines.func import listed
from mptcpd_ebpf.trace.trace_programs import Refused, TracePrograms

WAYS = ("fentry", "kprobe", "tp_btf")
"""The cheapest first."""
SLOTS = 64  # of bpf/trace_func.bpf.c
_KPROBES = Path("/sys/bus/event_source/devices/kprobe/type")
_SLOT = struct.Struct("=BB")


@dataclass(frozen=True)
class Wanted:
    """What to trace of each call."""

    ends: bool
    """Duration and returned value."""
    records: bool
    """A record per call."""
    stacks: bool
    """The callers."""
    subjects: bool
    """Only functions with an argument that identifies the connection, because of a filter."""
    netns: int
    """Inode of the network namespace."""
    token: int | None
    """Only this connection."""
    only_way: str | None = None
    """The only one of `WAYS` to use."""


@dataclass
class Attached:
    """The traced functions by slot, and those that could not be traced."""

    kernel: TracePrograms
    functions: list[Function]
    ways: list[str]
    """``fentry``, ``kprobe`` or ``tp_btf``, by slot."""
    left_out: dict[str, str] = field(default_factory=dict)
    """The reason by function."""

    def subject(self, slot: int) -> tuple[SubjectKind, int]:
        return _subject(self.functions[slot], self.ways[slot])


def _subject(function: Function, way: str) -> tuple[SubjectKind, int]:
    prototype = function.seen_by(way)
    return (SubjectKind.NONE, 0) if prototype is None else subject(prototype)


class _Choice:
    """The ways that are left for each function, until the kernel accepts a set of them."""

    def __init__(self, functions: list[Function], wanted: Wanted) -> None:
        self._wanted = wanted
        self.left_out: dict[str, str] = {}
        self.kprobes = _KPROBES.exists()
        self.ways: dict[str, list[str]] = {}
        """By function, the cheapest first."""
        for function in functions:
            ways = []
            if function.prototype:
                ways.append("fentry")
            if self.kprobes and not _only_tracepoint(function):
                ways.append("kprobe")
            if function.tracepoint and not wanted.ends:
                ways.append("tp_btf")
            if wanted.only_way:
                ways = [way for way in ways if way == wanted.only_way]
            if wanted.subjects:
                ways = [way for way in ways if _subject(function, way)[0]]
            self.ways[function.name] = ways
            if not ways:
                self.left_out[function.name] = self._reason(function)

    def _reason(self, function: Function) -> str:
        """Why no way is left."""
        if self._wanted.ends and function.tracepoint and not function.prototype:
            return "only a tracepoint inside it can be traced, which does not show the return"
        if self._wanted.only_way:
            return f"{self._wanted.only_way} cannot trace it, and --attach excludes other ways"
        if self._wanted.subjects:
            return "no argument identifies the connection, which the filter needs"
        return "the kernel's BTF does not have it"

    def refuse(self, name: str, way: str, why: str) -> None:
        """Excludes one way for one function."""
        ways = self.ways[name]
        ways.remove(way)
        if not ways:
            self.left_out[name] = f"{way} refused: {why}"

    def refuse_all(self, way: str, why: str) -> None:
        for name, ways in self.ways.items():
            if way in ways:
                self.refuse(name, way, why)


def _only_tracepoint(function: Function) -> bool:
    """Whether the function is inlined, so that only its tracepoint is left."""
    return function.prototype is None and function.tracepoint is not None


def attach(pattern: str, functions: list[Function], wanted: Wanted) -> Attached:
    """Attaches to all functions that can be traced.  Raises Failure if none can, BpfUnavailable."""
    choice = _Choice(functions, wanted)
    while True:
        taken = [each for each in functions if choice.ways[each.name]]
        if not taken:
            raise _nothing_traced(pattern, choice, functions, wanted)
        # With too many functions, one is tried first to find out which ways the kernel supports.
        attached = _try(taken if len(taken) <= SLOTS else taken[:1], choice, wanted)
        if attached and len(taken) <= SLOTS:
            return attached
        if attached:
            attached.kernel.close()
            raise Failure(
                f"trace func {pattern}: {len(taken)} functions match and {SLOTS} can be traced "
                f"at once: narrow the pattern ({listed(each.name for each in taken)})",
                ExitCode.USAGE,
            )


def _try(taken: list[Function], choice: _Choice, wanted: Wanted) -> Attached | None:
    """One attempt; None if the kernel refused a way, which `choice` then excludes."""
    ways = [choice.ways[function.name][0] for function in taken]
    programs: dict[str, str] = {}
    for slot, (function, way) in enumerate(zip(taken, ways, strict=True)):
        if way == "fentry":
            programs[f"entry_{slot:02o}"] = function.name
            if wanted.ends:
                programs[f"exit_{slot:02o}"] = function.name
        elif way == "tp_btf":
            programs[f"point_{slot:02o}"] = function.name
    chosen = set(programs)
    if "kprobe" in ways:
        chosen |= {"called", "returned"} if wanted.ends else {"called"}
    subjects = [_subject(each, way) for each, way in zip(taken, ways, strict=True)]
    constants: dict[str, int | bytes] = {
        "own_netns": wanted.netns,
        "only_token": wanted.token or 0,
        "with_ends": wanted.ends,
        "with_records": wanted.records,
        "with_stacks": wanted.stacks,
        "slots": b"".join(_SLOT.pack(*each) for each in subjects),
    }
    try:
        kernel = TracePrograms("trace_func", chosen, constants, targets=programs)
    except Refused as refused:
        _exclude(refused, taken, choice)
        return None
    for program, why in kernel.not_attached.items():
        slot = int(program.rpartition("_")[2], 8)
        if ways[slot] in choice.ways[taken[slot].name]:  # entry and exit may both be refused
            choice.refuse(taken[slot].name, ways[slot], why)
    for slot, (function, way) in enumerate(zip(taken, ways, strict=True)):
        if way != "kprobe":
            continue
        try:
            if wanted.ends:
                kernel.attach_kprobe("returned", function.name, slot)
            kernel.attach_kprobe("called", function.name, slot)
        except OSError as error:
            choice.refuse(function.name, way, error.strerror or str(error))
    if all(choice.ways[each.name][:1] == [way] for each, way in zip(taken, ways, strict=True)):
        return Attached(kernel, taken, ways, choice.left_out)
    kernel.close()
    return None


def _exclude(refused: Refused, taken: list[Function], choice: _Choice) -> None:
    """Excludes the ways that the kernel refused.  Raises `refused` if it names no program."""
    excluded = False
    for program, why in refused.programs.items():
        kind, _, number = program.partition("_")
        if kind in ("called", "returned"):
            choice.refuse_all("kprobe", why)
            excluded = True
            continue
        way = "tp_btf" if kind == "point" else "fentry"
        if refused.errno == errno.EPERM:  # this kind of program, for any function
            choice.refuse_all(way, "Operation not permitted")
        elif way in choice.ways[taken[int(number, 8)].name]:
            choice.refuse(taken[int(number, 8)].name, way, why)
        excluded = True
    if not excluded:
        raise refused


def _nothing_traced(
    pattern: str, choice: _Choice, functions: list[Function], wanted: Wanted
) -> Failure:
    """The failure that says why no function can be traced, and what can."""
    text = f"trace func {pattern}: " + "; ".join(sorted(set(choice.left_out.values())))
    if not choice.kprobes:
        text += "; no kprobes either (CONFIG_KPROBES)"
    points = [each.name for each in functions if each.tracepoint]
    if points and wanted.ends:
        text += f". Without --latency, by their tracepoints: {listed(points)}"
    else:
        text += f". Functions with a tracepoint can be traced: {', '.join(MPTCP_TRACEPOINTS)}"
    return Failure(text, ExitCode.NO_MPTCP)
