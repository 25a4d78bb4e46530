# SPDX-License-Identifier: BSD-3-Clause
"""Replays a recording with another configuration, to see what would have been decided.

An open loop: the events are those that the recorded decisions led to, so only the first decision
that differs is certain; what follows shows the tendency.  Answers of the kernel reach the equal
command of the rehearsal; a command that the recorded run did not send counts as carried out, and a
path probe as not answered.  Probes of one path are equal whatever their size.  A plugin that fails
is excluded, as by the daemon.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from msgspec.structs import replace

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.commands import (
    ActingCommand,
    AnyCommand,
    Decision,
    ProbePath,
)
from mptcpd_ebpf.core.engine import Engine
from mptcpd_ebpf.core.model import World
from mptcpd_ebpf.core.plugin_host import Fault, MakePlugin
from mptcpd_ebpf.core.recording import Record

ANSWERED = 100
"""Commands of one event, not sent in the recorded run, that are answered; a plugin that sends one
more at each answer would go on forever."""

Change = Callable[[ev.Configured], ev.Configured]


class Step(NamedTuple):
    """One recorded event, with the decisions of both runs."""

    record: Record
    decided: list[Decision]
    """By the changed configuration."""
    only_recorded: list[Decision]
    only_rehearsed: list[Decision]
    """Decisions without an equal one in the other run, without routine."""
    equal: int
    """How many decisions, without routine, are in both."""
    faults: list[Fault]
    """Of plugins of the changed configuration."""
    world: World
    """After the event; the same in both runs."""


def rehearse(records: Iterable[Record], make: MakePlugin, change: Change) -> Iterator[Step]:
    """Each record with what differs when `change` is applied to every configuration."""
    engine = Engine(make)
    recorded: dict[int, Decision] = {}
    waiting: dict[AnyCommand, list[int]] = {}
    for record in records:
        for decision in record.decisions:
            recorded[decision.id] = decision
        event = record.event
        if isinstance(event, ev.PluginExcluded):
            continue  # another plugin, or another configuration of it, has not failed
        if isinstance(event, ev.Configured):
            event = change(event)
        elif isinstance(event, ev.CommandAnswered | ev.PathProbed):
            answered = recorded.get(event.decision_id)
            if answered is None or not (ids := waiting.get(_bare(answered.command))):
                continue
            event = replace(event, decision_id=ids[0])
            if not _is_sent_probe(event, answered):
                del ids[0], recorded[answered.id]
        outcome = engine.handle(event, record.now)
        decided, faults = list(outcome.decisions), list(outcome.faults)
        theirs, ours = _differences(record.decisions, decided)
        answered_now = 0
        for decision in decided:  # grows
            if decision.refused is not None:
                continue
            if isinstance(decision.command, ProbePath):
                # One that was not answered waits no more.
                waiting[_bare(decision.command)] = [decision.id]
            if not isinstance(decision.command, ActingCommand):
                continue
            if decision not in ours:
                waiting.setdefault(_bare(decision.command), []).append(decision.id)
            elif answered_now < ANSWERED:
                answered_now += 1
                answer = ev.CommandAnswered(decision_id=decision.id)
                outcome = engine.handle(answer, record.now)
                decided += outcome.decisions
                ours += outcome.decisions
                faults += outcome.faults
        for fault in faults:
            engine.handle(_excluded(fault), record.now)
        equal = len(_telling(record.decisions)) - len(_telling(theirs))
        yield Step(record, decided, _telling(theirs), _telling(ours), equal, faults, engine.world)


def _excluded(fault: Fault) -> ev.PluginExcluded:
    return ev.PluginExcluded(
        plugin=fault.plugin, handler=fault.handler, error=fault.error, call=fault.call
    )


def _is_sent_probe(event: ev.Event, answered: Decision) -> bool:
    """Whether the result of a path probe is still to come."""
    return isinstance(event, ev.CommandAnswered) and isinstance(answered.command, ProbePath)


def _bare(command: AnyCommand) -> AnyCommand:
    """A command without its reason, whose numbers depend on the moment.

    A path probe also without its size, which alternates, so that another number of probes gets the
    answers of those on the same path.
    """
    if isinstance(command, ProbePath):
        return replace(command, reason="", full_size=False, within=1)
    return replace(command, reason="")


def _differences(
    recorded: list[Decision], decided: list[Decision]
) -> tuple[list[Decision], list[Decision]]:
    unmatched = list(decided)
    only_recorded = []
    for each in recorded:
        equal = next(
            (
                other
                for other in unmatched
                if _bare(other.command) == _bare(each.command)
                and (other.refused is None) == (each.refused is None)
            ),
            None,
        )
        if equal is None:
            only_recorded.append(each)
        else:
            unmatched.remove(equal)
    return only_recorded, unmatched


def _telling(decisions: list[Decision]) -> list[Decision]:
    return [
        each
        for each in decisions
        if isinstance(each.command, ActingCommand) and not each.command.routine
    ]
