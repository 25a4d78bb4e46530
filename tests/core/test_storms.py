# SPDX-License-Identifier: BSD-3-Clause
"""Any events in any order, with any plugin: invariants hold."""

from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.commands import (
    Command,
    DestroySubflow,
    SetBackup,
    WakeAt,
    WithdrawAddress,
)
from mptcpd_ebpf.core.engine import Engine, Outcome
from mptcpd_ebpf.core.model import Subflow, World
from mptcpd_ebpf.core.pairing import GRACE
from mptcpd_ebpf.core.plugin import Context, Plugin
from tests.core.scenario import MS, START, StartedEngine, leftovers
from tests.core.storms import EVENTS

TIMED = st.lists(st.tuples(EVENTS, st.sampled_from([0, 0, 0, MS, GRACE // 2, GRACE])), max_size=80)


def _rage(_plugin: Plugin, ctx: Context, *_args: Any) -> Iterator[Command]:
    chance = ctx.random
    for connection in ctx.world.connections.values():
        yield WithdrawAddress(token=connection.token, address_id=chance.randrange(4), reason="rage")
        for local, remote in connection.subflows:
            kind = chance.randrange(3)
            names: Any = {"token": connection.token, "local": local, "remote": remote}
            if kind:
                yield DestroySubflow(**names, reason="rage")
            if kind != 1:
                yield SetBackup(**names, backup=chance.random() < 0.8, reason="rage")
    yield WakeAt(at=ctx.now, reason="rage on")


RAGE: Any = _rage
"""It accepts the arguments of every handler."""


class Vandal(Plugin):
    """Destroys subflows on every notice, existing ones and others."""

    name = "vandal"
    new_connection = connection_established = connection_closed = RAGE
    new_subflow = subflow_closed = subflow_priority = alarm = sampled = wake = RAGE
    new_interface = update_interface = answered = RAGE


RATES = st.sampled_from([0, 2, 10**6])
"""Destructive commands a second for which no measurement calls."""


def vandalised(rate: int) -> Engine:
    return StartedEngine(Vandal(), default_plugin=Vandal.name, destructive_per_second=rate)


def let_through(outcome: Outcome) -> list[Command]:
    return [decision.command for decision in outcome.decisions if decision.refused is None]


def usable(world: World, token: int) -> list[Subflow]:
    connection = world.connections.get(token)
    return connection.usable_subflows() if connection else []


@given(TIMED, RATES)
def test_no_connection_loses_its_last_usable_subflow_to_us(
    storm: list[tuple[ev.Event, int]], rate: int
) -> None:
    """The kernel's view: all commands of one event are carried out."""
    engine, now = vandalised(rate), START
    for event, pause in storm:
        now += pause
        commands = let_through(engine.handle(event, now))
        for token in {getattr(command, "token", 0) for command in commands}:
            before = usable(engine.world, token)
            gone = [s for s in before if any(takes(command, s) for command in commands)]
            assert not gone or len(gone) < len(before), (commands, before)


def takes(command: Command, subflow: Subflow) -> bool:
    match command:
        case DestroySubflow() | SetBackup(backup=True):
            named = (command.token, command.local, command.remote)
            return named == (subflow.token, *subflow.key)
        case WithdrawAddress():
            return command.token == subflow.token and command.address_id == subflow.local_id
    return False


@given(TIMED, RATES)
def test_carried_out_over_many_turns_something_usable_is_left(
    storm: list[tuple[ev.Event, int]], rate: int
) -> None:
    """A kernel with delay: commands count until its events report their effect."""
    engine, now = vandalised(rate), START
    doomed: dict[tuple[int, Any], int] = {}
    for event, pause in storm:
        now += pause
        outcome = engine.handle(event, now)
        live = {
            (s.token, s.key): s
            for c in engine.world.connections.values()
            for s in c.usable_subflows()
        }
        doomed = {name: at for name, at in doomed.items() if at + GRACE > now and name in live}
        for command in let_through(outcome):
            if isinstance(command, DestroySubflow):
                doomed[command.token, (command.local, command.remote)] = now
                spared = [name for name in live if name[0] == command.token and name not in doomed]
                name = (command.token, (command.local, command.remote))
                assert spared or name not in live, (event, command)


@given(TIMED, RATES)
def test_a_storm_excludes_no_sound_plugin_and_leaves_no_trace(
    storm: list[tuple[ev.Event, int]], rate: int
) -> None:
    engine, now = vandalised(rate), START
    finals: list[Subflow] = []
    for event, pause in storm:
        now += pause
        outcome = engine.handle(event, now)
        assert outcome.faults == []
        finals += outcome.finals
        for decision in outcome.decisions:
            finals += engine.handle(ev.CommandAnswered(decision_id=decision.id), now).finals
    # The plugin reacts to its own commands: disable it, then close everything.
    engine.handle(ev.Paused(), now)
    for decision_id in list(engine._unanswered):
        engine.handle(ev.CommandAnswered(decision_id=decision_id), now)
    for token in list(engine.world.connections):
        finals += engine.handle(ev.ConnectionClosed(token=token), now).finals
    finals += engine.handle(ev.Tick(), now + GRACE).finals
    engine.handle(ev.Tick(), now + 3 * GRACE)
    assert len({id(final) for final in finals}) == len(finals)
    kept = leftovers(engine)
    network = {name for name in kept if "world." in name}
    configured = {"_host.plugins", "_host.specs", "_host._handlers", "_assignments._plugins"}
    assert set(kept) - network <= configured | {"_host._random", "_known"}


@given(TIMED, RATES)
def test_the_deadline_is_never_in_the_past(storm: list[tuple[ev.Event, int]], rate: int) -> None:
    """Else the daemon's timer would spin."""
    engine, now = vandalised(rate), START
    for event, pause in storm:
        now += pause
        engine.handle(event, now)
        assert engine.deadline is None or engine.deadline > now


@given(TIMED, RATES)
def test_the_model_agrees_with_itself(storm: list[tuple[ev.Event, int]], rate: int) -> None:
    engine, now = vandalised(rate), START
    for event, pause in storm:
        now += pause
        engine.handle(event, now)
        for token, connection in engine.world.connections.items():
            assert connection.token == token
            for key, subflow in connection.subflows.items():
                assert (subflow.token, subflow.key) == (token, key)
                if subflow.measured is not None:
                    assert (subflow.measured.local, subflow.measured.remote) == key
                    assert not (subflow.measured.closed and subflow.usable)
        for (if_index, ip), address in engine.world.addresses.items():
            assert (address.if_index, address.ip) == (if_index, ip)
