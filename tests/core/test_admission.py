# SPDX-License-Identifier: BSD-3-Clause
"""Destructive commands: what measurements call for passes at once, the rest at a rate."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.admission import HOLD
from mptcpd_ebpf.core.commands import (
    Command,
    Decision,
    DestroySubflow,
    HeldBack,
    RemoveEndpoint,
    RequestSample,
    SetBackup,
    WithdrawAddress,
)
from mptcpd_ebpf.core.engine import Outcome
from mptcpd_ebpf.core.measurement import AlarmKind
from mptcpd_ebpf.core.model import Connection, Subflow
from mptcpd_ebpf.core.plugin import Commands, Context, Plugin
from tests.core.scenario import (
    FIBRE,
    MS,
    RADIO,
    SATELLITE,
    SECOND,
    SERVER,
    START,
    StartedEngine,
    alarm,
    connect,
    ended,
    gone,
    joined,
    left,
    measured,
    refused,
)

SILENT = AlarmKind.NO_PROGRESS


def destroy(subflow: Subflow) -> DestroySubflow:
    return DestroySubflow(
        token=subflow.token, local=subflow.local, remote=subflow.remote, reason="test"
    )


def demote(subflow: Subflow, *, backup: bool = True) -> SetBackup:
    return SetBackup(
        token=subflow.token,
        local=subflow.local,
        remote=subflow.remote,
        backup=backup,
        reason="test",
    )


def withdraw(token: int, address_id: int) -> WithdrawAddress:
    return WithdrawAddress(token=token, address_id=address_id, reason="test")


class Leaver(Plugin):
    """Destroys a subflow when an alarm is raised for it, and does what the test says."""

    name = "leaver"

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.refusals: list[Decision] = []
        self.decide: Callable[[Context], list[Command]] = lambda _: []

    def alarm(
        self, ctx: Context, connection: Connection, subflow: Subflow, alarm: ev.AlarmRaised
    ) -> Iterator[Command]:
        yield destroy(subflow)

    def update_interface(self, ctx: Context, link: Any) -> Commands:
        return self.decide(ctx)

    def listener_created(self, ctx: Context, address: SockAddr) -> Commands:
        return self.decide(ctx)

    def refused(self, ctx: Context, decision: Decision) -> Commands:
        self.refusals.append(decision)
        return ()

    def reloaded(self, ctx: Context) -> Commands:
        return ()


class Stage:
    """An engine with `Leaver`, whose clock the test moves; the kernel does nothing."""

    def __init__(self, *, connections: int = 0, per_second: int = 2) -> None:
        self.plugin = Leaver()
        self.engine = StartedEngine(
            self.plugin, default_plugin="leaver", destructive_per_second=per_second
        )
        self.now = START
        self.held: list[HeldBack] = []
        self.samples = 0
        for token in range(1, connections + 1):
            connect(self.engine, RADIO, SATELLITE, token=token)

    def subflows(self, ip: str = RADIO[0].ip) -> list[Subflow]:
        return [
            subflow
            for connection in self.engine.world.connections.values()
            for subflow in connection.subflows.values()
            if subflow.local.ip == ip
        ]

    def handle(self, *events: ev.Event) -> list[Decision]:
        """Handles events now; returns what was decided, without requests for samples."""
        decided: list[Decision] = []
        for event in events:
            decided += self._taken(self.engine.handle(event, self.now))
        return decided

    def _taken(self, outcome: Outcome) -> list[Decision]:
        assert not outcome.faults
        self.held += outcome.held
        samples = [d for d in outcome.decisions if isinstance(d.command, RequestSample)]
        self.samples += len(samples)
        return [each for each in outcome.decisions if each not in samples]

    def ask(self, *commands: Command) -> list[Decision]:
        """The plugin decides these now."""
        self.plugin.decide = lambda _: list(commands)
        decided = self.handle(ev.ListenerCreated(local=SERVER))
        self.plugin.decide = lambda _: []
        return decided

    def alarms(self, kind: AlarmKind = SILENT, *, at: int = 0) -> list[Decision]:
        """An alarm for every subflow on radio."""
        return self.handle(
            *(
                alarm(measured(each.key, at or self.now, each.token, state=1), kind)
                for each in self.subflows()
            )
        )

    def wait(self, nanoseconds: int) -> list[Decision]:
        until, decided = self.now + nanoseconds, list[Decision]()
        while (deadline := self.engine.deadline) is not None and deadline <= until:
            assert deadline > self.now
            self.now = deadline
            decided += self.handle(ev.Tick())
        self.now = until
        return decided

    def close(self) -> None:
        """All subflows on radio have closed, and are joined again."""
        for each in self.subflows():
            self.handle(
                left(token=each.token),
                ended(at=self.now, token=each.token),
                joined(token=each.token, local_id=1, remote_id=0),
            )


def sent(decisions: list[Decision]) -> int:
    return sum(decision.refused is None for decision in decisions)


# --- what measurements call for


@pytest.mark.parametrize("kind", list(AlarmKind))
def test_a_crowd_leaves_a_bad_path_at_once(kind: AlarmKind) -> None:
    stage = Stage(connections=300)
    assert sent(stage.alarms(kind)) == 300
    assert stage.wait(20 * SECOND) == []
    assert stage.held == []


def test_a_lost_carrier_is_evidence_for_all() -> None:
    stage = Stage(connections=50)
    radio = ev.LinkChanged(if_index=2, name="wan2", up=True, running=True)
    stage.handle(radio, ev.LocalAddressChanged(if_index=2, ip=RADIO[0].ip, prefix_len=24))
    stage.plugin.decide = lambda _: [destroy(each) for each in stage.subflows()]
    lost = ev.LinkChanged(if_index=2, name="wan2", up=True, running=False)
    assert sent(stage.handle(lost)) == 50


def test_a_crowd_leaves_a_path_that_dies_three_times_a_minute_and_not_in_circles() -> None:
    stage = Stage(connections=20)
    for _ in range(3):
        assert sent(stage.alarms()) == 20
        stage.close()
        stage.wait(SECOND)
    assert sent(stage.alarms()) == 2
    stage.wait(60 * SECOND)
    assert sent(stage.alarms()) == 20


def test_a_connection_leaves_a_lossy_path_once_a_minute_without_a_rate() -> None:
    stage = Stage(connections=20)
    assert sent(stage.alarms(AlarmKind.LOSS)) == 20
    stage.close()
    assert sent(stage.alarms(AlarmKind.LOSS)) == 2


def test_evidence_ends_when_something_comes_back() -> None:
    stage = Stage(connections=20)
    stage.plugin.alarm = lambda *_: ()  # type: ignore[assignment,method-assign]
    stage.alarms()
    stage.now += 50 * MS
    answered = [measured(s.key, stage.now, s.token, idle_us=100) for s in stage.subflows()]
    stage.handle(ev.Sampled(measurements=answered))
    assert sent(stage.ask(*(destroy(each) for each in stage.subflows()))) == 2


# --- what nothing calls for


def test_subflows_that_work_are_destroyed_at_a_rate_on_each_path() -> None:
    stage = Stage(connections=6)
    both = [*stage.subflows(), *stage.subflows(SATELLITE[0].ip)]
    assert sent(stage.ask(*(destroy(each) for each in both))) == 4
    assert sent(stage.wait(SECOND - 1)) == 0
    assert sent(stage.wait(1)) == 4
    assert sent(stage.wait(SECOND)) == 4
    assert stage.plugin.refusals == []


def test_one_summary_a_second_and_path_tells_of_those_that_wait() -> None:
    stage = Stage(connections=6)
    stage.ask(*(destroy(each) for each in stage.subflows()))
    stage.wait(3 * SECOND)
    assert stage.held == [
        HeldBack(
            plugin="leaver", path="10.0.2.2 → 10.0.9.1", count=4, waiting=2, per_second=2
        )
    ]  # fmt: skip


def test_creating_and_destroying_in_circles_is_stopped() -> None:
    stage = Stage(connections=1, per_second=3)
    passed = []
    for _ in range(100):
        (subflow,) = stage.subflows()
        passed += [stage.now for each in stage.ask(destroy(subflow)) if each.refused is None]
        stage.close()
        stage.wait(50 * MS)
    for at in passed:
        assert sum(at <= other < at + SECOND for other in passed) <= 3


def test_a_join_that_was_not_answered_is_destroyed_without_a_rate() -> None:
    stage = Stage(connections=6, per_second=0)
    for each in stage.subflows():
        each.error = 110
    assert sent(stage.ask(*(destroy(each) for each in stage.subflows()))) == 6


def test_a_demotion_passes_once_a_minute() -> None:
    stage = Stage(connections=6)
    assert sent(stage.ask(*(demote(each) for each in stage.subflows()))) == 6
    assert sent(stage.ask(*(demote(each) for each in stage.subflows()))) == 2


def test_no_rate_means_that_nothing_waits() -> None:
    stage = Stage(connections=1, per_second=0)
    decided = stage.ask(*(destroy(each) for each in stage.subflows()))
    assert refused(Outcome(seq=1, decisions=decided, faults=[], finals=[], held=[])) == [
        "the configuration allows no destructive commands"
    ]
    assert stage.plugin.refusals == decided


@pytest.mark.parametrize("first", [DestroySubflow, WithdrawAddress])
def test_a_destruction_with_notice_to_the_peer_counts_once(first: type) -> None:
    stage = Stage(connections=5)
    pairs = [sorted([destroy(s), withdraw(s.token, 1)], key=lambda c: type(c) is not first)
             for s in stage.subflows()]  # fmt: skip
    decided = stage.ask(*(command for pair in pairs for command in pair))
    assert [type(each.command) for each in decided] == [type(c) for c in pairs[0]] * 2
    later = stage.wait(SECOND)
    assert [each.command for each in later] == [*pairs[2], *pairs[3]]


def test_manual_commands_are_not_limited() -> None:
    stage = Stage(connections=5, per_second=0)
    asked = [ev.CommandAsked(command=destroy(each)) for each in stage.subflows()]
    assert sent(stage.handle(*asked)) == 5


def test_what_is_put_back_at_the_end_is_not_rationed() -> None:
    class Leaving(Plugin):
        name = "leaving"

        def exit(self, ctx: Context) -> Iterator[Command]:
            for number in range(1, 9):
                yield RemoveEndpoint(address_id=number, ip="", reason="the daemon leaves")

    engine = StartedEngine(Leaving(), default_plugin=None, destructive_per_second=0)
    engine.handle(ev.LocalAddressChanged(if_index=1, ip="", prefix_len=24), START)
    assert refused(engine.configure(destructive_per_second=0)) == [None] * 8


# --- what waits is looked at again


def waiting(stage: Stage) -> Subflow:
    """A subflow whose destruction waits for room; a second passes until it has it."""
    one, two, *rest = stage.subflows()
    stage.ask(destroy(one), destroy(two), *(destroy(each) for each in rest))
    return rest[0]


def test_it_is_void_when_the_subflow_is_the_last_one() -> None:
    stage = Stage(connections=3)
    subflow = waiting(stage)
    (decision,) = stage.handle(left(FIBRE, subflow.token), left(SATELLITE, subflow.token))
    assert decision.refused == "it is the last usable subflow of the connection"
    assert stage.plugin.refusals == [decision]


def test_it_is_void_when_the_subflow_is_gone() -> None:
    stage = Stage(connections=3)
    subflow = waiting(stage)
    (decision,) = stage.handle(left(subflow.key, subflow.token))
    assert decision.refused == "the subflow is gone"


def test_nothing_is_said_when_the_connection_is_gone() -> None:
    stage = Stage(connections=3)
    stage.handle(gone(waiting(stage).token))
    assert stage.wait(20 * SECOND) == []
    assert stage.plugin.refusals == []


def test_it_is_void_after_a_while() -> None:
    stage = Stage(connections=40)
    stage.ask(*(destroy(each) for each in stage.subflows()))
    decided = stage.wait(30 * SECOND)
    assert sent(decided) == 2 * (HOLD // SECOND) - 2
    void = [each for each in decided if each.refused is not None]
    assert {each.refused for each in void} == {"it waited for 10 s"}
    assert len(decided) == 38
    assert stage.plugin.refusals == void


def test_it_knows_its_cause_and_how_long_it_waited() -> None:
    stage = Stage(connections=3)
    waiting(stage)
    seq = stage.engine._seq
    (decision,) = stage.wait(SECOND)
    assert decision.cause.seq == seq
    assert decision.cause.event == "ListenerCreated"
    assert decision.at == START + SECOND
    assert decision.waited == SECOND


def test_a_later_command_clears_the_flag() -> None:
    stage = Stage(connections=3, per_second=0)
    stage.engine._admission.set_rate(1)
    (one, two, three) = stage.subflows()
    stage.ask(*(demote(each) for each in (one, two, three)))  # the allowance of a minute
    stage.ask(*(demote(each) for each in (one, two, three)))
    restored = stage.ask(demote(two, backup=False))
    assert [(each.command, each.refused) for each in restored] == [
        (demote(two, backup=False), None),
        (demote(two), "a later command clears the flag"),
    ]
    assert [each.command for each in stage.wait(5 * SECOND)] == [demote(three)]


def test_the_same_again_waits_once() -> None:
    stage = Stage(connections=3)
    subflow = waiting(stage)
    assert stage.ask(destroy(subflow)) == []
    assert [each.command for each in stage.wait(5 * SECOND)] == [destroy(subflow)]


@pytest.mark.parametrize("event", [ev.Paused(), ev.PluginExcluded(
    plugin="leaver", handler="alarm", error="test", call=1)])  # fmt: skip
def test_a_pause_or_an_exclusion_drops_it(event: ev.Event) -> None:
    stage = Stage(connections=3)
    waiting(stage)
    stage.handle(event)
    assert stage.wait(20 * SECOND) == []


def test_a_reload_keeps_what_a_plugin_that_stays_decided() -> None:
    for plugin, kept in ((None, 1), (Leaver(), 1), (None, 0)):
        stage = Stage(connections=3)
        waiting(stage)
        again = plugin or stage.plugin
        config: Any = {"default_plugin": "leaver" if kept else None}
        names = [again] if kept else []
        stage.engine.configure(*names, destructive_per_second=2, now=stage.now, **config)
        assert len(stage.wait(SECOND)) == kept


# --- a late destruction is preceded by a look


def test_a_late_alarm_is_checked_with_a_sample() -> None:
    """The path has recovered for some, and the alarms of all come late."""
    stage = Stage(connections=20)
    stage.now += 5 * SECOND
    assert stage.alarms(at=START) == []
    assert stage.samples == 1
    stage.now += MS
    found = [
        measured(s.key, stage.now, s.token, idle_us=6_000_000 if s.token > 5 else 1000)
        for s in stage.subflows()
    ]
    decided = stage.handle(ev.Sampled(measurements=found))
    assert sent(decided) == 15
    assert {each.refused for each in decided} == {None, "its path has recovered meanwhile"}
    assert stage.wait(20 * SECOND) == []


def test_without_a_sample_it_asks_again_and_is_void_in_the_end() -> None:
    stage = Stage(connections=1)
    stage.now += 5 * SECOND
    stage.alarms(at=START)
    (decision,) = stage.wait(20 * SECOND)
    assert decision.refused == "it waited for 10 s"
    assert stage.samples == HOLD // SECOND


def test_what_waited_for_room_is_checked_too() -> None:
    stage = Stage(connections=8)
    for _ in range(3):
        stage.alarms()
        stage.close()
    assert sent(stage.alarms()) == 2
    assert sent(stage.wait(4 * SECOND)) == 4
    assert stage.samples == 2
    dead = [measured(s.key, stage.now, s.token, idle_us=5_000_000) for s in stage.subflows()]
    assert sent(stage.handle(ev.Sampled(measurements=dead))) == 2


def test_a_withdrawal_does_not_overtake_its_destruction() -> None:
    """Although an alarm calls for it meanwhile."""
    stage = Stage(connections=5)
    subflows = stage.subflows()
    stage.ask(*(destroy(each) for each in subflows))
    last = subflows[-1]
    stage.handle(alarm(measured(last.key, stage.now, last.token, state=1), SILENT))
    assert stage.ask(withdraw(last.token, 1)) == []
    decided = stage.wait(2 * SECOND)
    assert [each.command for each in decided[-2:]] == [destroy(last), withdraw(last.token, 1)]
