# SPDX-License-Identifier: BSD-3-Clause
"""No command removes a connection's last usable subflow, alone or together with others."""

import pytest

from mptcpd_ebpf.core.commands import (
    Command,
    CreateSubflow,
    DestroySubflow,
    RequestSample,
    SetBackup,
    SteerNewConnections,
    WithdrawAddress,
)
from mptcpd_ebpf.core.guard import SETTLE, Guard
from mptcpd_ebpf.core.model import Connection, State, Subflow, SubflowKey, World
from tests.core.scenario import (
    FIBRE,
    RADIO,
    SATELLITE,
    SERVER,
    START,
    TOKEN,
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


def ask(guard: Guard, command: Command, model: World, now: int = START) -> str | None:
    """Whether a command is refused; one that is not is carried out."""
    refused = guard.refusal(command, model, now)
    if refused is None:
        guard.passed(command, model, now)
    return refused


def verdicts(model: World, *commands: Command) -> list[str | None]:
    guard = Guard()
    return [ask(guard, command, model) for command in commands]


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
    guard = Guard()
    assert [ask(guard, c, world(FIBRE)) for c in harmless] == [None, None, None]


def test_a_destruction_that_never_shows_is_forgotten_in_time() -> None:
    guard, model = Guard(), world(FIBRE, RADIO)
    assert ask(guard, destroy(FIBRE), model, START) is None
    assert ask(guard, destroy(RADIO), model, START + SETTLE - 1) == LAST
    assert ask(guard, destroy(RADIO), model, START + SETTLE) is None


def test_a_repeated_destruction_counts_from_the_last_one() -> None:
    guard, model = Guard(), world(FIBRE, RADIO)
    ask(guard, destroy(FIBRE), model, START)
    ask(guard, destroy(FIBRE), model, START + SETTLE // 2)
    assert ask(guard, destroy(RADIO), model, START + SETTLE) == LAST


def test_a_repeated_command_does_not_delay_others() -> None:
    guard, model = Guard(), world(FIBRE, RADIO, SATELLITE)
    ask(guard, destroy(FIBRE), model, START)
    ask(guard, destroy(SATELLITE), model, START + 1)
    ask(guard, destroy(FIBRE), model, START + SETTLE - 1)
    assert ask(guard, destroy(RADIO), model, START + SETTLE + 1) is None


def test_a_settled_one_counts_no_more() -> None:
    guard, model = Guard(), world(FIBRE, RADIO)
    ask(guard, demote(FIBRE), model, START)
    guard.settled(TOKEN, FIBRE)
    assert ask(guard, destroy(RADIO), model, START) is None


def test_no_plugin_decides_where_new_connections_start() -> None:
    command = SteerNewConnections(ipv6=False, local_ip=RADIO[0].ip, reason="test")
    assert verdicts(world(FIBRE), command) == ["no plugin decides where new connections start"]
