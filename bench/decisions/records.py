# SPDX-License-Identifier: BSD-3-Clause
"""Raw results: one JSON line for each run of an arm in a cell."""

import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from mptcpd_ebpf.control.schema import SCHEMA

TREE = Path(__file__).resolve().parents[2]
FOLDER = TREE / "build" / "bench-decisions"
_MEASURED = ("mptcpd_ebpf", "plugins", "bpf")
"""What a run measures."""


Key = tuple[str, str, str, int, float]
"""Commit, cell, arm, repetition, and length of the traffic in seconds."""


class Act(Struct, frozen=True, kw_only=True):
    """A decision about a subflow that was carried out, routine trials excluded."""

    at_ms: float
    """Milliseconds since the start of the traffic."""
    action: str
    """``CreateSubflow``, ``DestroySubflow`` or ``SetBackup``."""
    path: int
    backup: bool = False
    """Of CreateSubflow and SetBackup."""
    server: bool = False
    """The server's daemon made it."""
    reason: str = ""


class Switch(Struct, frozen=True):
    """A path goes out of use, or comes back."""

    at_ms: float
    path: int
    leaves: bool

    def moves(self, path: int) -> bool:
        """Whether it takes data off a path: from it, or to another one."""
        return self.leaves if self.path == path else not self.leaves


def switches(acts: list[Act]) -> list[Switch]:
    """The changes of which paths are in use; the connections start on path 0.

    A path is in use while it has a regular subflow.  The end of an unanswered join of a path that
    is out of use is no change.
    """
    in_use = {0}
    left: set[int] = set()
    found: list[Switch] = []
    for act in acts:
        leaves = act.action == "DestroySubflow" or act.backup
        if leaves and act.path in in_use:
            in_use.remove(act.path)
            left.add(act.path)
            found.append(Switch(act.at_ms, act.path, leaves=True))
        elif not leaves and act.path not in in_use:
            in_use.add(act.path)
            # The first join of a path is no return.
            if act.action == "SetBackup" or act.path in left:
                found.append(Switch(act.at_ms, act.path, leaves=False))
    return found


class Flow(Struct, frozen=True, kw_only=True):
    """One workload's outcome."""

    mbit: float | None = None
    """Goodput of a transfer, Mbit/s."""
    latencies: list[tuple[float, float | None]] = []
    """Of each message: milliseconds from the start to its sending, and its latency in
    milliseconds, None if it never arrived."""


class Alone(Struct, frozen=True, kw_only=True):
    """The outcome on one path alone."""

    path: int
    flows: list[Flow]


class Run(Struct, frozen=True, kw_only=True):
    """One run.  `error` says why it has no outcome."""

    schema: int = SCHEMA
    commit: str
    part: str
    cell: str
    arm: str
    repetition: int
    length_s: float
    """Of the traffic, seconds."""
    seed: int
    at: str
    """UTC."""
    load: float

    """Load average over a minute, before the run."""
    flows: list[Flow] = []
    alone: list[Alone] = []
    """Instead of `flows`, of the arm "alone"."""
    faults_ms: list[float] = []
    """When each step of the faults was taken, milliseconds since the start of the traffic."""
    acts: list[Act] = []
    error: str | None = None

    @property
    def key(self) -> Key:
        return (self.commit, self.cell, self.arm, self.repetition, self.length_s)


class Records:
    """The file of results; a later record replaces an earlier one with the same key."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> Iterator[Run]:
        if not self._file.exists():
            return
        newest: dict[Key, Run] = {}
        for line in self._file.read_bytes().splitlines():
            # The last line is cut short if the run was killed while it wrote.
            try:
                run = msgspec.json.decode(line, type=Run)
            except msgspec.DecodeError:
                continue
            newest[run.key] = run
        yield from newest.values()

    def add(self, run: Run) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("ab") as out:
            out.write(msgspec.json.encode(run) + b"\n")


def comparable(runs: Iterable[Run]) -> list[Run]:
    """Of each cell, the runs of one commit and one length: of those with the most, the newest."""
    groups: dict[str, dict[tuple[str, float], list[Run]]] = {}
    for run in runs:
        by_kind = groups.setdefault(run.cell, {})
        by_kind.setdefault((run.commit, run.length_s), []).append(run)
    return [
        run
        for by_kind in groups.values()
        for run in max(by_kind.values(), key=lambda group: (len(group), group[-1].at))
    ]


def commit() -> str:
    """The newest commit that changed what is measured, with a hash of uncommitted changes."""

    def git(*words: str, text: str | None = None) -> str:
        done = subprocess.run(
            ["git", "-C", str(TREE), *words], input=text, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        name = git("log", "-1", "--abbrev=12", "--format=%h", "--", *_MEASURED)
        changes = git("diff", "HEAD", "--", *_MEASURED)
        return f"{name}+{git('hash-object', '--stdin', text=changes)[:8]}" if changes else name
    except (OSError, subprocess.CalledProcessError):
        return "no-git"
