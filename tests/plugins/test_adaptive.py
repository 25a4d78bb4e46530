# SPDX-License-Identifier: BSD-3-Clause
"""`adaptive` abandons harmful subflows, never all of them, and uses recovered paths again."""

import errno
import re
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.commands import (
    CreateSubflow,
    DestroySubflow,
    ProbePath,
    SetBackup,
    WithdrawAddress,
)
from mptcpd_ebpf.core.measurement import AlarmKind
from mptcpd_ebpf.core.model import MS, SECOND
from tests.plugins.simulation import FIBRE, MOBILE, RTT, START, TOKEN, Simulation

DEAD = lambda: False  # noqa: E731 - reads as the state of a path
FINE = lambda: True  # noqa: E731


@pytest.fixture
def two_paths() -> Simulation:
    simulation = Simulation()
    simulation.wait(SECOND)
    return simulation


def test_it_joins_from_every_usable_interface(two_paths: Simulation) -> None:
    (create,) = [each.command for each in two_paths.actions()]
    assert isinstance(create, CreateSubflow)
    assert (create.local_ip, create.backup) == (MOBILE, False)
    assert create.local_id != 0
    assert two_paths.regular(MOBILE)


def test_the_server_side_is_left_alone() -> None:
    simulation = Simulation(server_side=True)
    simulation.wait(SECOND)
    simulation.alarm(FIBRE, AlarmKind.NO_PROGRESS)
    simulation.wait(10 * SECOND)
    assert not simulation.decisions


@pytest.mark.parametrize(
    "kind", [AlarmKind.NO_PROGRESS, AlarmKind.TIMEOUTS, AlarmKind.SILENCE, AlarmKind.LOSS]
)
def test_a_harmful_subflow_is_destroyed_and_the_peer_notified(
    two_paths: Simulation, kind: AlarmKind
) -> None:
    two_paths.answers[FIBRE] = DEAD
    fell = two_paths.now
    two_paths.alarm(FIBRE, kind)
    two_paths.wait(MS)
    commands = [each.command for each in two_paths.decisions if each.at >= fell]
    assert isinstance(commands[0], DestroySubflow)
    assert commands[0].local.ip == FIBRE
    withdrawn = [each for each in commands if isinstance(each, WithdrawAddress)]
    assert [each.address_id for each in withdrawn] == [0]
    assert not two_paths.regular(FIBRE)
    assert two_paths.regular(MOBILE)


def test_an_id_that_destroying_removed_is_announced_to_the_kernel_before_its_withdrawal(
    two_paths: Simulation,
) -> None:
    fell = two_paths.now
    two_paths.alarm(MOBILE, AlarmKind.NO_PROGRESS)
    destroy, create, withdraw = [each.command for each in two_paths.decisions if each.at >= fell]
    assert isinstance(destroy, DestroySubflow)
    assert isinstance(create, CreateSubflow)
    assert create.backup
    assert isinstance(withdraw, WithdrawAddress)
    assert create.local_id == withdraw.address_id != 0


@pytest.mark.parametrize("kind", [AlarmKind.RTT, AlarmKind.LOSS, AlarmKind.STALL, AlarmKind.HOLE])
def test_the_last_usable_subflow_stays(kind: AlarmKind) -> None:
    simulation = Simulation(mobile=False)
    simulation.wait(SECOND)
    for _ in range(3):
        simulation.alarm(FIBRE, kind)
        simulation.wait(SECOND)
    assert simulation.regular(FIBRE)
    assert not simulation.actions()


@pytest.mark.parametrize("kind", [AlarmKind.NO_PROGRESS, AlarmKind.TIMEOUTS])
def test_a_silent_last_subflow_is_replaced_once_another_handshake_is_answered(
    kind: AlarmKind,
) -> None:
    simulation = Simulation(mobile=False)
    simulation.answers[FIBRE] = DEAD
    (silent,) = simulation.regular(FIBRE)
    simulation.alarm(FIBRE, kind)
    simulation.wait(20 * SECOND)
    assert simulation.connection.usable_subflows() == [silent], "nothing else carries the data"
    simulation.answers[FIBRE] = FINE
    simulation.wait(3 * SECOND)
    (found,) = simulation.connection.usable_subflows()
    assert found is not silent


@pytest.mark.parametrize("kind", [AlarmKind.LOSS, AlarmKind.RTT])
def test_a_subflow_filled_by_a_bulk_transfer_does_that_to_itself(
    two_paths: Simulation, kind: AlarmKind
) -> None:
    two_paths.alarm(FIBRE, kind, in_flight=60)
    two_paths.wait(SECOND)
    assert two_paths.regular(FIBRE)


def test_a_single_hole_alarm_is_no_evidence(two_paths: Simulation) -> None:
    two_paths.alarm(MOBILE, AlarmKind.HOLE)
    two_paths.wait(4 * SECOND)
    two_paths.alarm(MOBILE, AlarmKind.HOLE)
    assert two_paths.regular(MOBILE)


def test_repeated_hole_alarms_demote_the_subflow(two_paths: Simulation) -> None:
    two_paths.alarm(MOBILE, AlarmKind.HOLE)
    two_paths.wait(SECOND)
    began = two_paths.now
    two_paths.alarm(MOBILE, AlarmKind.HOLE, value=300_000)
    (decision,) = two_paths.actions(began)
    assert isinstance(decision.command, SetBackup)
    assert decision.command.backup
    assert decision.command.local.ip == MOBILE
    assert "received data waited for it for 300 ms" in decision.command.reason
    two_paths.wait(11 * SECOND)
    assert two_paths.regular(MOBILE)


def test_holes_demote_no_subflow_beside_backup_subflows_only(two_paths: Simulation) -> None:
    for ip in (MOBILE, FIBRE):
        for _ in range(2):
            two_paths.alarm(ip, AlarmKind.HOLE)
            two_paths.wait(SECOND)
    assert not two_paths.regular(MOBILE)
    assert two_paths.regular(FIBRE)


def test_rtt_is_no_harm_where_the_others_are_slower(two_paths: Simulation) -> None:
    two_paths.tell(ev.Sampled(measurements=two_paths._sample()))
    two_paths.alarm(FIBRE, AlarmKind.RTT, value=70_000)
    assert two_paths.regular(FIBRE)
    two_paths.alarm(FIBRE, AlarmKind.RTT, value=300_000)
    two_paths.wait(MS)
    assert not two_paths.regular(FIBRE)


def probes(simulation: Simulation, ip: str) -> list[ProbePath]:
    commands = [each.command for each in simulation.decisions]
    return [each for each in commands if isinstance(each, ProbePath) and each.local_ip == ip]


def joins(simulation: Simulation, ip: str, since: int) -> list[CreateSubflow]:
    commands = [each.command for each in simulation.decisions if each.at >= since]
    return [each for each in commands if isinstance(each, CreateSubflow) and each.local_ip == ip]


def test_probes_open_nothing_and_a_recovered_path_returns_within_five_seconds(
    two_paths: Simulation,
) -> None:
    two_paths.answers[FIBRE] = DEAD
    fell = two_paths.now
    two_paths.alarm(FIBRE, AlarmKind.NO_PROGRESS)
    for _ in range(60):
        two_paths.wait(SECOND)
        assert not two_paths.regular(FIBRE)
    two_paths.answers[FIBRE] = FINE
    healed = two_paths.now
    two_paths.wait(5 * SECOND)
    assert two_paths.regular(FIBRE)
    assert len(probes(two_paths, FIBRE)) > 40
    (join,) = joins(two_paths, FIBRE, fell)
    assert not join.backup
    returned = next(
        each.command.reason
        for each in two_paths.decisions
        if each.at >= healed and "back after" in each.command.reason
    )
    assert re.fullmatch(r"\w+ is back after 6\d\.\d s \(10 probes answered\)", returned)


def test_small_and_full_size_probes_alternate_and_the_last_ones_are_of_full_size(
    two_paths: Simulation,
) -> None:
    two_paths.alarm(FIBRE, AlarmKind.NO_PROGRESS)
    two_paths.wait(5 * SECOND)
    assert two_paths.regular(FIBRE)
    sizes = "".join("F" if each.full_size else "s" for each in probes(two_paths, FIBRE))
    assert sizes == "sFsFsFsFFF"


def test_a_path_that_passes_small_packets_only_does_not_return(two_paths: Simulation) -> None:
    two_paths.small_only[FIBRE] = None
    two_paths.alarm(FIBRE, AlarmKind.TIMEOUTS)
    two_paths.wait(240 * SECOND)
    assert not two_paths.regular(FIBRE)
    del two_paths.small_only[FIBRE]
    two_paths.wait(5 * SECOND)
    assert two_paths.regular(FIBRE)


def seconds_away(simulation: Simulation) -> int:
    """Lets the path fail, and tells when it is used again."""
    simulation.alarm(FIBRE, AlarmKind.TIMEOUTS)
    failed = simulation.now
    simulation.wait(MS)
    assert not simulation.regular(FIBRE)
    while not simulation.regular(FIBRE):
        simulation.wait(SECOND)
    simulation.wait(SECOND)  # the slower one moves behind it
    return (simulation.now - failed) // SECOND


def test_where_no_large_syn_arrives_a_path_is_tried_with_data_at_growing_intervals(
    two_paths: Simulation,
) -> None:
    two_paths.small_only[FIBRE] = None
    fell = two_paths.now
    waited = [seconds_away(two_paths) for _ in range(3)]
    assert [each // 300 for each in waited] == [1, 2, 4]
    assert "without enough answered probes" in joins(two_paths, FIBRE, fell)[0].reason


def test_without_the_capability_a_path_is_tried_with_data_at_growing_intervals(
    two_paths: Simulation,
) -> None:
    two_paths.unsendable = errno.EPERM
    waited = [seconds_away(two_paths) for _ in range(3)]
    assert [each // 10 for each in waited] == [1, 2, 4]


def test_a_path_without_a_route_is_probed_until_there_is_one(two_paths: Simulation) -> None:
    two_paths.unsendable = errno.ENETUNREACH
    two_paths.alarm(FIBRE, AlarmKind.TIMEOUTS)
    two_paths.wait(60 * SECOND)
    assert not two_paths.regular(FIBRE)
    two_paths.unsendable = 0
    two_paths.wait(5 * SECOND)
    assert two_paths.regular(FIBRE)


def test_a_slow_answer_does_not_count(two_paths: Simulation) -> None:
    two_paths.extra_rtt[FIBRE] = 580 * MS
    two_paths.alarm(FIBRE, AlarmKind.NO_PROGRESS)
    two_paths.wait(30 * SECOND)
    assert not two_paths.regular(FIBRE)


def test_thirty_per_cent_loss_each_way_brings_no_path_back(two_paths: Simulation) -> None:
    chance = Random(7)
    two_paths.answers[FIBRE] = lambda: chance.random() < 0.7 * 0.7
    two_paths.alarm(FIBRE, AlarmKind.LOSS)
    returned = 0
    for _ in range(600):
        two_paths.wait(SECOND // 10)
        returned += bool(two_paths.regular(FIBRE))
    assert not returned


def test_the_faster_path_is_first_again_after_its_return(two_paths: Simulation) -> None:
    two_paths.alarm(FIBRE, AlarmKind.NO_PROGRESS)
    two_paths.wait(10 * SECOND)
    order = [s.local.ip for s in two_paths.connection.usable_subflows() if not s.backup]
    assert order == [FIBRE, MOBILE]


def test_the_return_of_a_slower_path_moves_nothing(two_paths: Simulation) -> None:
    fell = two_paths.now
    two_paths.alarm(MOBILE, AlarmKind.NO_PROGRESS)
    two_paths.wait(10 * SECOND)
    assert two_paths.regular(MOBILE)
    touched = [
        each.command.local.ip
        for each in two_paths.decisions
        if each.at >= fell and isinstance(each.command, DestroySubflow | SetBackup)
    ]
    assert FIBRE not in touched


def test_a_stalling_path_is_backup_for_a_while_that_grows(two_paths: Simulation) -> None:
    away = []
    for _ in range(3):
        two_paths.alarm(MOBILE, AlarmKind.STALL, in_flight=60, value=300_000)
        fell = two_paths.now
        two_paths.wait(MS)
        while not two_paths.regular(MOBILE):
            two_paths.wait(SECOND)
        away.append((two_paths.now - fell) // SECOND)
    assert away == [10, 20, 40]


def test_a_reload_keeps_bad_paths_and_demotions(two_paths: Simulation) -> None:
    two_paths.answers[FIBRE] = DEAD
    two_paths.alarm(FIBRE, AlarmKind.TIMEOUTS)
    two_paths.wait(3 * SECOND)
    two_paths.reload()
    reloaded = two_paths.now
    two_paths.wait(10 * SECOND)
    assert not joins(two_paths, FIBRE, reloaded), "it is still away"
    two_paths.answers[FIBRE] = FINE
    two_paths.wait(10 * SECOND)
    assert two_paths.regular(FIBRE)
    two_paths.alarm(MOBILE, AlarmKind.STALL, in_flight=60, value=300_000)
    two_paths.wait(SECOND)
    two_paths.reload()
    two_paths.wait(SECOND)
    assert not two_paths.regular(MOBILE)
    two_paths.wait(10 * SECOND)
    assert two_paths.regular(MOBILE)


def test_a_subflow_that_the_peer_or_program_closed_is_joined_again(two_paths: Simulation) -> None:
    (subflow,) = two_paths.regular(MOBILE)
    two_paths.tell(
        ev.SubflowClosed(token=TOKEN, local=subflow.local, remote=subflow.remote, error=104)
    )
    assert not two_paths.regular(MOBILE)
    two_paths.wait(5 * SECOND)
    assert two_paths.regular(MOBILE)


def test_a_connection_that_lost_all_its_subflows_gets_one_at_once(two_paths: Simulation) -> None:
    for subflow in [*two_paths.regular(FIBRE), *two_paths.regular(MOBILE)]:
        two_paths.tell(
            ev.SubflowClosed(token=TOKEN, local=subflow.local, remote=subflow.remote, error=104)
        )
    assert not two_paths.connection.usable_subflows()
    two_paths.wait(2 * RTT[MOBILE])
    assert len(two_paths.connection.usable_subflows()) == 1
    two_paths.wait(5 * SECOND)
    assert two_paths.regular(FIBRE)
    assert two_paths.regular(MOBILE)


def lose_the_only_one(alone: Simulation) -> None:
    (last,) = alone.regular(FIBRE)
    alone.tell(ev.SubflowClosed(token=TOKEN, local=last.local, remote=last.remote, error=104))


def test_the_last_hope_has_time_to_be_answered() -> None:
    """The path's RTT has risen far above the usual one."""
    alone = Simulation(mobile=False)
    alone.extra_rtt[FIBRE] = 900 * MS
    lose_the_only_one(alone)
    alone.wait(20 * SECOND)
    assert alone.regular(FIBRE)


def test_an_answer_that_crosses_its_giving_up_is_no_return() -> None:
    alone = Simulation(mobile=False)
    alone.crossing = True
    alone.answers[FIBRE] = DEAD
    lose_the_only_one(alone)
    alone.wait(5 * SECOND)
    assert not alone.regular(FIBRE)
    alone.answers[FIBRE] = FINE
    alone.wait(5 * SECOND)
    assert alone.regular(FIBRE)


def test_a_connection_that_lost_all_subflows_gets_them_again(
    two_paths: Simulation,
) -> None:
    two_paths.answers = {FIBRE: DEAD, MOBILE: DEAD}
    two_paths.alarm(FIBRE, AlarmKind.NO_PROGRESS)
    two_paths.wait(450 * MS)  # a probe is under way
    (last,) = two_paths.regular(MOBILE)
    two_paths.tell(ev.SubflowClosed(token=TOKEN, local=last.local, remote=last.remote, error=104))
    two_paths.wait(20 * SECOND)
    assert not two_paths.connection.usable_subflows()
    two_paths.answers = {FIBRE: FINE, MOBILE: FINE}
    two_paths.wait(5 * SECOND)
    assert two_paths.regular(FIBRE)
    assert two_paths.regular(MOBILE)


def test_a_join_that_only_announces_an_id_carries_data_where_it_is_the_only_one(
    two_paths: Simulation,
) -> None:
    two_paths.alarm(MOBILE, AlarmKind.NO_PROGRESS)  # the join that adds its id will be answered
    two_paths.answers[FIBRE] = DEAD
    (last,) = two_paths.regular(FIBRE)
    two_paths.tell(ev.SubflowClosed(token=TOKEN, local=last.local, remote=last.remote, error=104))
    two_paths.wait(SECOND)
    assert two_paths.regular(MOBILE)
    two_paths.answers[FIBRE] = FINE
    two_paths.wait(10 * SECOND)
    assert two_paths.regular(FIBRE)
    assert len(two_paths.connection.usable_subflows()) == 2


def test_a_join_that_only_announces_an_id_is_ended_when_it_is_answered(
    two_paths: Simulation,
) -> None:
    two_paths.alarm(MOBILE, AlarmKind.NO_PROGRESS)
    two_paths.wait(2 * RTT[MOBILE])
    assert [each.local.ip for each in two_paths.connection.usable_subflows()] == [FIBRE]


def test_carrier_loss_and_its_return(two_paths: Simulation) -> None:
    two_paths.tell(ev.LinkChanged(if_index=2, name="mobile", up=True, running=False))
    two_paths.wait(MS)
    assert not two_paths.regular(MOBILE)
    two_paths.tell(ev.LinkChanged(if_index=2, name="mobile", up=True, running=True))
    two_paths.wait(SECOND)
    assert two_paths.regular(MOBILE)


def test_an_address_that_goes_takes_its_subflow_along(two_paths: Simulation) -> None:
    two_paths.tell(ev.LocalAddressRemoved(if_index=2, ip=MOBILE))
    two_paths.wait(MS)
    assert not two_paths.regular(MOBILE)


def test_no_subflow_stays_demoted_at_exit(two_paths: Simulation) -> None:
    two_paths.alarm(MOBILE, AlarmKind.STALL, in_flight=60)
    two_paths.wait(SECOND)
    last = [each.command for each in two_paths.engine.handle(ev.Stopped(), two_paths.now).decisions]
    assert [(each.backup, each.local.ip) for each in last if isinstance(each, SetBackup)] == [
        (False, MOBILE)
    ]


def test_a_closed_connection_is_forgotten(two_paths: Simulation) -> None:
    two_paths.answers[FIBRE] = DEAD
    two_paths.alarm(FIBRE, AlarmKind.NO_PROGRESS)
    two_paths.wait(SECOND)
    two_paths.tell(ev.ConnectionClosed(token=TOKEN))
    closed = two_paths.now
    two_paths.wait(60 * SECOND)
    assert [each for each in two_paths.decisions if each.at > closed + SECOND] == []
    assert two_paths.engine.deadline is None


STEPS = st.lists(
    st.tuples(
        st.sampled_from([FIBRE, MOBILE]),
        st.sampled_from(["dies", "heals", *AlarmKind]),
        st.integers(0, 4000),
    ),
    max_size=25,
)


@settings(max_examples=150)
@given(STEPS)
def test_whatever_happens_a_connection_keeps_a_subflow_and_gets_all_paths_back(
    steps: list[tuple[str, str, int]],
) -> None:
    simulation = Simulation()
    for ip, what, milliseconds in steps:
        if what in ("dies", "heals"):
            simulation.answers[ip] = DEAD if what == "dies" else FINE
        else:
            simulation.alarm(ip, AlarmKind(what))
        simulation.wait(milliseconds * MS)
        assert simulation.connection.usable_subflows()
    simulation.answers = {FIBRE: FINE, MOBILE: FINE}
    simulation.wait(400 * SECOND)
    assert simulation.regular(FIBRE)
    assert simulation.regular(MOBILE)
    assert not simulation.faults
    assert simulation.now > START


def test_a_manually_destroyed_subflow_is_not_replaced_until_a_manual_join_or_a_reload(
    two_paths: Simulation,
) -> None:
    (subflow,) = two_paths.regular(MOBILE)
    destroy = DestroySubflow(
        token=TOKEN, local=subflow.local, remote=subflow.remote, reason="by hand"
    )
    two_paths.tell(ev.CommandAsked(command=destroy))
    two_paths.wait(60 * SECOND)
    two_paths.tell(ev.DefaultRouteAdded(if_index=2, ipv6=False))
    two_paths.tell(ev.LinkChanged(if_index=2, name="other", up=True, running=True))
    two_paths.wait(60 * SECOND)
    assert not two_paths.regular(MOBILE)
    create = CreateSubflow(
        token=TOKEN, local_ip=MOBILE, local_id=9, remote=subflow.remote, reason="by hand"
    )
    two_paths.tell(ev.CommandAsked(command=create))
    two_paths.wait(SECOND)
    assert two_paths.regular(MOBILE)
    # It is looked after again.
    (subflow,) = two_paths.regular(MOBILE)
    two_paths.tell(ev.SubflowClosed(token=TOKEN, local=subflow.local, remote=subflow.remote))
    two_paths.wait(10 * SECOND)
    assert two_paths.regular(MOBILE)


def test_a_join_that_the_kernel_refuses_is_tried_again_with_pauses() -> None:
    simulation = Simulation(mobile=False)
    simulation.errno = errno.EADDRNOTAVAIL
    simulation.tell(ev.LinkChanged(if_index=2, name="mobile", up=True, running=True))
    simulation.tell(ev.LocalAddressChanged(if_index=2, ip=MOBILE, prefix_len=24))
    since = simulation.now
    simulation.wait(10 * SECOND)
    tried = [each.at - since for each in simulation.actions(since)]
    assert len(tried) == 5
    pauses = [later - earlier for earlier, later in pairwise(tried)]
    for pause, longest in zip(pauses, (1, 2, 4, 8), strict=True):
        assert 3 * longest * SECOND // 8 <= pause <= longest * SECOND // 2
    simulation.errno = 0
    # A route is an occasion that does not wait for the pause's end.
    simulation.tell(ev.DefaultRouteAdded(if_index=2, ipv6=False))
    simulation.wait(SECOND)
    assert simulation.regular(MOBILE)


def test_routes_that_come_together_make_one_join() -> None:
    """The second event arrives before the kernel's answer to the join of the first."""
    simulation = Simulation(mobile=False)
    simulation.errno = errno.ENETUNREACH
    simulation.tell(ev.LinkChanged(if_index=2, name="mobile", up=True, running=True))
    simulation.tell(ev.LocalAddressChanged(if_index=2, ip=MOBILE, prefix_len=24))
    simulation.wait(0)
    simulation.errno = 0
    simulation.tell(ev.DefaultRouteAdded(if_index=2, ipv6=False))
    simulation.tell(ev.DefaultRouteAdded(if_index=2, ipv6=False, table=102))
    simulation.wait(SECOND)
    assert len(simulation.regular(MOBILE)) == 1


def test_a_suspect_that_answers_after_all_stays_and_the_one_beside_it_goes() -> None:
    simulation = Simulation(mobile=False)
    (suspect,) = simulation.regular(FIBRE)
    simulation.alarm(FIBRE, AlarmKind.TIMEOUTS)
    simulation.idle_us = 0
    simulation.wait(2 * SECOND)
    assert simulation.connection.usable_subflows() == [suspect]
    simulation.alarm(FIBRE, AlarmKind.TIMEOUTS)
    simulation.wait(2 * SECOND)
    joins = [d for d in simulation.decisions if isinstance(d.command, CreateSubflow)]
    assert len(joins) == 1, "it is trusted for a while"
