# SPDX-License-Identifier: BSD-3-Clause
"""Presets and preferences of adaptive, and demotions that the measured goodput undoes."""

import pytest

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.commands import CreateSubflow, DestroySubflow, RequestSample, SetBackup
from mptcpd_ebpf.core.measurement import AlarmKind
from mptcpd_ebpf.core.model import SECOND, Subflow
from mptcpd_ebpf.core.roles import Preset
from mptcpd_ebpf.core.serving import Rule
from tests.plugins.simulation import FIBRE, MOBILE, TOKEN, Flow, Simulation

MBYTE = 1e6


def uploading(both: dict[str, Flow], alone: float, options: str = "") -> Simulation:
    """A bulk upload for some seconds, so that the goodput is known."""
    simulation = Simulation(options=options)
    simulation.rates = lambda regular: both if len(regular) == 2 else {FIBRE: Flow(alone)}
    simulation.wait(3 * SECOND)
    return simulation


def stall(simulation: Simulation) -> None:
    simulation.alarm(MOBILE, AlarmKind.STALL, in_flight=60, value=300_000)


def flags(simulation: Simulation, since: int) -> list[bool]:
    """The backup flags that were set since then, in order."""
    return [
        each.command.backup
        for each in simulation.actions(since)
        if isinstance(each.command, SetBackup)
    ]


def test_a_path_that_carries_more_than_it_costs_stays() -> None:
    simulation = uploading({FIBRE: Flow(2 * MBYTE), MOBILE: Flow(2 * MBYTE, 0.3)}, 2 * MBYTE)
    began = simulation.now
    stall(simulation)
    simulation.wait(5 * SECOND)
    assert flags(simulation, began) == []


def test_a_demotion_that_costs_goodput_is_undone_and_remembered() -> None:
    simulation = uploading({FIBRE: Flow(3 * MBYTE), MOBILE: Flow(MBYTE, 0.5)}, 2 * MBYTE)
    began = simulation.now
    stall(simulation)
    simulation.wait(4 * SECOND)
    assert flags(simulation, began) == [True, False]
    undone = simulation.actions(began)[-1].command.reason
    assert undone == "without it the goodput is 16.0 Mbit/s, with it 32.0 Mbit/s"
    stall(simulation)
    simulation.wait(4 * SECOND)
    assert flags(simulation, began) == [True, False]


def test_a_demotion_that_helps_lasts() -> None:
    simulation = uploading({FIBRE: Flow(MBYTE), MOBILE: Flow(MBYTE / 10, 0.6)}, 2 * MBYTE)
    began = simulation.now
    stall(simulation)
    simulation.wait(8 * SECOND)
    assert flags(simulation, began) == [True]


def test_a_demotion_ends_when_the_other_path_has_become_worse() -> None:
    simulation = uploading({FIBRE: Flow(MBYTE), MOBILE: Flow(MBYTE / 10, 0.6)}, 2 * MBYTE)
    began = simulation.now
    stall(simulation)
    simulation.wait(4 * SECOND)
    assert flags(simulation, began) == [True]
    simulation.rates = lambda _: {FIBRE: Flow(MBYTE / 8)}
    simulation.wait(4 * SECOND)
    assert flags(simulation, began) == [True, False]
    assert simulation.actions(began)[-1].command.reason == (
        "the goodput fell from 16.0 Mbit/s to 1.0 Mbit/s"
    )


def test_a_demotion_lasts_while_the_application_sends_nothing() -> None:
    simulation = uploading({FIBRE: Flow(MBYTE), MOBILE: Flow(MBYTE / 10, 0.6)}, 2 * MBYTE)
    began = simulation.now
    stall(simulation)
    simulation.wait(4 * SECOND)
    simulation.rates = lambda _: {}
    simulation.wait(4 * SECOND)
    assert flags(simulation, began) == [True]


def test_a_refused_demotion_is_no_relapse() -> None:
    simulation = Simulation()
    simulation.wait(SECOND)
    for rate in (0, 0, 0, 200):
        simulation.engine.configure(
            *simulation.engine.installed,
            default_plugin="adaptive",
            destructive_per_second=rate,
            now=simulation.now,
        )
        stall(simulation)
        simulation.wait(SECOND)
    assert not simulation.regular(MOBILE)
    carried_out = simulation.actions()[-1].command
    assert carried_out.reason.endswith("on backup for 10 s")


def test_on_the_server_side_a_path_that_stalls_is_demoted_and_nothing_else() -> None:
    simulation = Simulation(server_side=True)
    simulation.tell(
        ev.SubflowEstablished(
            token=TOKEN, local=(local := _second(simulation)), remote=simulation.connection.remote
        )
    )
    simulation.wait(SECOND)
    began = simulation.now
    simulation.alarm(local.ip, AlarmKind.STALL, value=300_000)
    simulation.wait(30 * SECOND)
    made = [each.command for each in simulation.actions(began)]
    assert [command.backup for command in made if isinstance(command, SetBackup)] == [True, False]
    assert not [c for c in made if isinstance(c, CreateSubflow | DestroySubflow)]


def _second(simulation: Simulation) -> SockAddr:
    return simulation.connection.local._replace(ip=MOBILE, port=40_002)


@pytest.mark.parametrize("preset", ["handover", "backup"])
def test_one_path_is_active_and_the_other_stands_by(preset: str) -> None:
    simulation = Simulation(options=f"{{preset: {preset}, prefer: [mobile]}}")
    simulation.wait(2 * SECOND)
    assert simulation.regular(MOBILE)
    assert not simulation.regular(FIBRE)
    assert len(simulation.connection.usable_subflows()) == 2
    simulation.alarm(MOBILE, AlarmKind.NO_PROGRESS)
    simulation.wait(SECOND // 10)
    assert simulation.regular(FIBRE), "the preferred path is dead"
    simulation.wait(20 * SECOND)
    assert simulation.regular(MOBILE), "it has recovered"
    assert not simulation.regular(FIBRE)


@pytest.mark.parametrize(("preset", "switches"), [("handover", True), ("backup", False)])
def test_a_slow_preferred_path_is_left_by_handover_only(preset: str, *, switches: bool) -> None:
    simulation = Simulation(options=f"{{preset: {preset}, prefer: [fibre]}}")
    simulation.wait(2 * SECOND)
    simulation.alarm(FIBRE, AlarmKind.LOSS, value=30)
    simulation.wait(SECOND // 10)
    assert bool(simulation.regular(MOBILE)) is switches


def test_a_metered_path_carries_data_only_while_nothing_else_works() -> None:
    simulation = Simulation(options="metered: ['mob*']")
    simulation.wait(2 * SECOND)
    (mobile,) = [s for s in simulation.connection.usable_subflows() if s.local.ip == MOBILE]
    assert mobile.backup
    simulation.alarm(FIBRE, AlarmKind.NO_PROGRESS)
    simulation.wait(SECOND // 10)
    assert simulation.regular(MOBILE)
    simulation.wait(20 * SECOND)
    assert simulation.regular(FIBRE)
    assert not simulation.regular(MOBILE)


def test_a_young_connection_gets_no_second_subflow() -> None:
    simulation = Simulation(options="min_connection_age_ms: 500")
    simulation.wait(SECOND * 4 // 10)
    assert not simulation.actions()
    simulation.wait(SECOND)
    assert simulation.regular(MOBILE)


def test_a_connection_that_transfers_little_gets_no_second_subflow() -> None:
    simulation = Simulation(options="min_bytes: 1000000")
    simulation.rates = lambda _: {FIBRE: Flow(100_000)}
    simulation.wait(5 * SECOND)
    assert not simulation.regular(MOBILE)
    samples = sum(isinstance(each.command, RequestSample) for each in simulation.decisions)
    assert samples < 10
    simulation.wait(12 * SECOND)
    assert simulation.regular(MOBILE)


def test_a_rule_names_the_preset_of_its_connections() -> None:
    simulation = Simulation()
    simulation.wait(SECOND)
    rules = [Rule(plugin="adaptive", preset=Preset.BACKUP, remote_port=443)]
    plugin = simulation.engine.installed[0]
    simulation._outcome(
        simulation.engine.configure(
            plugin, rules=rules, default_plugin="adaptive", now=simulation.now
        )
    )
    simulation.wait(SECOND)
    assert simulation.regular(FIBRE)
    assert not simulation.regular(MOBILE)


def second_of(simulation: Simulation) -> Subflow:
    (subflow,) = [s for s in simulation.connection.usable_subflows() if s.local.ip == MOBILE]
    return subflow


def test_a_flag_that_an_operator_set_stays() -> None:
    simulation = Simulation()
    simulation.wait(SECOND)
    subflow = second_of(simulation)
    by_operator = SetBackup(
        token=TOKEN, local=subflow.local, remote=subflow.remote, backup=True, reason="manual"
    )
    simulation.tell(ev.CommandAsked(command=by_operator))
    simulation.wait(SECOND)
    simulation.tell(ev.DefaultRouteAdded(if_index=2, ipv6=False, table=100))
    simulation.wait(5 * SECOND)
    assert second_of(simulation).backup


def test_a_dead_path_is_left_also_while_it_stands_by() -> None:
    simulation = Simulation()
    simulation.wait(SECOND)
    stall(simulation)
    simulation.wait(SECOND)
    subflow = second_of(simulation)
    assert subflow.backup
    measured = simulation._measure(subflow, in_flight=4)
    for kind, left in ((AlarmKind.STALL, False), (AlarmKind.TIMEOUTS, True)):
        simulation.tell(ev.AlarmRaised(kind=kind, measurement=measured, value=2))
        gone = [d for d in simulation.actions() if isinstance(d.command, DestroySubflow)]
        assert bool(gone) is left


def test_a_backup_join_of_an_operator_stays_backup() -> None:
    simulation = Simulation(mobile=False)
    simulation.wait(SECOND)
    simulation.tell(ev.LinkChanged(if_index=2, name="mobile", up=True, running=False))
    join = CreateSubflow(
        token=TOKEN,
        local_ip=MOBILE,
        local_id=1,
        remote=simulation.connection.remote,
        backup=True,
        reason="manual",
    )
    simulation.tell(ev.CommandAsked(command=join))
    simulation.wait(SECOND)
    simulation.tell(ev.LinkChanged(if_index=2, name="mobile", up=True, running=True))
    simulation.tell(ev.LocalAddressChanged(if_index=2, ip=MOBILE, prefix_len=24))
    simulation.wait(5 * SECOND)
    assert second_of(simulation).backup
