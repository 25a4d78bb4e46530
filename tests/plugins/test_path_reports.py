# SPDX-License-Identifier: BSD-3-Clause
"""`adaptive` reports when it leaves a path, how its probes go, and when it uses the path again."""

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.commands import ReportPath
from mptcpd_ebpf.core.measurement import AlarmKind
from mptcpd_ebpf.core.model import SECOND
from mptcpd_ebpf.core.roles import Role
from tests.plugins.simulation import FIBRE, MOBILE, SERVER, TOKEN, Simulation

PATH = (FIBRE, SERVER.ip)


def changes(simulation: Simulation) -> list[ReportPath]:
    return [report for report in simulation.reports if not report.routine]


def left(simulation: Simulation) -> Simulation:
    simulation.wait(SECOND)
    simulation.answers[FIBRE] = lambda: False
    simulation.alarm(FIBRE, AlarmKind.NO_PROGRESS)
    return simulation


def test_a_path_that_is_left_is_away_with_the_reason() -> None:
    simulation = left(Simulation())
    (report,) = changes(simulation)
    assert (report.local_ip, report.remote_ip, report.interface) == (*PATH, "fibre")
    assert (report.state, report.probes_answered, report.probes_needed) == (Role.AWAY, 0, 10)
    assert report.reason.startswith("nothing came back for 120 ms with 4 segments in flight")
    held = simulation.engine.world.paths[PATH]
    assert (held.plugin, held.state, held.since) == ("adaptive", Role.AWAY, simulation.now)


def test_the_return_says_how_long_the_path_was_away() -> None:
    simulation = left(Simulation())
    fell = simulation.now
    simulation.wait(20 * SECOND)
    simulation.answers[FIBRE] = lambda: True
    simulation.wait(10 * SECOND)
    away, back = changes(simulation)
    held = simulation.engine.world.paths[PATH]
    assert (away.state, back.state, held.state) == (
        Role.AWAY,
        Role.ACTIVE,
        Role.ACTIVE,
    )
    assert back.lasted == held.since - fell > 20 * SECOND
    assert back.reason == "10 probes answered"
    progress = [report.probes_answered for report in simulation.reports if report.routine]
    assert progress == list(range(1, 11))


def test_a_failed_probe_starts_the_count_again() -> None:
    simulation = left(Simulation())
    simulation.wait(2 * SECOND)
    simulation.answers[FIBRE] = iter([True, True, *[False] * 9]).__next__
    simulation.wait(4 * SECOND)
    progress = [report.probes_answered for report in simulation.reports if report.routine]
    assert progress == [1, 2, 0]
    assert simulation.engine.world.paths[PATH].probes_answered == 0


def test_a_demoted_path_is_standby_until_the_pause_is_over() -> None:
    simulation = Simulation()
    simulation.wait(SECOND)
    simulation.alarm(MOBILE, AlarmKind.STALL, value=300_000)
    (report,) = changes(simulation)
    assert (report.interface, report.state) == ("mobile", Role.STANDBY)
    simulation.wait(11 * SECOND)
    (restored,) = changes(simulation)[1:]
    assert restored.state is Role.ACTIVE
    assert 10 * SECOND <= restored.lasted < 11 * SECOND


def test_a_path_whose_address_is_removed_is_not_known_any_more() -> None:
    simulation = left(Simulation())
    simulation.tell(ev.LocalAddressRemoved(if_index=1, ip=FIBRE))
    assert [each.state for each in changes(simulation)] == [Role.AWAY, None]
    assert changes(simulation)[-1].reason == "its address was removed"
    assert simulation.engine.world.paths == {}


def test_the_end_of_the_last_connection_ends_the_absence() -> None:
    simulation = left(Simulation())
    simulation.tell(ev.ConnectionClosed(token=TOKEN))
    simulation.wait(SECOND)
    assert [each.state for each in changes(simulation)] == [Role.AWAY, None]
    assert simulation.engine.world.paths == {}
    assert "no connection is left" in changes(simulation)[-1].reason


def test_a_plugin_that_is_excluded_has_no_paths() -> None:
    simulation = left(Simulation())
    simulation.tell(
        ev.PluginExcluded(plugin="adaptive", handler="alarm", error="by the test", call=1)
    )
    assert simulation.engine.world.paths == {}
