# SPDX-License-Identifier: BSD-3-Clause
"""One event in, decisions and the next deadline out; what plugins can and cannot do."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.admission import MARKER
from mptcpd_ebpf.core.commands import (
    AddEndpoint,
    AnyCommand,
    Cause,
    Command,
    CreateSubflow,
    Decision,
    DestroySubflow,
    RequestSample,
    SetBackup,
    WakeAt,
)
from mptcpd_ebpf.core.endpoints import EndpointFlag
from mptcpd_ebpf.core.engine import SHORTEST_SLEEP
from mptcpd_ebpf.core.model import Connection, Subflow
from mptcpd_ebpf.core.pairing import GRACE
from mptcpd_ebpf.core.plugin import Commands, Context, Options, Plugin
from mptcpd_ebpf.core.serving import Rule
from tests.core.scenario import (
    FIBRE,
    MS,
    RADIO,
    SERVER,
    START,
    TOKEN,
    StartedEngine,
    alarm,
    connect,
    created,
    established,
    gone,
    joined,
    measured,
    refused,
)

LINK = ev.LinkChanged(if_index=2, name="wan0", up=True, running=True)


class Recorder(Plugin):
    """Records its calls, and returns the commands that the test put in."""

    name = "recorder"

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.told: list[str] = []
        self.answers: dict[str, list[Command]] = {}

    def _heard(self, handler: str) -> Commands:
        self.told.append(handler)
        return self.answers.get(handler, ())

    def init(self, ctx: Context) -> Commands:
        """Recorded where connections exist already."""
        return self._heard(f"init with {len(ctx.served())}") if ctx.served() else ()

    def exit(self, ctx: Context) -> Commands:
        return self._heard("exit")

    def new_connection(self, ctx: Context, connection: Connection) -> Commands:
        return self._heard("new_connection")

    def connection_closed(self, ctx: Context, connection: Connection) -> Commands:
        return self._heard("connection_closed")

    def new_subflow(self, ctx: Context, connection: Connection, subflow: Any) -> Commands:
        return self._heard("new_subflow")

    def alarm(self, ctx: Context, connection: Connection, subflow: Any, alarm: Any) -> Commands:
        return self._heard("alarm")

    def new_interface(self, ctx: Context, link: Any) -> Commands:
        return self._heard("new_interface")

    def wake(self, ctx: Context) -> Commands:
        return self._heard("wake")

    def refused(self, ctx: Context, decision: Decision) -> Commands:
        return self._heard("refused")

    def answered(self, ctx: Context, decision: Decision, errno: int, explanation: str) -> Commands:
        return self._heard(f"answered {decision.id}: {errno} {explanation}")


class Urgent(Recorder):
    name = "urgent"
    priority = 5


def destroy(key: Any = RADIO, token: int = TOKEN) -> DestroySubflow:
    return DestroySubflow(token=token, local=key[0], remote=key[1], reason="test")


def demote(key: Any = RADIO) -> SetBackup:
    return SetBackup(token=TOKEN, local=key[0], remote=key[1], backup=True, reason="test")


ALARM = alarm(measured(RADIO))

# --- which plugin gets which notice


def test_network_notices_reach_all_plugins_in_order_of_priority() -> None:
    order: list[str] = []

    class Late(Plugin):
        name = "late"

        def new_interface(self, ctx: Context, link: Any) -> Commands:
            order.append(self.name)
            return ()

    class Early(Late):
        name = "early"
        priority = 9

    engine = StartedEngine(Late(), Early())
    engine.handle(LINK, START)
    assert order == engine.plugins == ["early", "late"]


def test_connection_notices_reach_the_assigned_plugin_only() -> None:
    recorder, urgent = Recorder(), Urgent()
    engine = StartedEngine(recorder, urgent, default_plugin="recorder")
    connect(engine, RADIO)
    assert recorder.told == ["new_connection", "new_subflow"]
    assert urgent.told == []
    assert engine.plugin_of(TOKEN) == "recorder"
    engine.handle(gone(), START)
    assert engine.plugin_of(TOKEN) is None


def test_connections_are_served_by_different_plugins() -> None:
    recorder, urgent = Recorder(), Urgent()
    rules = [Rule(plugin="urgent", local=RADIO[0].ip)]
    engine = StartedEngine(recorder, urgent, rules=rules, default_plugin="recorder")
    connect(engine, token=1)
    connect(engine, FIBRE, token=2, initial=RADIO)
    assert (recorder.told, urgent.told) == (["new_connection"], ["new_connection", "new_subflow"])


@pytest.mark.parametrize("servant", [None, "nobody by that name"])
def test_a_connection_without_a_plugin_is_left_to_the_kernel(servant: str | None) -> None:
    recorder = Recorder()
    engine = StartedEngine(recorder, default_plugin=servant)
    assert connect(engine, RADIO).subflows.keys() == {FIBRE, RADIO}
    assert recorder.told == []


def test_a_configuration_reports_the_open_connections() -> None:
    recorder = Recorder()
    engine = StartedEngine()
    connect(engine)
    engine.configure(recorder, default_plugin="recorder")
    assert recorder.told[-1] == "init with 1"


# --- results of commands


def test_commands_become_numbered_decisions() -> None:
    recorder = Recorder()
    recorder.answers["alarm"] = [demote(), RequestSample(reason="look")]
    engine = StartedEngine(recorder, default_plugin="recorder")
    connect(engine, RADIO)
    outcome = engine.handle(ALARM, START + 7)
    cause = Cause(seq=outcome.seq, event="AlarmRaised", rule="alarm")
    fields: dict[str, Any] = {"at": START + 7, "plugin": "recorder", "cause": cause}
    assert outcome.decisions == [
        Decision(id=1, command=demote(), **fields),
        Decision(id=2, command=RequestSample(reason="look"), **fields),
    ]


def test_the_guard_checks_commands_before_the_kernel() -> None:
    recorder = Recorder()
    recorder.answers["alarm"] = [destroy(RADIO), destroy(FIBRE)]
    engine = StartedEngine(recorder, default_plugin="recorder")
    connect(engine, RADIO)
    assert refused(engine.handle(ALARM, START)) == [
        None,
        "it is the last usable subflow of the connection",
    ]


def test_a_refused_decision_is_published_as_refused_and_gets_no_answer() -> None:
    recorder = Recorder()
    recorder.answers["alarm"] = recorder.answers["refused"] = [destroy(FIBRE)]
    engine = StartedEngine(recorder, default_plugin="recorder")
    connect(engine, RADIO)
    engine.handle(ev.SubflowClosed(token=TOKEN, local=RADIO[0], remote=RADIO[1]), START)
    first, again = engine.handle(alarm(measured(FIBRE)), START).decisions
    assert first.refused
    assert again.refused
    engine.handle(ev.CommandAnswered(decision_id=first.id), START)
    assert not any(said.startswith("answered") for said in recorder.told)
    # Once, or a plugin and the guard would call each other in a loop.
    assert recorder.told.count("refused") == 1


def test_the_answer_reaches_the_author_once() -> None:
    recorder, urgent = Recorder(), Urgent()
    recorder.answers["alarm"] = [demote()]
    engine = StartedEngine(recorder, urgent, default_plugin="recorder")
    connect(engine, RADIO)
    engine.handle(ALARM, START)
    answer = ev.CommandAnswered(decision_id=1, errno=22, explanation="no")
    engine.handle(answer, START)
    engine.handle(answer, START)
    assert recorder.told.count("answered 1: 22 no") == 1
    assert urgent.told == []


def test_a_demotion_shows_when_the_kernel_did_it() -> None:
    recorder = Recorder()
    recorder.answers["alarm"] = [demote()]
    engine = StartedEngine(recorder, default_plugin="recorder")
    subflow = connect(engine, RADIO).subflows[RADIO]
    engine.handle(ALARM, START)
    engine.handle(ev.CommandAnswered(decision_id=1, errno=22), START)
    assert not subflow.backup
    engine.handle(ALARM, START)
    engine.handle(ev.CommandAnswered(decision_id=2), START + MS)
    assert subflow.backup
    # An alarm from before the demotion may still be pending.
    engine.handle(alarm(measured(RADIO, at=START + 1, backup=False)), START + MS)
    assert subflow.backup


def test_a_join_requested_as_backup_is_one() -> None:
    recorder = Recorder()
    create = CreateSubflow(
        token=TOKEN,
        local_ip=RADIO[0].ip,
        local_id=1,
        remote=SERVER,
        backup=True,
        reason="test",
    )
    recorder.answers["new_connection"] = [create]
    engine = StartedEngine(recorder, default_plugin="recorder")
    connection = connect(engine)
    engine.handle(ev.CommandAnswered(decision_id=1), START)
    engine.handle(joined(), START)
    assert connection.subflows[RADIO].backup
    assert connection.joins == {}


def test_a_destruction_counts_until_netlink_reports_it() -> None:
    recorder = Recorder()
    recorder.answers["alarm"] = [destroy(RADIO)]
    engine = StartedEngine(recorder, default_plugin="recorder")
    connect(engine, RADIO)
    engine.handle(ALARM, START)
    engine.handle(ev.CommandAnswered(decision_id=1), START)
    recorder.answers["alarm"] = [destroy(FIBRE)]
    assert refused(engine.handle(alarm(measured(FIBRE)), START)) != [None]
    engine.handle(ev.SubflowClosed(token=TOKEN, local=RADIO[0], remote=RADIO[1]), START)
    engine.handle(joined(), START)
    assert refused(engine.handle(alarm(measured(FIBRE)), START)) == [None]


# --- plugins that misbehave


def outcome_of(plugin: Plugin, **engine_options: Any) -> tuple[StartedEngine, Any]:
    engine = StartedEngine(plugin, Urgent(), default_plugin=plugin.name, **engine_options)
    connect(engine, RADIO)
    return engine, engine.exclude_failed(engine.handle(ALARM, START))


def test_one_that_raises_midway_gets_none_of_its_commands_through() -> None:
    class Clumsy(Recorder):
        name = "clumsy"

        def alarm(self, *args: Any) -> Iterator[Command]:
            yield demote()
            raise KeyError("path")

    plugin = Clumsy()
    engine, outcome = outcome_of(plugin)
    assert outcome.decisions == []
    (fault,) = outcome.faults
    assert (fault.plugin, fault.handler, fault.error) == ("clumsy", "alarm", "KeyError: 'path'")
    assert engine.plugins == ["urgent"]
    # Kept out, while the model and the others go on.
    heard = len(plugin.told)
    engine.handle(LINK, START)
    engine.handle(ev.SubflowPriority(token=TOKEN, local=RADIO[0], remote=RADIO[1]), START)
    assert len(plugin.told) == heard
    assert list(engine.world.links) == [2]


@pytest.mark.parametrize("error", [SystemExit(0), GeneratorExit(), RecursionError(), MemoryError()])
def test_a_removal_at_exit_keeps_the_last_subflow(error: BaseException) -> None:
    class Quitter(Recorder):
        name = "quitter"

        def alarm(self, *args: Any) -> Commands:
            raise error

    engine, outcome = outcome_of(Quitter())
    assert [fault.plugin for fault in outcome.faults] == ["quitter"]
    assert engine.plugins == ["urgent"]


def test_the_person_at_the_keyboard_gets_through() -> None:
    class Waiting(Recorder):
        def alarm(self, *args: Any) -> Commands:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        outcome_of(Waiting())


@pytest.mark.parametrize(
    "answer",
    [
        ["destroy it"],
        [42],
        [None],
        7,
        [Command(reason="of no kind")],
        [demote(), destroy(token="1a2b")],  # type: ignore[arg-type]
        [WakeAt(at="soon", reason="test")],  # type: ignore[arg-type]
        [AddEndpoint(ip=5, reason="test")],  # type: ignore[arg-type]
    ],
)
def test_what_is_no_proper_command_leaves_nothing_behind(answer: Any) -> None:
    recorder = Recorder()
    recorder.answers["alarm"] = answer
    engine, outcome = outcome_of(recorder)
    assert outcome.decisions == []
    assert [fault.error.split(":")[0] for fault in outcome.faults] == ["TypeError"]
    assert engine.deadline is None


def test_proper_commands_are_passed_on_unchanged() -> None:
    command = AddEndpoint(
        ip="10.0.2.2", flags=EndpointFlag.SUBFLOW | EndpointFlag.BACKUP, reason="test"
    )
    recorder = Recorder()
    recorder.answers["alarm"] = [command]
    _, outcome = outcome_of(recorder)
    assert outcome.decisions[0].command == command


def test_a_handler_without_return_is_no_mistake() -> None:
    recorder = Recorder()
    recorder.answers["alarm"] = None  # type: ignore[assignment]
    engine, outcome = outcome_of(recorder)
    assert (outcome.decisions, outcome.faults) == ([], [])
    assert engine.plugins == ["urgent", "recorder"]


def test_one_that_breaches_its_budget_is_excluded() -> None:
    def run(_call: int, handler: Callable[[], list[AnyCommand]]) -> list[AnyCommand]:
        commands = handler()
        if any(isinstance(command, SetBackup) for command in commands):
            raise TimeoutError("longer than 250 ms")
        return commands

    recorder = Recorder()
    recorder.answers["alarm"] = [demote()]
    engine, outcome = outcome_of(recorder, run=run)
    assert outcome.decisions == []
    assert engine.excluded["recorder"].error == "TimeoutError: longer than 250 ms"


def test_the_excluded_one_is_woken_no_more() -> None:
    class Sleeper(Recorder):
        name = "sleeper"

        def new_subflow(self, *args: Any) -> Iterator[Command]:
            yield WakeAt(at=START + MS, reason="test")

        def alarm(self, *args: Any) -> Commands:
            raise ValueError

    engine, _ = outcome_of(Sleeper())
    assert engine.deadline is None


# --- time


def test_deadlines_are_the_earliest_of_plugins_and_model() -> None:
    recorder = Recorder()
    engine = StartedEngine(recorder, default_plugin="recorder")
    assert engine.deadline is None
    recorder.answers["alarm"] = [
        WakeAt(at=START + 3 * GRACE, reason="test"),
        WakeAt(at=START + 2 * GRACE, reason="test"),
    ]
    connect(engine, RADIO)
    engine.handle(ALARM, START)
    assert engine.deadline == START + 2 * GRACE
    engine.handle(ev.SubflowClosed(token=TOKEN, local=RADIO[0], remote=RADIO[1]), START)
    assert engine.deadline == START + GRACE
    assert len(engine.handle(ev.Tick(), START + GRACE).finals) == 1
    assert "wake" not in recorder.told
    engine.handle(ev.Tick(), START + 2 * GRACE)
    assert recorder.told[-1] == "wake"
    assert engine.deadline == START + 3 * GRACE
    engine.handle(ev.Tick(), START + 3 * GRACE)
    assert recorder.told.count("wake") == 2
    assert engine.deadline is None


def test_a_timer_of_a_connection_wakes_its_plugin_for_that_connection_alone() -> None:
    class Sleeper(Recorder):
        name = "sleeper"

        def new_connection(self, ctx: Context, connection: Connection) -> Iterator[Command]:
            for number in (1, 2):
                at = START + (connection.token + number) * MS
                yield WakeAt(at=at, token=connection.token, reason="test")

        def wake_connection(self, ctx: Context, connection: Connection) -> Commands:
            return self._heard(f"wake {connection.token}")

    sleeper = Sleeper()
    engine = StartedEngine(sleeper, default_plugin="sleeper")
    for token in (1, 5, 9):
        connect(engine, token=token)
    engine.handle(gone(5), START)
    while (deadline := engine.deadline) is not None:
        engine.handle(ev.Tick(), deadline)
    told = [each for each in sleeper.told if each.startswith("wake")]
    assert told == ["wake 1", "wake 1", "wake 9", "wake 9"]


def test_whatever_event_comes_late_brings_what_was_due() -> None:
    recorder = Recorder()
    recorder.answers["new_interface"] = [WakeAt(at=START + MS, reason="test")]
    engine = StartedEngine(recorder)
    engine.handle(LINK, START)
    engine.handle(ev.LinkRemoved(if_index=2), START + 2 * MS)
    assert recorder.told == ["new_interface", "wake"]


def test_one_that_never_sleeps_leaves_time_for_others() -> None:
    recorder = Recorder()
    recorder.answers["new_interface"] = recorder.answers["wake"] = [WakeAt(at=0, reason="test")]
    engine = StartedEngine(recorder)
    engine.handle(LINK, START)
    assert engine.deadline == START + SHORTEST_SLEEP
    engine.handle(ev.Tick(), START + SHORTEST_SLEEP)
    assert engine.deadline == START + 2 * SHORTEST_SLEEP


# --- pause and new configuration


def test_paused_nothing_is_decided_and_everything_is_seen() -> None:
    recorder = Recorder()
    recorder.answers["alarm"] = [demote()]
    engine = StartedEngine(recorder, default_plugin="recorder")
    connect(engine, RADIO)
    engine.handle(ev.Paused(), START)
    before = list(recorder.told)
    assert engine.handle(ALARM, START).decisions == []
    engine.handle(created(7, (RADIO[0], SERVER)), START)
    assert recorder.told == before
    assert list(engine.world.connections) == [TOKEN, 7]
    engine.handle(ev.Resumed(), START)
    assert recorder.told == [*before, "init with 2"]
    assert len(engine.handle(ALARM, START).decisions) == 1
    # Resuming what is not paused changes nothing.
    engine.handle(ev.Resumed(), START)
    assert recorder.told.count("init with 2") == 1


def test_new_plugins_start_from_the_open_connections() -> None:
    old, new = Recorder(), Urgent()
    old.answers["exit"] = [RequestSample(reason="last word")]
    new.answers["init with 1"] = [RequestSample(reason="first word")]
    old.answers["alarm"] = [WakeAt(at=START + MS, reason="test")]
    engine = StartedEngine(old, default_plugin="recorder")
    connect(engine, RADIO)
    engine.handle(ALARM, START)
    outcome = engine.configure(new, default_plugin="urgent")
    assert [d.command.reason for d in outcome.decisions] == ["last word", "first word"]
    assert (engine.plugins, engine.plugin_of(TOKEN), engine.deadline) == (
        ["urgent"],
        "urgent",
        None,
    )
    engine.handle(ALARM, START)
    assert new.told == ["init with 1", "alarm"]


class Tunable(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    level: int = 0


class Lasting(Recorder):
    """Keeps its state at a reload."""

    name = "lasting"
    Options = Tunable

    def reloaded(self, ctx: Context) -> Commands:
        return self._heard(f"reloaded with {len(ctx.served())}")


def test_an_unchanged_plugin_keeps_its_state_at_a_reload() -> None:
    old, new = Lasting(), Lasting()
    old.answers["alarm"] = [WakeAt(at=START + MS, reason="test")]
    engine = StartedEngine(old, default_plugin="lasting")
    connect(engine, RADIO)
    connect(engine, token=7)
    engine.handle(ALARM, START)
    told = list(old.told)
    engine.configure(new, Urgent(), default_plugin="lasting")
    assert old.told == [*told, "reloaded with 2"]
    assert new.told == []
    assert engine.deadline == START + MS
    engine.handle(ev.Tick(), START + MS)
    assert old.told[-1] == "wake"


@pytest.mark.parametrize(
    "change", ["options", "code", "fewer connections", "excluded", "paused", "no reloaded"]
)
def test_a_changed_plugin_is_created_again(change: str) -> None:
    class Edited(Lasting):
        pass

    class Forgetful(Lasting):
        reloaded = Plugin.reloaded

    old: Lasting = Forgetful() if change == "no reloaded" else Lasting()
    new = type(old)(Tunable(level=change == "options"))
    if change == "code":
        new = Edited()
    engine = StartedEngine(old, default_plugin="lasting")
    connect(engine, RADIO)
    connect(engine, token=7, initial=RADIO)
    if change == "excluded":
        old.answers["alarm"] = ["no command"]  # type: ignore[list-item]
        engine.exclude_failed(engine.handle(ALARM, START))
    if change == "paused":
        engine.handle(ev.Paused(), START)
    fewer = change == "fewer connections"
    rules = [Rule(plugin=None, local=RADIO[0].ip)] if fewer else []
    engine.configure(new, rules=rules, default_plugin="lasting")
    engine.handle(ev.Resumed(), START)
    assert new.told == [f"init with {1 if fewer else 2}"]
    assert not any(word.startswith("reloaded") for word in old.told)
    assert (old.told[-1] == "exit") is (change not in ("excluded", "paused"))


def test_a_new_configuration_gives_the_excluded_another_chance() -> None:
    class Clumsy(Recorder):
        name = "clumsy"

        def alarm(self, *args: Any) -> Commands:
            raise ValueError

    engine, _ = outcome_of(Clumsy())
    engine.configure(Clumsy(), default_plugin="clumsy")
    assert (engine.plugins, engine.excluded) == (["clumsy"], {})


def test_chance_is_the_engines_and_repeats() -> None:
    class Gambler(Recorder):
        name = "gambler"

        def new_interface(self, ctx: Context, link: Any) -> Iterator[Command]:
            yield RequestSample(reason=str(ctx.random.random()))

    def bets(seed: int) -> list[str]:
        engine = StartedEngine(Gambler(), seed=seed)
        return [d.command.reason for d in engine.handle(LINK, START).decisions]

    assert bets(1) == bets(1) != bets(2)


def test_established_before_created_is_served_too() -> None:
    recorder = Recorder()
    engine = StartedEngine(recorder, default_plugin="recorder")
    engine.handle(established(), START)
    assert recorder.told == ["new_connection"]


@pytest.mark.parametrize("marked", [True, False])
def test_a_join_that_the_kernel_does_not_mark_is_marked_before_plugins_get_it(
    marked: bool,
) -> None:
    class Trial(Plugin):
        name = "trial"

        def connection_established(self, ctx: Context, connection: Connection) -> list[Command]:
            return [
                CreateSubflow(
                    token=TOKEN,
                    local_ip=RADIO[0].ip,
                    local_id=2,
                    remote=RADIO[1],
                    backup=True,
                    reason="trial",
                )
            ]

        def new_subflow(
            self, ctx: Context, connection: Connection, subflow: Subflow
        ) -> list[Command]:
            return [RequestSample(reason="it is there")]

    engine = StartedEngine(Trial(), default_plugin="trial", joins_marked=marked)
    engine.handle(created(), START)
    (join,) = engine.handle(established(), START).decisions
    engine.handle(ev.CommandAnswered(decision_id=join.id, errno=0), START)
    made = [(d.plugin, d.command) for d in engine.handle(joined(RADIO), START).decisions]
    if not marked:
        author, mark = made.pop(0)
        assert author == MARKER
        assert isinstance(mark, SetBackup)
        assert (mark.local, mark.remote, mark.backup) == (*RADIO, True)
    assert [plugin for plugin, _ in made] == ["trial"]
    assert not engine.handle(joined(FIBRE), START).decisions[1:], "a regular one stays so"
