# SPDX-License-Identifier: BSD-3-Clause
"""The paths of a host: their state, why, and what they carry."""

from collections.abc import Iterable
from typing import Any

import pytest

from mptcpd_ebpf.cli import monitor, paths, status
from mptcpd_ebpf.cli.ls import filtered
from mptcpd_ebpf.control import paths_view, views
from mptcpd_ebpf.control.paths_view import PEERS, Rates
from mptcpd_ebpf.control.schema import PathView
from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.commands import ReportPath
from mptcpd_ebpf.core.filters import Filter, network
from mptcpd_ebpf.core.measurement import Measurement
from mptcpd_ebpf.core.model import SubflowKey, World
from mptcpd_ebpf.core.roles import Role
from mptcpd_ebpf.core.tracker import Tracker
from tests.core.scenario import FIBRE, RADIO, SECOND, SERVER, START, TOKEN, created, joined
from tests.core.scenario import measured as measured_at

EPOCH_NS = 5 * SECOND
HOST: list[ev.Event] = [
    ev.LinkChanged(if_index=1, name="lo", up=True, running=True, loopback=True),
    ev.LocalAddressChanged(if_index=1, ip="127.0.0.1", prefix_len=8, scope=254),
    ev.LinkChanged(if_index=2, name="fibre", up=True, running=True),
    ev.LocalAddressChanged(if_index=2, ip=FIBRE[0].ip, prefix_len=24),
    ev.LinkChanged(if_index=3, name="radio", up=True, running=True),
    ev.LocalAddressChanged(if_index=3, ip=RADIO[0].ip, prefix_len=24),
]


def tracker(*events: ev.Event) -> Tracker:
    made = Tracker()
    for event in [*HOST, *events]:
        made.apply(event, START)
    return made


def shown(
    world: World, measured: Iterable[Measurement] = (), rates: Rates | None = None
) -> dict[str | None, PathView]:
    """The paths by interface."""
    connections = views.at_present(world, measured)
    subflows = [subflow for each in connections for subflow in each.subflows.values()]
    answer = paths_view.paths(world, subflows, rates or Rates(), EPOCH_NS)
    return {path["interface"]: path for path in answer["paths"]}


def report(key: SubflowKey, state: Role, answered: int = 0, needed: int = 0) -> ReportPath:
    return ReportPath(
        local_ip=key[0].ip,
        remote_ip=key[1].ip,
        state=state,
        reason="silent",
        probes_answered=answered,
        probes_needed=needed,
    )


def test_a_path_without_a_connection_is_unused_and_loopback_is_none() -> None:
    found = shown(tracker().world)
    assert {name: path["state"] for name, path in found.items()} == {
        "fibre": "unused",
        "radio": "unused",
    }
    assert found["fibre"]["srtt_us"] is None
    assert found["fibre"]["sent_bytes_per_s"] is None


def test_a_path_that_carries_data_is_active_with_its_figures() -> None:
    other = (SockAddr(FIBRE[0].ip, 1), SERVER)
    world = tracker(created(), joined(), created(TOKEN + 1, other)).world
    figures = [
        measured_at(FIBRE, START, srtt_us=10_000, segments_out=100, retransmits=3),
        measured_at(other, START, TOKEN + 1, srtt_us=30_000, segments_out=100, retransmits=1),
    ]
    path = shown(world, figures)["fibre"]
    assert (path["state"], path["connections"], path["subflows"]) == ("active", 2, 2)
    assert (path["srtt_us"], path["srtt_max_us"]) == (20_000, 30_000)
    assert (path["retransmits"], path["segments_out"]) == (4, 200)


def test_a_path_that_is_away_has_its_reason_and_its_probes() -> None:
    made = tracker(created(TOKEN, RADIO))
    made.path_reported("adaptive", report(FIBRE, Role.AWAY, 3, 10), START + 7 * SECOND)
    path = shown(made.world)["fibre"]
    assert (path["state"], path["reason"], path["connections"]) == ("away", "silent", 0)
    assert path["since"] == 1012.0
    (peer,) = path["peers"]
    assert (peer["plugin"], peer["probes_answered"], peer["probes_needed"]) == ("adaptive", 3, 10)
    (row,) = paths_view.not_active(made.world, EPOCH_NS)
    assert (row["interface"], row["state"], row["since"]) == ("fibre", "away", 1012.0)
    assert status.path(row).startswith("fibre (10.0.1.2 → 10.0.9.1) away since ")
    assert status.path(row).endswith(", 3 of 10 probes answered: silent")


def test_progress_of_the_probes_does_not_change_since_when_it_is_away() -> None:
    made = tracker()
    made.path_reported("adaptive", report(FIBRE, Role.AWAY, 0, 10), START)
    made.path_reported("adaptive", report(FIBRE, Role.AWAY, 1, 10), START + 9 * SECOND)
    assert shown(made.world)["fibre"]["since"] == 1005.0


@pytest.mark.parametrize(("by_us", "who"), [(True, "this host"), (False, "the peer")])
def test_a_path_with_backup_subflows_alone_is_on_standby(by_us: bool, who: str) -> None:
    made = tracker(created(), joined())
    subflow = made.world.connections[TOKEN].subflows[RADIO]
    subflow.backup, subflow.backup_by_peer = by_us, not by_us
    path = shown(made.world)["radio"]
    assert (path["state"], path["backup_subflows"]) == ("standby", 1)
    assert path["reason"] == f"{who} marked its subflows as backup"


def test_a_path_without_a_carrier_is_down() -> None:
    down = ev.LinkChanged(if_index=2, name="fibre", up=True, running=False)
    assert shown(tracker(created(), down).world)["fibre"]["state"] == "down"


def test_the_peer_that_needs_most_attention_comes_first() -> None:
    others = [(SockAddr(FIBRE[0].ip, n), SockAddr(f"10.0.8.{n}", 80)) for n in range(1, 100)]
    made = tracker(*[created(number, key) for number, key in enumerate(others, start=1)])
    made.path_reported("adaptive", report(others[70], Role.AWAY), START)
    made.path_reported("adaptive", report(others[80], Role.STANDBY), START)
    path = shown(made.world)["fibre"]
    assert path["state"] == "away"
    assert [peer["state"] for peer in path["peers"][:3]] == ["away", "standby", "active"]
    assert (path["peer_count"], len(path["peers"])) == (99, PEERS)


def test_a_path_that_came_back_and_has_no_connection_is_unused() -> None:
    made = tracker()
    made.path_reported("adaptive", report(FIBRE, Role.AWAY), START)
    made.path_reported("adaptive", report(FIBRE, Role.ACTIVE), START)
    path = shown(made.world)["fibre"]
    assert (path["state"], path["peers"]) == ("unused", [])


def test_rates_are_of_the_time_between_two_readings() -> None:
    world = tracker(created()).world
    rates = Rates()

    def read(seconds: float, sent: int, received: int, cookie: int = 1) -> PathView:
        at = START + round(seconds * SECOND)
        reading = [measured_at(FIBRE, at, bytes_sent=sent, bytes_received=received, cookie=cookie)]
        rates.read(reading, at)
        return shown(world, reading, rates)["fibre"]

    assert read(0, 1000, 5000)["sent_bytes_per_s"] is None
    path = read(2, 3000, 15_000)
    assert (path["sent_bytes_per_s"], path["received_bytes_per_s"]) == (1000, 5000)
    # Too soon after the last reading: compared with the one before.
    assert read(2.1, 3000, 15_000)["sent_bytes_per_s"] == pytest.approx(2000 / 2.1)
    assert read(200, 3000, 15_000)["sent_bytes_per_s"] is None
    assert read(201, 5000, 15_000, cookie=2)["sent_bytes_per_s"] is None


def test_the_table_tells_why_a_path_is_not_active() -> None:
    made = tracker(created(TOKEN, RADIO))
    made.path_reported("adaptive", report(FIBRE, Role.AWAY, 3, 10), START)
    answer = paths_view.paths(
        made.world, made.world.connections[TOKEN].subflows.values(), Rates(), EPOCH_NS
    )
    lines = paths.table(answer)
    assert lines[0].split()[:3] == ["PATH", "ADDRESS", "STATE"]
    assert lines[1].split()[:5] == ["fibre", "10.0.1.2", "away", "1", "0"]
    assert lines[2].startswith("  to 10.0.9.1: away since ")
    assert lines[2].endswith(", 3 of 10 probes answered: silent")
    assert lines[3].split()[:3] == ["radio", "10.0.2.2", "active"]
    assert max(map(len, (lines[0], lines[1], lines[3]))) <= 80


@pytest.mark.parametrize(
    ("only", "locals_"),
    [
        (Filter(), [FIBRE, RADIO]),
        (Filter(token="1a2b"), [FIBRE, RADIO]),
        (Filter(token="ff"), []),
        (Filter(interface="fib*"), [FIBRE]),
        (Filter(address=network(RADIO[0].ip)), [RADIO]),
        (Filter(address=network(SERVER.ip)), [FIBRE, RADIO]),
        (Filter(state="backup"), [RADIO]),
        (Filter(process="curl"), []),
    ],
)
def test_ls_shows_what_the_filter_fits(only: Filter, locals_: list[SubflowKey]) -> None:
    world = tracker(created(), joined(backup=True)).world
    answer = filtered(views.connections(world, EPOCH_NS), only)
    found = [each["local"] for c in answer["connections"] for each in c["subflows"]]
    assert found == [str(local) for local, _ in locals_]


@pytest.mark.parametrize(
    ("only", "fits"),
    [
        (Filter(token="1a2b"), [True, False, True]),
        (Filter(address=network("10.0.2.2")), [True, False, False]),
        (Filter(address=network("10.0.1.0/24")), [False, False, True]),
        (Filter(interface="fibre"), [False, True, True]),
    ],
)
def test_monitor_shows_what_the_filter_fits(only: Filter, fits: list[bool]) -> None:
    decision: dict[str, Any] = {
        "event": "Decision",
        "token": "1a2b3c4d",
        "command": {"local_ip": FIBRE[0].ip, "interface": "fibre"},
    }
    records = [views.event(joined()), views.event(HOST[2]), decision]
    assert [monitor.fits(record, only) for record in records] == fits
