# SPDX-License-Identifier: BSD-3-Clause
"""Each fault has its effect on real MPTCP connections, and `heal` removes it."""

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from mptcpd_ebpf.kernel import counters
from mptcpd_ebpf.lab import (
    Bottleneck,
    Host,
    Lab,
    LabError,
    LivePath,
    Path,
    RequestResponse,
    Running,
    RunningSchedule,
    Step,
)
from mptcpd_ebpf.lab.kernel_path_manager import add_endpoint
from mptcpd_ebpf.lab.schedule import End
from mptcpd_ebpf.lab.traffic import RequestResponseResult
from tests.waiting import SLOWNESS, until

Make = Callable[..., Lab]
IPS = ["4", "6", "both"]
TWO = [Path(delay_ms=2), Path(delay_ms=4)]
SECOND_FASTER = [Path(delay_ms=20), Path(delay_ms=1, nat=True)]
"""The scheduler sends most on the second path."""


def mib(host: Host) -> dict[str, int]:
    """The MPTcpExt counters of a host."""
    with host.entered():
        return counters.read()


def join_over_second_path(lab: Lab) -> None:
    add_endpoint(lab.client, lab.paths[1].client_ip, "subflow")


def joining(lab: Lab) -> int:
    """How many SYNs of the second path wait for an answer; not every kernel counts joins sent."""
    source = lab.paths[1].client_ip
    argv = ["ss", "-Htn", "state", "syn-sent", "src", f"[{source}]" if ":" in source else source]
    return lab.client.run(argv).stdout.count("\n")


def start_joined(lab: Lab) -> Running[RequestResponseResult]:
    """Requests over a connection with a subflow on each path."""
    join_over_second_path(lab)
    running = lab.start(RequestResponse(interval_ms=10))
    lab.paths[1].wait_for_subflow(10 * SLOWNESS)
    return running


def reachable(lab: Lab, path: int) -> bool:
    live = lab.paths[path]
    argv = ["ping", "-n", "-c", "1", "-W", "1", "-I", live.client_ip, live.server_ip]
    return lab.client.run(argv, check=False).returncode == 0


def flags_of(host: Host, interface: str) -> str:
    return host.run(["ip", "-br", "link", "show", "dev", interface], check=False).stdout


def has_carrier(host: Host, interface: str) -> bool:
    """By LOWER_UP: NO-CARRIER may follow a second later, where both ends of a veth have the
    same index by chance (linkwatch_urgent_event in net/core/link_watch.c)."""
    flags = flags_of(host, interface)
    assert flags, f"no {interface}"
    return "LOWER_UP" in flags


@pytest.mark.parametrize("ip", IPS)
def test_only_the_host_that_lost_its_carrier_notices(make_mptcp_lab: Make, ip: str) -> None:
    lab = make_mptcp_lab(TWO, ip=ip)
    path = lab.paths[0]
    path.carrier(False)
    assert not has_carrier(lab.client, path.client_if)
    assert has_carrier(lab.server, path.server_if)
    assert not reachable(lab, 0)
    assert reachable(lab, 1)
    path.carrier(True)
    assert has_carrier(lab.client, path.client_if)
    until(lambda: reachable(lab, 0), "the path is back")
    path.carrier(False, end="server")
    assert not has_carrier(lab.server, path.server_if)
    path.heal()
    until(lambda: reachable(lab, 0), "the path is back")


@pytest.mark.parametrize("ip", IPS)
def test_a_removed_address_is_gone_and_comes_back_with_its_routes(
    make_mptcp_lab: Make, ip: str
) -> None:
    lab = make_mptcp_lab(TWO, ip=ip)
    path = lab.paths[1]

    def state() -> list[str]:
        return [
            lab.client.run(["ip", family, *what]).stdout
            for family in ("-4", "-6")
            for what in (["rule"], ["route", "show", "table", "all", "proto", "boot"])
        ]

    before = state()
    path.remove_address()
    assert path.client_ip not in lab.client.run(["ip", "address"]).stdout
    path.remove_address()
    path.restore_address()
    assert state() == before
    assert reachable(lab, 1)


def test_a_removed_interface_is_gone_and_comes_back_impaired_as_before(
    make_mptcp_lab: Make,
) -> None:
    lab = make_mptcp_lab([Path(delay_ms=5, rate_mbit=20), Path()])
    path = lab.paths[0]

    def qdiscs() -> list[str]:
        return sorted(path.router.run(["tc", "qdisc"]).stdout.splitlines())

    before = qdiscs()
    path.remove_interface()
    assert path.client_if not in lab.client.run(["ip", "link"]).stdout
    path.set(rate_mbit=30)
    path.restore_interface()
    assert reachable(lab, 0)
    assert [line.replace("30Mbit", "20Mbit") for line in qdiscs()] == before


@pytest.mark.parametrize("ip", IPS)
def test_a_restarted_router_takes_both_carriers_and_works_afterwards(
    make_mptcp_lab: Make, ip: str
) -> None:
    lab = make_mptcp_lab([Path(delay_ms=1), Path(delay_ms=1, nat=True)], ip=ip)
    path = lab.paths[1]
    path.power_off_router()
    assert not has_carrier(lab.client, path.client_if)
    assert not has_carrier(lab.server, path.server_if)
    assert not reachable(lab, 1)
    path.power_on_router()
    until(lambda: reachable(lab, 1), "the path is back")


def check_links(lab: Lab, path: LivePath) -> None:
    """The path's links and addresses are as all its faults together require."""
    faults, shared = path.faults, path.path.bottleneck is not None
    carriers = {
        "client": not (faults.router_off or "client" in faults.carrier_off),
        "server": not ((faults.router_off and not shared) or "server" in faults.carrier_off),
    }
    for end, host, interface, ip in (
        ("client", lab.client, path.client_if, path.client_ip),
        ("server", lab.server, path.server_if, path.server_ip),
    ):
        removed = end == "client" and faults.interface_removed
        assert bool(flags_of(host, interface)) is not removed
        if not removed:
            assert has_carrier(host, interface) is carriers[end], (end, faults)
        there = f" {ip}/" in host.run(["ip", "address"]).stdout
        assert there is not (removed or end in faults.address_removed), (end, faults)


@pytest.mark.parametrize(
    ("fields", "bottleneck"), [({"nat": True}, False), ({"bottleneck": "isp"}, True)]
)
@pytest.mark.parametrize("ip", ["4", "both"])
def test_faults_can_be_combined_in_any_order(
    make_mptcp_lab: Make, fields: dict[str, Any], bottleneck: bool, ip: str
) -> None:
    necks = [Bottleneck(name="isp", delay_ms=1)] if bottleneck else []
    paths = [Path(delay_ms=1, rate_mbit=50, **fields), Path()]
    lab = make_mptcp_lab(paths, bottlenecks=necks, ip=ip)
    path = lab.paths[0]
    kinds: list[Callable[[], object]] = [
        path.remove_interface,
        path.restore_interface,
        path.power_off_router,
        path.power_on_router,
    ]
    ends: list[End] = ["client", "server"]
    for end in ends:
        kinds += [
            partial(path.carrier, False, end=end),
            partial(path.carrier, True, end=end),
            partial(path.remove_address, end=end),
            partial(path.restore_address, end=end),
        ]
    # A seed, so that a failure can be reproduced.
    for kind in random.Random(f"{fields} {ip}").choices(kinds, k=30):
        kind()
        check_links(lab, path)
    path.heal()
    check_links(lab, path)
    until(lambda: reachable(lab, 0), "the path is back")


def test_the_paths_of_a_bottleneck_share_only_the_servers_interface(
    make_mptcp_lab: Make,
) -> None:
    one, other = (Path(name=name, delay_ms=1, bottleneck="isp") for name in ("one", "other"))
    lab = make_mptcp_lab([one, other], bottlenecks=[Bottleneck(name="isp")])
    lab.paths[0].power_off_router()
    assert has_carrier(lab.server, "isp")
    assert not reachable(lab, 0)
    assert reachable(lab, 1)
    lab.paths[0].power_on_router()
    until(lambda: reachable(lab, 0), "the path is back")
    lab.paths[0].carrier(False, end="server")
    assert not has_carrier(lab.server, "isp")
    assert lab.paths[1].faults.carrier_off == {"server"}
    lab.paths[1].carrier(True, end="server")
    assert lab.paths[0].faults.carrier_off == frozenset()
    for number in (0, 1):
        until(lambda number=number: reachable(lab, number), "the path is back")  # type: ignore[misc]


def drop_joins_until_healed(lab: Lab) -> None:
    """Only the second path's joins are dropped; after `heal` the join succeeds."""
    lab.paths[1].drop_mptcp("mp-join")
    running = lab.start(RequestResponse(interval_ms=10))
    until(lambda: joining(lab) == 1, "the client tries to join")
    assert mib(lab.server)["MPJoinSynRx"] == 0
    lab.paths[1].heal()
    until(lambda: mib(lab.server)["MPJoinAckRx"] == 1, "the join is tried again and succeeds")
    assert running.stop().unanswered == 0


def test_options_are_dropped_and_stripped_on_a_path_through_a_bottleneck(
    make_mptcp_lab: Make,
) -> None:
    paths = [Path(delay_ms=1), Path(delay_ms=1, bottleneck="isp")]
    lab = make_mptcp_lab(paths, bottlenecks=[Bottleneck(name="isp", delay_ms=1)], ip="both")
    join_over_second_path(lab)
    drop_joins_until_healed(lab)
    lab.paths[1].strip_mptcp()
    assert lab.start(RequestResponse(count=2, path=1, interval_ms=5)).token is None
    lab.bottlenecks["isp"].blackhole()
    assert not reachable(lab, 1)


def test_two_threads_may_change_a_lab_at_the_same_time(make_mptcp_lab: Make) -> None:
    lab = make_mptcp_lab(TWO)
    rounds = 2 * max(5, round(30 / SLOWNESS))
    path = lab.paths[0]

    def rates() -> None:
        for number in range(rounds):
            path.set(rate_mbit=None if number % 2 else 10)

    def delays() -> None:
        for number in range(rounds):
            path.set(delay_ms=number % 9)
            lab.paths[1].set(delay_ms=number % 9)

    with ThreadPoolExecutor() as threads:
        for running in [threads.submit(kind) for kind in (rates, rates, delays, delays)]:
            running.result()
    assert path.up.rate_mbit is None
    assert path.up.delay_ms == (rounds - 1) % 9
    assert reachable(lab, 0)


def test_heal_removes_all_faults(make_mptcp_lab: Make) -> None:
    lab = make_mptcp_lab([Path(delay_ms=2, rate_mbit=50), Path()], ip="both")
    path = lab.paths[0]
    path.set(loss_percent=50)
    path.remove_address()
    path.carrier(False, end="server")
    path.remove_interface()
    path.power_off_router()
    path.strip_mptcp()
    path.drop_mptcp("mp-join")
    path.blackhole()
    path.heal()
    until(lambda: reachable(lab, 0), "the path is back")
    assert lab.start(RequestResponse(count=5, interval_ms=5)).result().unanswered == 0
    assert path.up.loss_percent == 0
    assert path.blackholed == (False, False)


@pytest.mark.parametrize(("direction", "ip"), [("up", "4"), ("down", "4"), ("up", "6")])
def test_stripped_options_make_a_connection_fall_back(
    make_mptcp_lab: Make, direction: str, ip: str
) -> None:
    lab = make_mptcp_lab(TWO, ip=ip)
    lab.paths[0].strip_mptcp(direction)  # type: ignore[arg-type]
    running = lab.start(RequestResponse(count=5, interval_ms=5))
    assert running.token is None
    assert running.result().unanswered == 0
    lab.paths[0].heal()
    running = lab.start(RequestResponse(count=5, interval_ms=5))
    assert running.token is not None
    running.result()


@pytest.mark.parametrize("ip", ["4", "6"])
def test_only_joins_are_dropped(make_mptcp_lab: Make, ip: str) -> None:
    lab = make_mptcp_lab(TWO, ip=ip)
    join_over_second_path(lab)
    drop_joins_until_healed(lab)


def test_only_announcements_are_dropped(make_mptcp_lab: Make) -> None:
    lab = make_mptcp_lab(TWO)
    add_endpoint(lab.server, lab.paths[1].server_ip, "signal")
    lab.paths[0].drop_mptcp("add-addr")
    running = lab.start(RequestResponse(count=20, interval_ms=5))
    until(lambda: mib(lab.server).get("AddAddrTx", 1) >= 1, "the server announces")
    assert running.result().unanswered == 0
    assert mib(lab.client)["AddAddr"] == 0
    lab.paths[0].heal()
    lab.start(RequestResponse(count=20, interval_ms=5)).result()
    assert mib(lab.client)["AddAddr"] == 1


def test_unknown_options_are_refused(make_mptcp_lab: Make) -> None:
    lab = make_mptcp_lab(TWO)
    with pytest.raises(LabError, match="no MPTCP option 'mp-jion'"):
        lab.paths[0].drop_mptcp("mp-jion")


@pytest.mark.parametrize("ip", ["4", "6"])
def test_a_forged_reset_ends_one_subflow_and_not_the_connection(
    make_mptcp_lab: Make, ip: str
) -> None:
    lab = make_mptcp_lab(SECOND_FASTER, ip=ip)
    running = start_joined(lab)
    hit = 0
    while lab.paths[1].subflows():
        hit += lab.paths[1].inject_resets(within_s=0.5)
    assert hit >= 1
    assert lab.paths[0].subflows() == 1
    assert running.stop().unanswered == 0


@pytest.mark.parametrize(("ip", "tool"), [("4", "iptables"), ("6", "ip6tables")])
def test_packets_behind_an_expired_nat_binding_are_dropped(
    make_mptcp_lab: Make, ip: str, tool: str
) -> None:
    lab = make_mptcp_lab(SECOND_FASTER, ip=ip)
    running = start_joined(lab)
    router = lab.paths[1].router
    peers = lab.server.run(["ss", "-Htn", "state", "established"]).stdout
    assert lab.paths[1].client_ip not in peers
    assert lab.paths[1].expire_nat() >= 1

    def dropped() -> bool:
        rule = router.run([tool, "-nvxL", "FORWARD"]).stdout.splitlines()[2]
        return int(rule.split()[0]) > 0

    until(dropped, "a packet without a binding is dropped")
    assert running.stop().unanswered == 0
    with pytest.raises(LabError, match="path0 has no NAT"):
        lab.paths[0].expire_nat()


def test_steps_are_taken_in_time(make_mptcp_lab: Make) -> None:
    lab = make_mptcp_lab(TWO)
    running = lab.schedule(
        [
            Step(at=0.2, fault="heal"),
            Step(at=0.1, path="path1", fault="carrier-off", end="server"),
            Step(at=0.1, path="path1", set={"delay_ms": 9}, direction="up"),
            Step(at=0.0, fault="blackhole"),
        ]
    )
    began = time.monotonic_ns()
    done = running.wait(10 * SLOWNESS)
    assert [step.at for _, step in done] == [0.0, 0.1, 0.1, 0.2]
    assert all(when >= began + (step.at - 0.1) * 1e9 for when, step in done)
    assert lab.paths[1].faults.carrier_off == {"server"}
    assert (lab.paths[1].up.delay_ms, lab.paths[1].down.delay_ms) == (9, 4)
    assert lab.paths[0].blackholed == (False, False)


def test_an_impossible_schedule_is_refused_before_it_starts(make_mptcp_lab: Make) -> None:
    lab = make_mptcp_lab(TWO)
    for step, words in (
        (Step(at=1), "give either set or fault"),
        (Step(at=1, fault="flood"), "no fault 'flood'"),
        (Step(at=-1, fault="heal"), r"schedule\[0\]\.at: -1 is not in 0"),
        (Step(at=1, path="dsl", fault="heal"), "there is no path 'dsl'"),
        (Step(at=1, set={"loss": 3}), r"set\.loss: a path has no such field"),
    ):
        with pytest.raises(LabError, match=words):
            lab.schedule([step])
    lab.paths[0].set(delay_ms=50)
    lab.schedule([Step(at=0, set={"jitter_ms": 40})]).wait()


def schedule_that_fails(lab: Lab) -> RunningSchedule:
    """A schedule whose first step is valid when it is checked, and invalid when it is taken."""
    with lab.paths[0].lock:
        steps = [Step(at=0, set={"jitter_ms": 15}), Step(at=0.1, fault="heal")]
        running = lab.schedule(steps)
        lab.paths[0].set(delay_ms=10)
    return running


def test_a_failed_step_is_raised_when_the_lab_ends() -> None:
    def run() -> None:
        with Lab([Path(delay_ms=20)]) as lab:
            running = schedule_that_fails(lab)
            until(lambda: running.state()["error"] is not None, "the step fails")

    words = r"stopped at 0 s, 1 step\(s\) before its end: 0: set: .*jitter_ms: 15 is above"
    with pytest.raises(LabError, match=words):
        run()


def test_a_failed_step_is_raised_once() -> None:
    with Lab([Path(delay_ms=20)]) as lab:
        running = schedule_that_fails(lab)
        with pytest.raises(LabError, match="the schedule stopped at 0 s"):
            running.wait(10 * SLOWNESS)
