# SPDX-License-Identifier: BSD-3-Clause
"""Pairs the reports of paths: when a path was left, when it came back, and what moved meanwhile.

Pure functions.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mptcpd_ebpf.journal.entries import PathEntry

TOGETHER_S = 2.0
"""Paths of one interface that change so soon after each other change for one cause."""
_ACTIVE = "active"


class Change(NamedTuple):
    """A row of `paths`."""

    t: float
    plugin: str
    interface: str | None
    local_ip: str
    remote_ip: str
    state: str | None
    """None: not known any more."""
    reason: str


class Move(NamedTuple):
    """A subflow that was destroyed by a decision."""

    t: float
    token: str
    local_ip: str
    remote_ip: str


def incidents(
    changes: Iterable[Change], moves: Sequence[Move], run_starts: Sequence[float] = ()
) -> list[PathEntry]:
    """The times in which paths were not active, oldest first.

    `changes` in order of time.  A path of an earlier run has ended with it: the next daemon starts
    without its history.
    """
    held: dict[tuple[str, str], Change] = {}
    done: list[tuple[Change, Change | None]] = []
    starts = sorted(run_starts)

    def restart(until: float) -> None:
        while starts and starts[0] <= until:
            at = starts.pop(0)
            for begin in held.values():
                end = begin._replace(t=at, state=None, reason="the daemon was started again")
                done.append((begin, end))
            held.clear()

    for change in changes:
        restart(change.t)
        key = (change.local_ip, change.remote_ip)
        if key in held:
            done.append((held.pop(key), change))
        if change.state not in (None, _ACTIVE):
            held[key] = change
    restart(float("inf"))
    done += [(begin, None) for begin in held.values()]
    done.sort(key=lambda pair: pair[0].t)
    return _grouped(done, moves)


def _grouped(
    done: Iterable[tuple[Change, Change | None]], moves: Sequence[Move]
) -> list[PathEntry]:
    """One entry for all peers of an interface whose paths changed together."""
    groups: list[list[tuple[Change, Change | None]]] = []
    for begin, end in done:
        for group in reversed(groups):
            first, last = group[0]
            if begin.t - first.t > TOGETHER_S:
                group = []
                break
            same_end = (end is None) == (last is None) and (
                end is None or last is None or abs(end.t - last.t) <= TOGETHER_S
            )
            if same_end and (first.local_ip, first.state) == (begin.local_ip, begin.state):
                group.append((begin, end))
                break
        else:
            group = []
        if not group:
            groups.append([(begin, end)])
    return [_entry(group, moves) for group in groups]


def _entry(group: list[tuple[Change, Change | None]], moves: Sequence[Move]) -> PathEntry:
    begin = group[0][0]
    ends = [end for _, end in group if end is not None]
    end = max(ends) if ends else None
    peers = [each.remote_ip for each, _ in group]
    moved: dict[str, float] = {}
    for move in moves:
        if (
            move.local_ip == begin.local_ip
            and move.remote_ip in peers
            and begin.t - TOGETHER_S <= move.t
            and (end is None or move.t <= end.t)
        ):
            moved.setdefault(move.token, move.t)
    return PathEntry(
        t=begin.t,
        interface=begin.interface,
        local_ip=begin.local_ip,
        peers=peers,
        state=begin.state or "",
        reason=begin.reason,
        plugin=begin.plugin,
        ended=end.t if end is not None else None,
        recovered=end.state is not None if end is not None else None,
        ended_reason=end.reason if end is not None else None,
        lasted_s=round(end.t - begin.t, 3) if end is not None else None,
        connections_moved=len(moved),
        moved_s=round(max(moved.values()) - min(begin.t, *moved.values()), 3) if moved else None,
    )
