# SPDX-License-Identifier: BSD-3-Clause
"""Subflows on a path that is gone or not allowed: the peer is notified, then they are destroyed."""

from typing import Any

import pytest

from mptcpd_ebpf.config.plugin_loader import load
from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.commands import DestroySubflow, WithdrawAddress
from mptcpd_ebpf.core.engine import Outcome
from tests.core.scenario import FIBRE, RADIO, SATELLITE, START, StartedEngine, connect

PATHS = (FIBRE, RADIO, SATELLITE)


@pytest.fixture(params=["adaptive", "backup", "fullmesh", "sspi"])
def engine(request: pytest.FixtureRequest) -> StartedEngine:
    """A connection with a subflow on each of three interfaces, address ids 0, 1 and 2."""
    plugin = load(request.param)()
    engine = StartedEngine(plugin, default_plugin=plugin.name)
    for number, (local, _) in enumerate(PATHS, start=1):
        engine.handle(link(number), START)
        engine.handle(ev.LocalAddressChanged(if_index=number, ip=local.ip, prefix_len=24), START)
    connect(engine, RADIO, SATELLITE)
    return engine


def link(number: int, **more: Any) -> ev.LinkChanged:
    fields: dict[str, Any] = {"name": f"wan{number}", "up": True, "running": True} | more
    return ev.LinkChanged(if_index=number, **fields)


def gone(outcome: Outcome) -> list[tuple[type, object]]:
    """Withdrawals and destructions, in order: the address id, or the local address."""
    assert not outcome.faults
    found: list[tuple[type, object]] = []
    for decision in outcome.decisions:
        command = decision.command
        if isinstance(command, WithdrawAddress):
            found.append((WithdrawAddress, command.address_id))
        elif isinstance(command, DestroySubflow):
            found.append((DestroySubflow, command.local.ip))
    return found


@pytest.mark.parametrize("number", [1, 2])
def test_the_peer_is_notified_while_the_kernel_knows_the_id(
    engine: StartedEngine, number: int
) -> None:
    local, _ = PATHS[number - 1]
    left = [(WithdrawAddress, number - 1), (DestroySubflow, local.ip)]
    assert gone(engine.handle(link(number, running=False), START)) == left


def test_an_address_that_was_removed(engine: StartedEngine) -> None:
    removed = ev.LocalAddressRemoved(if_index=3, ip=SATELLITE[0].ip)
    assert gone(engine.handle(removed, START)) == [
        (WithdrawAddress, 2),
        (DestroySubflow, SATELLITE[0].ip),
    ]


def test_what_the_configuration_denies_now(engine: StartedEngine) -> None:
    """All but the initial subflow."""
    plugin = engine.installed[0]
    denied = ["wan1", "wan2"]
    outcome = engine.configure(type(plugin)(), default_plugin=plugin.name, denied_interfaces=denied)
    assert gone(outcome) == [(WithdrawAddress, 1), (DestroySubflow, RADIO[0].ip)]
    assert gone(engine.handle(link(3, name="other"), START)) == []


def test_an_interface_that_is_renamed_to_one_denied(engine: StartedEngine) -> None:
    plugin = engine.installed[0]
    engine.configure(type(plugin)(), default_plugin=plugin.name, denied_interfaces=["lan*"])
    assert gone(engine.handle(link(3, name="lan0"), START)) == [
        (WithdrawAddress, 2),
        (DestroySubflow, SATELLITE[0].ip),
    ]


def test_all_connections_leave_a_lost_carrier_whatever_the_ration() -> None:
    plugin = load("fullmesh")()
    engine = StartedEngine(plugin, default_plugin=plugin.name, destructive_per_second=3)
    for number, (local, _) in enumerate((FIBRE, RADIO), start=1):
        engine.handle(link(number), START)
        engine.handle(ev.LocalAddressChanged(if_index=number, ip=local.ip, prefix_len=24), START)
    for token in range(1, 6):
        connect(engine, RADIO, token=token)
    outcome = engine.handle(link(2, running=False), START)
    assert [decision.refused for decision in outcome.decisions] == [None] * 10
    kinds = [type(decision.command) for decision in outcome.decisions]
    assert kinds == [WithdrawAddress, DestroySubflow] * 5


def test_strays_leave_at_once() -> None:
    plugin = load("fullmesh")()
    engine = StartedEngine(plugin, default_plugin=plugin.name, destructive_per_second=1)
    for number, (local, _) in enumerate((FIBRE, RADIO), start=1):
        engine.handle(link(number), START)
        engine.handle(ev.LocalAddressChanged(if_index=number, ip=local.ip, prefix_len=24), START)
    for token in range(1, 6):
        connect(engine, RADIO, token=token)
    again = load("fullmesh")()
    outcome = engine.configure(
        again,
        default_plugin=plugin.name,
        destructive_per_second=1,
        denied_interfaces=["wan2"],
    )
    assert [decision.refused for decision in outcome.decisions] == [None] * 10
