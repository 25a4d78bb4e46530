# SPDX-License-Identifier: BSD-3-Clause
"""A recording under another configuration: what is equal, and what differs."""

from msgspec.structs import replace

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.commands import (
    CreateSubflow,
    Decision,
    ProbePath,
    RequestSample,
    SteerNewConnections,
)
from mptcpd_ebpf.core.configuration import CoreConfig, PluginSpec
from mptcpd_ebpf.core.engine import Engine
from mptcpd_ebpf.core.model import SECOND, Connection
from mptcpd_ebpf.core.plugin import Commands, Context, Plugin
from mptcpd_ebpf.core.recording import Record
from mptcpd_ebpf.core.rehearsal import ANSWERED, Step, rehearse
from tests.core.scenario import RADIO, SERVER, START, TOKEN, created, established


class Joiner(Plugin):
    """Joins from the address that its options name."""

    name = "joiner"

    def __init__(self, ip: str) -> None:
        super().__init__()
        self.ip = ip
        self.answers: list[int] = []

    def connection_established(self, ctx: Context, connection: Connection) -> Commands:
        yield CreateSubflow(
            token=TOKEN, local_ip=self.ip, local_id=1, remote=SERVER, reason=f"at {ctx.now}"
        )

    def answered(self, ctx: Context, decision: Decision, errno: int, explanation: str) -> Commands:
        self.answers.append(errno)
        return ()


def recorded(ip: str) -> list[Record]:
    """A run in which the kernel refused the join."""
    engine = Engine(lambda spec: Joiner(spec.options["ip"]))
    spec = PluginSpec(name="joiner", options={"ip": ip})
    return run(engine, spec, ev.CommandAnswered(decision_id=1, errno=101))


def run(engine: Engine, spec: PluginSpec, *then: ev.AnyEvent) -> list[Record]:
    """One connection, and what followed."""
    events: list[ev.AnyEvent] = [
        ev.Started(seed=1),
        ev.Configured(config=CoreConfig(default_plugin=spec.name), plugins=[spec]),
        created(),
        established(),
        *then,
    ]
    records = []
    for number, event in enumerate(events, start=1):
        made = engine.handle(event, START + number)
        records.append(
            Record(seq=number, now=START + number, event=event, decisions=made.decisions)
        )
    return records


def rehearsed(records: list[Record], ip: str) -> tuple[list[Step], Joiner]:
    made: list[Joiner] = []

    def make(spec: PluginSpec) -> Plugin:
        made.append(Joiner(spec.options["ip"]))
        return made[-1]

    def change(event: ev.Configured) -> ev.Configured:
        spec = PluginSpec(name="joiner", options={"ip": ip})
        return ev.Configured(config=event.config, plugins=[spec])

    return list(rehearse(records, make, change)), made[-1]


def test_an_equal_configuration_differs_in_nothing_and_gets_the_recorded_answers() -> None:
    steps, plugin = rehearsed(recorded("10.0.2.2"), "10.0.2.2")
    assert not [step for step in steps if step.only_recorded or step.only_rehearsed]
    assert plugin.answers == [101]


def test_another_configuration_shows_what_is_in_one_run_only() -> None:
    steps, plugin = rehearsed(recorded("10.0.2.2"), "10.0.3.2")
    (step,) = [step for step in steps if step.only_recorded or step.only_rehearsed]
    (before,), (after,) = step.only_recorded, step.only_rehearsed
    assert isinstance(before.command, CreateSubflow)
    assert isinstance(after.command, CreateSubflow)
    assert (before.command.local_ip, after.command.local_ip) == ("10.0.2.2", "10.0.3.2")
    assert plugin.answers == [0], "a command that was not sent counts as carried out"


class Prober(Plugin):
    """Probes a path; with the option `sample` it asks for something else before, and probes with
    another size."""

    name = "prober"

    def __init__(self, *, sample: bool) -> None:
        super().__init__()
        self.sample = sample
        self.results: list[int | None] = []

    def connection_established(self, ctx: Context, connection: Connection) -> Commands:
        if self.sample:
            yield RequestSample(reason="a test")
        yield ProbePath(
            local_ip="10.0.2.2",
            remote=SERVER,
            within=SECOND,
            full_size=self.sample,
            reason="a test",
        )

    def path_probed(self, ctx: Context, decision: Decision, rtt_us: int | None) -> Commands:
        self.results.append(rtt_us)
        return ()


def test_the_answer_of_a_probe_reaches_the_equal_one() -> None:
    """Their decisions have other numbers, and the size of a probe does not matter."""
    made: list[Prober] = []

    def make(spec: PluginSpec) -> Plugin:
        made.append(Prober(sample=spec.options["sample"]))
        return made[-1]

    spec = PluginSpec(name="prober", options={"sample": False})
    records = run(
        Engine(make),
        spec,
        ev.CommandAnswered(decision_id=1),
        ev.PathProbed(decision_id=1, rtt_us=1234, size=56),
    )
    changed = PluginSpec(name="prober", options={"sample": True})
    list(rehearse(records, make, lambda e: ev.Configured(config=e.config, plugins=[changed])))
    before, after = made
    assert before.results == after.results == [1234]


def test_where_new_connections_start_differs_when_an_interface_is_denied() -> None:
    """Recorded: the default route's link goes down, and connections start on the other one."""
    events: list[ev.AnyEvent] = [
        ev.Started(seed=1, steers=True),
        ev.Configured(config=CoreConfig(), plugins=[]),
        *(
            ev.LinkChanged(if_index=number, name=name, up=True, running=True)
            for number, name in ((2, "fibre"), (3, "radio"))
        ),
        ev.LocalAddressChanged(if_index=3, ip="10.0.2.2", prefix_len=24),
        ev.DefaultRouteAdded(if_index=2, ipv6=False, metric=100),
        ev.DefaultRouteAdded(if_index=3, ipv6=False, metric=600),
        ev.LinkChanged(if_index=2, name="fibre", up=True, running=False),
        ev.CommandAnswered(decision_id=1),
    ]
    engine = Engine()
    records = [
        Record(
            seq=number,
            now=START,
            event=event,
            decisions=engine.handle(event, START).decisions,
        )
        for number, event in enumerate(events, start=1)
    ]
    equal = rehearse(records, _none, lambda event: event)
    assert not any(step.only_recorded or step.only_rehearsed for step in equal)
    denied = rehearse(
        records,
        _none,
        lambda event: replace(event, config=CoreConfig(denied_interfaces=["radio"])),
    )
    (lost,) = [made for step in denied for made in step.only_recorded]
    assert isinstance(lost.command, SteerNewConnections)


def _none(spec: PluginSpec) -> Plugin:
    raise AssertionError(f"no plugin is configured, but {spec}")


class Follower(Joiner):
    """Sends another command for each answer, or fails at it."""

    def __init__(self, ip: str, *, fails: bool) -> None:
        super().__init__(ip)
        self.fails = fails

    def answered(self, ctx: Context, decision: Decision, errno: int, explanation: str) -> Commands:
        super().answered(ctx, decision, errno, explanation)
        if self.fails:
            raise ValueError("a test")
        return self.connection_established(ctx, ctx.world.connections[TOKEN])


def followed(*, fails: bool) -> tuple[list[Step], Follower]:
    made: list[Follower] = []

    def make(_spec: PluginSpec) -> Plugin:
        made.append(Follower("10.0.3.2", fails=fails))
        return made[-1]

    records = recorded("10.0.2.2")
    for event in (created(TOKEN + 1, RADIO), established(TOKEN + 1, RADIO)):
        seq = len(records) + 1
        records.append(Record(seq=seq, now=START + seq, event=event, decisions=[]))
    return list(rehearse(records, make, lambda event: event)), made[-1]


def test_a_plugin_that_sends_a_command_at_each_answer_comes_to_an_end() -> None:
    steps, plugin = followed(fails=False)
    first, second = [step for step in steps if step.only_rehearsed]
    assert len(first.only_rehearsed) == len(second.only_rehearsed) == ANSWERED + 1
    assert len(plugin.answers) == 2 * ANSWERED


def test_a_plugin_that_fails_is_excluded_from_then_on() -> None:
    steps, plugin = followed(fails=True)
    assert [fault.error for step in steps for fault in step.faults] == ["ValueError: a test"]
    assert plugin.answers == [0]
    assert len([step for step in steps if step.only_rehearsed]) == 1


def test_what_is_in_both_runs_is_counted() -> None:
    steps, _ = rehearsed(recorded("10.0.2.2"), "10.0.2.2")
    assert sum(step.equal for step in steps) == 1
