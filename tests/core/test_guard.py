# SPDX-License-Identifier: BSD-3-Clause
"""No command removes a connection's last usable subflow, alone or together with others."""

from collections.abc import Iterator

import pytest

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.commands import (
    Command,
    CreateSubflow,
    DestroySubflow,
    RemoveEndpoint,
    RequestSample,
    SetBackup,
    SteerNewConnections,
    WithdrawAddress,
)
from mptcpd_ebpf.core.guard import SETTLE, Guard
from mptcpd_ebpf.core.model import Connection, State, Subflow, SubflowKey, World
from mptcpd_ebpf.core.plugin import Context, Plugin
from tests.core.scenario import (
    FIBRE,
    RADIO,
    SATELLITE,
    SECOND,
    SERVER,
    START,
    TOKEN,
    StartedEngine,
    connect,
    leftovers,
    refused,
)

LAST = "it is the last usable subflow of the connection"


def world(*keys: SubflowKey) -> World:
    """One connection; its subflows have the address ids 0, 1, 2…"""
    connection = Connection(TOKEN, *FIBRE, state=State.ESTABLISHED)
    for number, key in enumerate(keys):
        connection.subflows[key] = Subflow(TOKEN, *key, local_id=number)
    return World(connections={TOKEN: connection})


def destroy(key: SubflowKey, token: int = TOKEN) -> DestroySubflow:
    return DestroySubflow(token=token, local=key[0], remote=key[1], reason="test")


def demote(key: SubflowKey, backup: bool = True) -> SetBackup:
    return SetBackup(token=TOKEN, local=key[0], remote=key[1], backup=backup, reason="test")


def withdraw(address_id: int) -> WithdrawAddress:
    return WithdrawAddress(token=TOKEN, address_id=address_id, reason="test")


def verdicts(model: World, *commands: Command, now: int = START) -> list[str | None]:
    guard = Guard(destructive_per_second=200)
    return [guard.refusal(command, model, now) for command in commands]


@pytest.mark.parametrize("command", [destroy(FIBRE), demote(FIBRE), withdraw(0)])
def test_the_only_subflow_stays(command: Command) -> None:
    assert verdicts(world(FIBRE), command) == [LAST]


@pytest.mark.parametrize("command", [destroy(FIBRE), demote(FIBRE), withdraw(0)])
def test_one_of_two_may_go(command: Command) -> None:
    assert verdicts(world(FIBRE, RADIO), command) == [None]


@pytest.mark.parametrize("first", [destroy(FIBRE), demote(FIBRE), withdraw(0)])
@pytest.mark.parametrize("second", [destroy(RADIO), demote(RADIO), withdraw(1)])
def test_two_commands_in_one_turn_cannot_do_together_what_neither_may(
    first: Command, second: Command
) -> None:
    assert verdicts(world(FIBRE, RADIO), first, second) == [None, LAST]


def test_a_closing_subflow_can_be_destroyed_again() -> None:
    assert verdicts(world(FIBRE, RADIO), destroy(FIBRE), destroy(FIBRE)) == [None, None]


@pytest.mark.parametrize("attribute", ["backup", "backup_by_peer"])
def test_only_backups_would_be_left(attribute: str) -> None:
    model = world(FIBRE, RADIO)
    setattr(model.connections[TOKEN].subflows[RADIO], attribute, True)
    assert verdicts(model, demote(FIBRE)) == [LAST]
    # A backup carries the data without a regular subflow.
    assert verdicts(model, destroy(FIBRE)) == [None]


@pytest.mark.parametrize("state", [State.OPENING, State.CLOSED])
def test_what_is_not_established_is_no_replacement(state: State) -> None:
    model = world(FIBRE, RADIO)
    model.connections[TOKEN].subflows[RADIO].state = state
    assert verdicts(model, destroy(FIBRE)) == [LAST]
    assert verdicts(model, destroy(RADIO)) == [None]


def test_a_socket_in_error_is_no_replacement() -> None:
    model = world(FIBRE, RADIO)
    model.connections[TOKEN].subflows[RADIO].error = 110
    assert verdicts(model, destroy(FIBRE)) == [LAST]


def test_withdrawing_an_id_counts_every_subflow_that_may_bear_it() -> None:
    model = world(FIBRE, RADIO, SATELLITE)
    subflows = model.connections[TOKEN].subflows
    subflows[RADIO].local_id = 0
    subflows[SATELLITE].local_id = None
    assert verdicts(model, withdraw(0)) == [LAST]
    subflows[SATELLITE].local_id = 2
    assert verdicts(model, withdraw(0), destroy(SATELLITE)) == [None, LAST]


def test_other_connections_do_not_count() -> None:
    model = world(FIBRE)
    other = Connection(7, *RADIO, subflows={RADIO: Subflow(7, *RADIO)})
    model.connections[7] = other
    assert verdicts(model, destroy(FIBRE)) == [LAST]


def test_what_is_gone_is_refused_in_words() -> None:
    assert verdicts(world(FIBRE, RADIO), destroy(SATELLITE), destroy(FIBRE, token=7)) == [
        "the subflow is gone",
        "the connection is gone",
    ]


def test_harmless_commands_are_not_checked() -> None:
    create = CreateSubflow(
        token=TOKEN, local_ip="10.0.2.2", local_id=1, remote=SERVER, reason="test"
    )
    harmless = [create, demote(FIBRE, backup=False), RequestSample(reason="test")]
    guard = Guard(destructive_per_second=0)
    assert [guard.refusal(c, world(FIBRE), START) for c in harmless] == [None, None, None]


def test_a_destruction_that_never_shows_is_forgotten_in_time() -> None:
    guard, model = Guard(200), world(FIBRE, RADIO)
    assert guard.refusal(destroy(FIBRE), model, START) is None
    assert guard.refusal(destroy(RADIO), model, START + SETTLE - 1) == LAST
    assert guard.refusal(destroy(RADIO), model, START + SETTLE) is None


def test_a_repeated_destruction_counts_from_the_last_one() -> None:
    guard, model = Guard(200), world(FIBRE, RADIO)
    guard.refusal(destroy(FIBRE), model, START)
    guard.refusal(destroy(FIBRE), model, START + SETTLE // 2)
    assert guard.refusal(destroy(RADIO), model, START + SETTLE) == LAST


def test_a_repeated_command_does_not_delay_others() -> None:
    guard, model = Guard(200), world(FIBRE, RADIO, SATELLITE)
    guard.refusal(destroy(FIBRE), model, START)
    guard.refusal(destroy(SATELLITE), model, START + 1)
    guard.refusal(destroy(FIBRE), model, START + SETTLE - 1)
    assert guard.refusal(destroy(RADIO), model, START + SETTLE + 1) is None


def test_a_settled_one_counts_no_more() -> None:
    guard, model = Guard(200), world(FIBRE, RADIO)
    guard.refusal(demote(FIBRE), model, START)
    guard.settled(TOKEN, FIBRE)
    assert guard.refusal(destroy(RADIO), model, START) is None


def test_destruction_is_rationed() -> None:
    guard, model = Guard(destructive_per_second=3), world(FIBRE, RADIO)
    commands = [destroy(FIBRE), demote(FIBRE), withdraw(0), withdraw(77)]
    assert [guard.refusal(c, model, START) for c in commands] == [
        None,
        None,
        None,
        "more than 3 destructive commands a second",
    ]
    assert guard.refusal(demote(FIBRE), model, START + SECOND // 3 + 1) is None
    assert guard.refusal(demote(FIBRE), model, START + SECOND // 3 + 1) is not None


def test_a_new_ration_holds_from_now_on() -> None:
    """As after a reload; tokens beyond the new limit are lost."""
    guard, model = Guard(destructive_per_second=3), world(FIBRE, RADIO)
    guard.set_rate(1)
    answers = [guard.refusal(destroy(FIBRE), model, START) for _ in range(2)]
    assert answers == [None, "more than 1 destructive commands a second"]
    guard.set_rate(0)
    assert guard.refusal(destroy(FIBRE), model, START + 9 * SECOND) is not None


def test_the_configuration_sets_the_ration() -> None:
    engine = StartedEngine(destructive_per_second=5)
    connect(engine, FIBRE, RADIO)
    asked = ev.CommandAsked(command=demote(RADIO))
    engine.configure(destructive_per_second=0)
    assert refused(engine.handle(asked, START)) == ["more than 0 destructive commands a second"]


def test_a_long_rest_saves_no_more_than_a_second_of_it() -> None:
    guard, model = Guard(destructive_per_second=2), world(FIBRE, RADIO)
    later = START + 3600 * SECOND
    answers = [guard.refusal(destroy(FIBRE), model, later) for _ in range(3)]
    assert answers == [None, None, "more than 2 destructive commands a second"]


def test_what_was_refused_as_the_last_one_costs_no_ration() -> None:
    guard = Guard(destructive_per_second=1)
    for _ in range(5):
        assert guard.refusal(destroy(FIBRE), world(FIBRE), START) == LAST
    assert guard.refusal(destroy(FIBRE), world(FIBRE, RADIO), START) is None


def test_a_destruction_with_notice_to_the_peer_counts_once() -> None:
    guard, model = Guard(destructive_per_second=1), world(FIBRE, RADIO, SATELLITE)
    commands = [withdraw(1), destroy(RADIO), destroy(RADIO)]
    answers = [guard.refusal(command, model, START) for command in commands]
    assert answers == [None, None, "more than 1 destructive commands a second"]
    assert guard.refusal(withdraw(1), model, START + SECOND) is None
    late = START + 2 * SECOND + SETTLE
    assert guard.refusal(destroy(SATELLITE), model, late) is None
    assert guard.refusal(destroy(RADIO), model, late) is not None


def test_memory_is_bounded_by_a_second_of_destruction() -> None:
    guard = Guard(destructive_per_second=10)
    for number in range(1000):
        model = world(FIBRE, RADIO)
        model.connections[number] = model.connections.pop(TOKEN)
        guard.refusal(destroy(FIBRE, token=number), model, START + number * SECOND // 10)
        assert sum(leftovers(guard).values()) <= 11


def test_what_is_put_back_at_the_end_is_not_rationed() -> None:
    class Leaving(Plugin):
        name = "leaving"

        def exit(self, ctx: Context) -> Iterator[Command]:
            for number in range(1, 9):
                yield RemoveEndpoint(address_id=number, ip="", reason="the daemon leaves")

    engine = StartedEngine(Leaving(), default_plugin=None, destructive_per_second=1)
    assert refused(engine.configure(destructive_per_second=1)) == [None] * 8
    engine.configure(Leaving(), destructive_per_second=1)
    assert refused(engine.handle(ev.Stopped(), START)) == [None] * 8
    asked = [
        ev.CommandAsked(command=RemoveEndpoint(address_id=n, ip="", reason="")) for n in (1, 2)
    ]
    assert [refused(engine.handle(each, START)) for each in asked] == [
        [None],
        ["more than 1 destructive commands a second"],
    ]


def test_no_plugin_decides_where_new_connections_start() -> None:
    command = SteerNewConnections(ipv6=False, local_ip=RADIO[0].ip, reason="test")
    assert verdicts(world(FIBRE), command) == ["no plugin decides where new connections start"]
