# SPDX-License-Identifier: BSD-3-Clause
"""``trace func``: count, time, arguments or callers of any MPTCP kernel function.

BPF programs (bpf/trace_func.bpf.c) count the calls by function, connection and, on request, stack;
`func_attach` chooses how they attach.  An argument that leads to a socket identifies the
connection of a call.  A function without such an argument is counted for all namespaces, and left
out if filters are given.
"""

import bisect
import struct
from collections import Counter
from dataclasses import dataclass, field

from mptcpd_ebpf.core.names import name_of
from mptcpd_ebpf.core.token import token_text
from mptcpd_ebpf.probes.records import address
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure
from mptcpd_ebpf.trace.frame import Summary, Trace
from mptcpd_ebpf.trace.func_attach import Attached, Wanted, attach
from mptcpd_ebpf.trace.func_targets import MOST_ARGUMENTS, SYMBOLS, SubjectKind, Symbols, find
from mptcpd_ebpf.trace.lines.func import (
    CallLine,
    FunctionLine,
    NotCalledLine,
    NotTracedLine,
    Stack,
    Task,
)
from mptcpd_ebpf.trace.scope import Subject
from mptcpd_ebpf.trace.trace_programs import Record, TracePrograms

TOTAL_KEY = struct.Struct("=IiIIQ")  # struct func_key
_FRAMES = struct.Struct("=64Q")
_NO_STACK = -1
_STACKS_SHOWN = 5


@dataclass
class Calls:
    """The counts of one function."""

    calls: int = 0
    duration_ns: int = 0
    longest_ns: int = 0
    histogram: list[int] = field(default_factory=list)
    """Number of calls; slot n holds those that took 2^n to 2^(n+1) nanoseconds."""
    connections: Counter[int] = field(default_factory=Counter)
    """Calls by token; 0 counts those of no MPTCP connection, or of an unknown one."""
    stacks: Counter[int] = field(default_factory=Counter)
    """Calls by stack id."""

    def add(self, total: Record, token: int, stack: int) -> None:
        self.calls += total["calls"]
        self.duration_ns += total["duration_ns"]
        self.longest_ns = max(self.longest_ns, total["longest_ns"])
        before = self.histogram or [0] * len(total["histogram"])
        self.histogram = [a + b for a, b in zip(before, total["histogram"], strict=True)]
        self.connections[token] += total["calls"]
        if stack != _NO_STACK:
            self.stacks[stack] += total["calls"]


class Functions:
    """Reads the counts and records of the attached functions, and emits their lines."""

    def __init__(self, trace: Trace, attached: Attached, symbols: Symbols, wanted: Wanted) -> None:
        self._trace = trace
        self._attached = attached
        self._kernel = attached.kernel
        self._symbols = symbols
        self._wanted = wanted
        self._began = trace.now()

    def _subject(self, of: Record, token: int) -> Subject:
        return Subject(
            token=token or None,
            local=address(of["local_ip"], of["local_port"]),
            remote=address(of["remote_ip"], of["remote_port"]),
        )

    def _admits(self, slot: int, subject: Subject) -> bool:
        return self._attached.subject(slot)[0] == SubjectKind.NONE or self._trace.admits(subject)

    # --- a line per call

    def read(self) -> None:
        for record in self._kernel.read("func_record"):
            subject = self._subject(record, record["token"])
            if self._admits(record["slot"], subject):
                self._report(record, subject)

    def _report(self, record: Record, subject: Subject) -> None:
        slot = record["slot"]
        function, way = self._attached.functions[slot], self._attached.ways[slot]
        prototype = function.seen_by(way)
        parameters = prototype.parameters[:MOST_ARGUMENTS] if prototype else []
        given = list(zip(parameters, record["arguments"], strict=False))
        text = ", ".join(f"{each.name}={each.type.words(value)}" for each, value in given)
        if prototype is None:
            text = "?"
        elif len(prototype.parameters) > MOST_ARGUMENTS:
            text += ", …"
        result = prototype.result if self._wanted.ends and prototype else None
        if result is not None and result.size:
            text += f") = {result.words(record['returned'])}"
        else:
            text += ")"
        known = subject.local.port or subject.remote.port
        fields = subject.fields()
        self._trace.emit(
            CallLine(
                at=record["at"],
                **(fields if known else {**fields, "local": None, "remote": None}),
                function=function.name,
                shown=f"{function.name}({text}",
                arguments={each.name: each.type.plain(value) for each, value in given},
                types={each.name: each.type.text for each, _ in given},
                returned=result.plain(record["returned"]) if result and result.size else None,
                duration_ns=record["duration_ns"] if self._wanted.ends else None,
                task=Task(pid=record["pid"], comm=name_of(record["comm"])),
            )
        )

    # --- the summary

    def _counted(self) -> dict[int, Calls]:
        """The counts of the calls that pass the filters, by slot."""
        counted: dict[int, Calls] = {}
        for key, total in self._kernel.table("totals", TOTAL_KEY, "func_total").items():
            slot, stack, token, _, _ = key
            if self._admits(slot, self._subject(total, token)):
                counted.setdefault(slot, Calls()).add(total, token, stack)
        return counted

    def summary(self) -> None:
        seconds = (self._trace.now() - self._began) / 1e9
        counted = self._counted()
        for slot, calls in sorted(counted.items(), key=lambda each: -each[1].calls):
            self._emit(slot, calls, seconds)
        never = [f.name for i, f in enumerate(self._attached.functions) if i not in counted]
        if never:
            self._trace.emit(NotCalledLine(at=self._trace.now(), not_called=never))

    def _emit(self, slot: int, calls: Calls, seconds: float) -> None:
        function, way = self._attached.functions[slot], self._attached.ways[slot]
        stacks = [
            Stack(calls=count, frames=self._frames(stack, function.name))
            for stack, count in calls.stacks.most_common(_STACKS_SHOWN)
        ]
        self._trace.emit(
            FunctionLine(
                at=self._trace.now(),
                function=function.name,
                attach=way,
                all_namespaces=self._attached.subject(slot)[0] == SubjectKind.NONE,
                seconds=seconds,
                calls=calls.calls,
                connections={
                    token_text(token) if token else "none": count
                    for token, count in calls.connections.most_common()
                },
                duration_ns=calls.duration_ns if self._wanted.ends else None,
                longest_ns=calls.longest_ns if self._wanted.ends else None,
                histogram=calls.histogram if self._wanted.ends else None,
                stacks=stacks if self._wanted.stacks else [],
            )
        )

    def _frames(self, stack: int, name: str) -> list[str]:
        """The callers, the direct one first, without the frames of the tracing itself."""
        raw = self._kernel.lookup("stacks", stack.to_bytes(4, "little"))
        places = [place for place in _FRAMES.unpack(raw) if place] if raw else []
        names = [self._name(place) for place in places]
        bare = [each.partition("+")[0] for each in names]
        return names[bare.index(name) + 1 :] if name in bare else names

    def _name(self, place: int) -> str:
        after = bisect.bisect_right(self._symbols.places, (place, "\uffff"))
        if not after:
            return hex(place)
        start, name = self._symbols.places[after - 1]
        return f"{name}+{place - start:#x}"


def _emit_left_out(trace: Trace, left_out: dict[str, str]) -> None:
    """Emits a line per reason."""
    reasons: dict[str, list[str]] = {}
    for name, why in left_out.items():
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        trace.emit(NotTracedLine(at=trace.now(), functions=names, why=why))


def trace_func(
    trace: Trace,
    constants: dict[str, int],
    *,
    pattern: str,
    latency: bool,
    arguments: bool,
    stack: bool,
    only_way: str | None,
) -> Summary:
    """Raises Failure if no matching function can be traced, BpfUnavailable."""
    symbols = Symbols(SYMBOLS.read_text())
    functions = find(pattern, symbols)
    if not functions:
        raise Failure(
            f"trace func {pattern}: this kernel has no function of this name "
            "(a pattern with * ? [ matches only names that contain mptcp, subflow or msk)",
            ExitCode.USAGE,
        )
    wanted = Wanted(
        ends=latency,
        records=arguments,
        stacks=stack,
        subjects=trace.scope.is_restricted,
        netns=constants["own_netns"],
        token=trace.scope.token,
        only_way=only_way,
    )
    attached = attach(pattern, functions, wanted)
    kernel = trace.open(attached.kernel)
    ways = Counter(attached.ways)
    for way, count in sorted(ways.items()):
        trace.means.append(f"{_WAYS[way, latency]} ({count} functions)")
    if trace.scope.needs_owner:
        _learn_owners(trace, constants)
    _emit_left_out(trace, attached.left_out)
    traced = Functions(trace, attached, symbols, wanted)
    trace.watch(kernel, traced.read)
    return traced.summary


_WAYS = {
    ("fentry", False): "fentry",
    ("fentry", True): "fentry+fexit",
    ("kprobe", False): "kprobe",
    ("kprobe", True): "kprobe+kretprobe",
    ("tp_btf", False): "tp_btf",
}


def _learn_owners(trace: Trace, constants: dict[str, int]) -> None:
    """Learns the processes that open connections, for filters by process."""
    states = trace.open(TracePrograms("trace", ("state_changed",), constants))

    def read() -> None:
        for record in states.read("trace_record"):
            trace.directory.of_record(record)

    trace.directory.look()
    trace.watch(states, read)
