# SPDX-License-Identifier: BSD-3-Clause
"""Where new connections start: `Steering` in the engine, against a network that the test breaks."""

import errno
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.commands import Command, Decision, ProbePath, SteerNewConnections
from mptcpd_ebpf.core.engine import STEERING, Engine
from mptcpd_ebpf.core.model import Connection, Subflow
from mptcpd_ebpf.core.plugin import Context, Plugin
from mptcpd_ebpf.core.trials import Trials
from mptcpd_ebpf.testing import configured
from tests.core.scenario import (
    FIBRE,
    MS,
    RADIO,
    SECOND,
    SERVER,
    START,
    TOKEN,
    StartedEngine,
    alarm,
    connect,
    created,
    gone,
    joined,
    measured,
)

FIBRE_IP, RADIO_IP, CABLE_IP = "10.0.1.2", "10.0.2.2", "10.0.3.2"
FIBRE_IP6, RADIO_IP6 = "2001:db8:1::2", "2001:db8:2::2"
NAMES = {2: "fibre", 3: "radio", 4: "cable"}
OTHER = SockAddr("192.0.2.7", 443)


def link(if_index: int, running: bool = True) -> ev.LinkChanged:
    return ev.LinkChanged(if_index=if_index, name=NAMES[if_index], up=True, running=running)


def route(if_index: int, metric: int, table: int = 254, ipv6: bool = False) -> ev.DefaultRouteAdded:
    return ev.DefaultRouteAdded(if_index=if_index, ipv6=ipv6, metric=metric, table=table)


def lost_route(if_index: int, metric: int) -> ev.DefaultRouteRemoved:
    return ev.DefaultRouteRemoved(if_index=if_index, ipv6=False, metric=metric)


def unanswered(
    remote: SockAddr = SERVER,
    local_ip: str = FIBRE_IP,
    last: SockAddr | None = None,
    began_at: int = START,
) -> ev.StartUnanswered:
    return ev.StartUnanswered(
        local_ip=local_ip, remote=remote, began_at=began_at, last_answered=last
    )


class Abandoning(Plugin):
    """Abandons the path of every alarm."""

    name = "abandoning"

    def __init__(self) -> None:
        super().__init__()
        self.restore()

    def restore(self) -> None:
        self.trials = Trials(pause=MS, longest_pause=MS, take_back=lambda *_: iter(()))

    def alarm(
        self, ctx: Context, connection: Connection, subflow: Subflow, alarm: ev.AlarmRaised
    ) -> Iterator[Command]:
        yield from self.trials.put(ctx, subflow, "nothing came back", 10)


class Machine:
    """Two uplinks, fibre first, and what answers over them."""

    def __init__(self, *plugins: Plugin, steers: bool = True, **config: Any) -> None:
        if plugins:
            config["default_plugin"] = plugins[0].name
        self.engine = StartedEngine(*plugins, steers=steers, **config)
        self.now = START
        self.dead_paths: set[str] = set()
        """Local addresses over which nothing is answered."""
        self.dead_hosts: set[str] = set()
        self.errno = 0
        """The kernel's answer to commands…"""
        self.probe_errno = 0
        """…and to probes."""
        self.starts: dict[bool, str | None] = {}
        """What the kernel was told, by whether IPv6."""
        self.decisions: list[Decision] = []
        self.tell(link(2), link(3))
        for if_index, ip in ((2, FIBRE_IP), (3, RADIO_IP)):
            self.address(if_index, ip)
        self.tell(route(2, 100), route(3, 600))

    def address(self, if_index: int, ip: str, *, temporary: bool = False) -> None:
        self.tell(
            ev.LocalAddressChanged(if_index=if_index, ip=ip, prefix_len=24, temporary=temporary)
        )

    def tell(self, *events: ev.Event) -> None:
        waiting = list(events)
        while waiting:
            outcome = self.engine.handle(waiting.pop(0), self.now)
            self.decisions += [made for made in outcome.decisions if made.plugin == STEERING]
            for made in [each for each in outcome.decisions if each.refused is None]:
                command = made.command
                code = self.probe_errno if isinstance(command, ProbePath) else self.errno
                waiting.append(ev.CommandAnswered(decision_id=made.id, errno=code))
                if isinstance(command, SteerNewConnections):
                    self.starts[command.ipv6] = command.local_ip
                elif isinstance(command, ProbePath) and not code and self.answers(command):
                    waiting.append(ev.PathProbed(decision_id=made.id, rtt_us=9000, size=60))

    def answers(self, probe: ProbePath) -> bool:
        return probe.local_ip not in self.dead_paths and probe.remote.ip not in self.dead_hosts

    def wait(self, nanoseconds: int) -> None:
        until = self.now + nanoseconds
        while (deadline := self.engine.deadline) is not None and deadline <= until:
            self.now = max(self.now, deadline)
            self.tell(ev.Tick())
        self.now = until

    @property
    def start(self) -> str | None:
        """Where a new IPv4 connection starts; None: on the default route."""
        return self.starts.get(False)

    @property
    def probes(self) -> int:
        return sum(isinstance(made.command, ProbePath) for made in self.decisions)


def test_while_all_works_nothing_is_decided() -> None:
    machine = Machine()
    machine.wait(10 * SECOND)
    assert machine.decisions == []


def test_a_link_without_carrier_is_avoided_until_it_is_back() -> None:
    machine = Machine()
    machine.tell(link(2, running=False))
    assert machine.start == RADIO_IP
    (made,) = machine.decisions
    assert made.command.reason == "the default route's link fibre is down"
    assert (made.cause.event, made.cause.rule) == ("LinkChanged", "path-does-not-work")
    assert machine.engine.steering.steered[False].interface == "radio"
    machine.tell(link(2))
    assert machine.start is None
    assert machine.engine.steering.steered == {}


def test_another_default_route_takes_over_without_us() -> None:
    machine = Machine()
    machine.tell(link(2, running=False), lost_route(2, 100))
    assert machine.start is None


def test_a_lost_default_route_is_replaced_by_that_of_another_table() -> None:
    machine = Machine()
    machine.tell(lost_route(3, 600), route(3, 0, table=102))
    assert machine.decisions == []
    machine.tell(lost_route(2, 100))
    assert machine.start == RADIO_IP
    machine.tell(route(2, 100))
    assert machine.start is None


def test_a_machine_that_never_had_a_default_route_keeps_none() -> None:
    engine = StartedEngine(steers=True)
    address = ev.LocalAddressChanged(if_index=3, ip=RADIO_IP, prefix_len=24)
    for event in (link(3), address, route(3, 0, table=102)):
        assert engine.handle(event, START).decisions == []


def test_an_unanswered_start_that_another_path_answers_is_the_path_s_fault() -> None:
    machine = Machine()
    machine.dead_paths = {FIBRE_IP}
    machine.tell(unanswered())
    machine.wait(2 * SECOND)
    assert machine.start == RADIO_IP
    assert machine.engine.steering.steered[False].reason == (
        "the default route's path over fibre does not work: 10.0.9.1:443 does not answer there, "
        "and does on another path"
    )


def test_it_is_back_within_seconds_after_it_was_away_for_long() -> None:
    machine = Machine()
    machine.dead_paths = {FIBRE_IP}
    machine.tell(unanswered())
    machine.wait(600 * SECOND)
    assert machine.start == RADIO_IP
    assert machine.probes < 200, "one every four seconds"
    machine.dead_paths.clear()
    machine.wait(6 * SECOND)
    assert machine.start is None
    made = len(machine.decisions)
    machine.wait(60 * SECOND)
    assert len(machine.decisions) == made


def test_only_consecutive_answered_probes_end_an_outage() -> None:
    machine = Machine()
    machine.dead_paths = {FIBRE_IP}
    machine.tell(unanswered())
    machine.wait(2 * SECOND)
    turn = itertools.count()

    def twice_then_not(probe: ProbePath) -> bool:  # noqa: ARG001
        return next(turn) % 3 < 2

    machine.answers = twice_then_not  # type: ignore[method-assign]
    machine.wait(60 * SECOND)
    assert machine.start == RADIO_IP
    assert next(turn) > 20


def test_nothing_is_known_of_an_address_that_comes_back() -> None:
    machine = Machine()
    machine.dead_paths = {FIBRE_IP}
    machine.tell(unanswered())
    machine.wait(2 * SECOND)
    machine.tell(ev.LocalAddressRemoved(if_index=2, ip=FIBRE_IP))
    machine.address(2, FIBRE_IP)
    assert machine.start is None


def test_a_destination_that_answers_nowhere_is_no_evidence() -> None:
    machine = Machine()
    machine.dead_hosts = {SERVER.ip}
    machine.tell(unanswered())
    machine.wait(3 * SECOND)
    probes = machine.probes
    assert probes == 2
    machine.tell(unanswered())
    machine.wait(3 * SECOND)
    assert (machine.start, machine.probes) == (None, probes)


def test_a_lost_syn_is_no_evidence() -> None:
    machine = Machine()
    machine.tell(unanswered())
    machine.wait(3 * SECOND)
    assert machine.start is None
    machine.dead_paths = {FIBRE_IP}
    machine.tell(unanswered(), unanswered())
    assert machine.probes == 2 + 2, "one suspicion at a time"
    machine.wait(3 * SECOND)
    assert machine.start == RADIO_IP, "the destination itself is not suspected"


@pytest.mark.parametrize(
    ("second", "at_once"),
    [
        (unanswered(began_at=START + 1), True),
        (unanswered(OTHER, began_at=START + 1), True),
        (unanswered(), False),  # the same SYN once more
    ],
)
def test_a_second_unanswered_start_needs_no_further_proof(second: ev.Event, at_once: bool) -> None:
    machine = Machine()
    machine.dead_paths = {FIBRE_IP}
    machine.tell(unanswered())
    assert machine.start is None
    machine.tell(second)
    assert (machine.start == RADIO_IP) is at_once
    machine.wait(2 * SECOND)
    assert machine.start == RADIO_IP


def test_a_second_start_to_the_same_destination_does_not_replace_the_one_that_answered() -> None:
    machine = Machine()
    machine.dead_paths = {FIBRE_IP}
    machine.tell(unanswered(last=OTHER), unanswered(last=OTHER, began_at=START + 1))
    assert machine.start is None
    machine.tell(unanswered(SockAddr("192.0.2.8", 1), last=OTHER, began_at=START + 2))
    assert machine.start == RADIO_IP


def test_nothing_is_concluded_before_the_other_path_answers() -> None:
    machine = Machine()
    machine.dead_paths = {FIBRE_IP, RADIO_IP}
    machine.tell(unanswered(), unanswered(OTHER, began_at=START + 1))
    machine.wait(2 * SECOND)
    assert machine.start is None


def test_the_path_works_if_a_destination_that_answered_before_still_does() -> None:
    machine = Machine()
    machine.dead_hosts = {SERVER.ip}
    answers = machine.answers

    def only_by_radio(probe: ProbePath) -> bool:
        return answers(probe) or (probe.remote == SERVER and probe.local_ip == RADIO_IP)

    machine.answers = only_by_radio  # type: ignore[method-assign]
    machine.tell(unanswered(last=OTHER))
    machine.wait(3 * SECOND)
    assert machine.start is None
    assert machine.probes == 3


def test_a_start_that_the_application_bound_elsewhere_is_no_evidence() -> None:
    machine = Machine()
    machine.dead_paths = {RADIO_IP}
    machine.tell(unanswered(local_ip=RADIO_IP))
    machine.wait(3 * SECOND)
    assert machine.decisions == []


def abandoned() -> tuple[Machine, Abandoning]:
    """A machine whose plugin has abandoned the fibre's path to the server."""
    plugin = Abandoning()
    machine = Machine(plugin)
    connect(machine.engine, RADIO, now=machine.now)
    machine.tell(created(8, (SockAddr(FIBRE_IP, 40008), OTHER)))
    machine.wait(SECOND)
    machine.dead_paths = {FIBRE_IP}
    machine.tell(alarm(measured(FIBRE, at=machine.now)))
    assert machine.start == RADIO_IP
    return machine, plugin


def test_a_path_that_a_plugin_abandoned_is_avoided() -> None:
    machine, plugin = abandoned()
    reason = machine.engine.steering.steered[False].reason
    assert reason == "the default route's path over fibre does not work: nothing came back"
    machine.wait(20 * SECOND)
    machine.tell(ev.Tick())
    assert machine.probes == 0, "the plugin probes it itself"
    plugin.restore()
    machine.dead_paths.clear()
    machine.wait(SECOND)
    machine.tell(ev.Tick())
    machine.wait(SECOND)
    assert machine.start is None


def test_it_stays_avoided_without_a_connection_that_could_show_it() -> None:
    machine, plugin = abandoned()
    plugin.restore()
    machine.tell(gone(TOKEN))
    machine.wait(60 * SECOND)
    assert machine.start == RADIO_IP
    machine.dead_paths.clear()
    machine.wait(6 * SECOND)
    assert machine.start is None


def test_one_peer_s_path_is_not_everyone_s() -> None:
    machine, _ = abandoned()
    machine.wait(SECOND)
    machine.tell(created(7, (SockAddr(FIBRE_IP, 40009), OTHER)))
    machine.dead_paths.clear()
    machine.wait(3 * SECOND)
    assert machine.start is None, "another peer answered on it since"


def test_a_join_of_the_same_peer_does_not_refute_it() -> None:
    machine, _ = abandoned()
    machine.wait(SECOND)
    machine.tell(joined((SockAddr(FIBRE_IP, 40010), SERVER)))
    machine.wait(3 * SECOND)
    assert machine.start == RADIO_IP
    assert machine.probes == 0


def test_an_interface_that_is_not_allowed_is_left_alone() -> None:
    for denied in ("fibre", "radio"):
        machine = Machine(denied_interfaces=[denied])
        machine.tell(link(2, running=False))
        assert machine.decisions == []


@pytest.mark.parametrize("temporary", [False, True])
def test_families_are_steered_apart(temporary: bool) -> None:
    machine = Machine()
    for if_index, ip in ((2, FIBRE_IP6), (3, "fd00::2"), (3, "2001:db8:2::1")):
        machine.address(if_index, ip)
    if temporary:
        machine.address(3, RADIO_IP6, temporary=True)
    machine.tell(route(2, 100, ipv6=True), route(3, 600, ipv6=True))
    machine.dead_paths = {FIBRE_IP6}
    machine.tell(unanswered(SockAddr("2001:db8:9::1", 443), FIBRE_IP6))
    machine.wait(2 * SECOND)
    assert machine.starts == {True: RADIO_IP6 if temporary else "2001:db8:2::1"}


def test_the_next_path_follows_when_the_other_fails_too() -> None:
    machine = Machine()
    machine.tell(link(4), route(4, 300))
    machine.address(4, CABLE_IP)
    machine.tell(link(2, running=False))
    assert machine.start == CABLE_IP, "the lower metric"
    machine.dead_paths = {CABLE_IP}
    machine.tell(unanswered(local_ip=CABLE_IP))
    machine.wait(2 * SECOND)
    assert machine.start == RADIO_IP
    machine.dead_paths.clear()
    machine.wait(10 * SECOND)
    assert machine.start == RADIO_IP, "it stays as long as it works"
    machine.tell(link(3, running=False))
    assert machine.start == CABLE_IP
    machine.tell(link(4, running=False))
    assert machine.start is None
    assert machine.decisions[-1].command.reason == "no other path is usable"


def test_an_uplink_that_fails_again_and_again_must_prove_itself_longer() -> None:
    machine = Machine()
    lasted: list[int] = []
    for _ in range(5):
        machine.dead_paths = {FIBRE_IP}
        machine.tell(unanswered())
        machine.wait(2 * SECOND)
        assert machine.start == RADIO_IP
        machine.dead_paths.clear()
        healed = machine.now
        while machine.start is not None:
            machine.wait(10 * MS)
        lasted.append(machine.now - healed)
    assert max(lasted[:2]) < 3 * SECOND < min(lasted[3:])
    assert max(lasted) < 10 * SECOND


def test_what_cannot_be_carried_out_is_tried_again_later() -> None:
    machine = Machine()
    machine.errno = errno.ENOSPC
    machine.tell(link(2, running=False))
    machine.tell(link(4))
    assert len(machine.decisions) == 1
    assert machine.engine.steering.steered == {}
    machine.errno = 0
    machine.wait(20 * SECOND)
    machine.tell(ev.Tick())
    assert machine.start == RADIO_IP
    assert len(machine.decisions) == 2


def test_without_the_capability_to_probe_a_plugin_s_word_is_taken() -> None:
    machine, plugin = abandoned()
    machine.probe_errno = errno.EPERM
    plugin.restore()
    machine.tell(ev.Tick())
    machine.wait(SECOND)
    assert machine.start is None
    machine.tell(unanswered())
    machine.wait(SECOND)
    assert machine.start is None
    machine.probe_errno = 0
    machine.tell(unanswered())
    machine.wait(2 * SECOND)
    assert machine.start == RADIO_IP


def test_a_path_without_a_route_answers_nothing() -> None:
    machine, plugin = abandoned()
    machine.probe_errno = errno.ENETUNREACH
    plugin.restore()
    machine.tell(gone(TOKEN))
    machine.wait(60 * SECOND)
    assert machine.start == RADIO_IP


@pytest.mark.parametrize("silent", [ev.Paused(), ev.Stopping()])
def test_nothing_is_decided_while_the_daemon_is_paused_or_stops(silent: ev.Event) -> None:
    machine = Machine()
    machine.tell(silent, link(2, running=False))
    assert machine.decisions == []


def test_after_a_pause_the_decision_follows() -> None:
    machine = Machine()
    machine.tell(ev.Paused(), link(2, running=False), ev.Resumed())
    assert machine.start == RADIO_IP


def test_nothing_is_decided_before_the_configuration_is_known() -> None:
    engine = Engine()
    for event in (
        ev.Started(seed=1, steers=True),
        ev.Resynchronised(
            connections=[],
            subflows=[],
            links=[link(2, running=False), link(3)],
            addresses=[
                ev.LocalAddressChanged(if_index=2, ip=FIBRE_IP, prefix_len=24),
                ev.LocalAddressChanged(if_index=3, ip=RADIO_IP, prefix_len=24),
            ],
            routes=[route(2, 100), route(3, 600)],
        ),
    ):
        assert engine.handle(event, START).decisions == []
    (made,) = engine.handle(configured(), START).decisions
    assert isinstance(made.command, SteerNewConnections)


def test_a_dry_run_only_shows_it() -> None:
    machine = Machine(dry_run=True)
    machine.tell(link(2, running=False))
    machine.tell(ev.Tick())
    (made,) = machine.decisions
    assert made.refused == "dry run"
    assert machine.start is None
    assert machine.engine.steering.steered[False].local_ip == RADIO_IP
    outcome = machine.engine.configure(dry_run=False, now=machine.now)
    assert [made.refused for made in outcome.decisions] == [None]


def test_without_the_programs_in_the_kernel_nothing_is_decided() -> None:
    machine = Machine(steers=False)
    machine.tell(link(2, running=False), unanswered())
    machine.wait(5 * SECOND)
    assert machine.decisions == []
