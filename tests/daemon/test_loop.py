# SPDX-License-Identifier: BSD-3-Clause
"""The loop: the order of events, commands, answers, readings and timers."""

import asyncio
import errno
import logging
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from mptcpd_ebpf.config.settings import Config, OnExit
from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.commands import (
    Decision,
    DestroySubflow,
    ProbePath,
    ReadEndpoints,
    RequestSample,
    SetBackup,
    WakeAt,
)
from mptcpd_ebpf.core.measurement import Owner
from mptcpd_ebpf.core.plugin import Commands, Context
from mptcpd_ebpf.kernel.errors import KernelError, NetlinkRefused
from tests.core.scenario import (
    FIBRE,
    MS,
    RADIO,
    TOKEN,
    created,
    established,
    gone,
    joined,
    left,
    measured,
    truth,
)
from tests.daemon.fakes import (
    DONE,
    REFUSED,
    FakeProbes,
    Host,
    InKernel,
    OtherScripted,
    Scripted,
    Userspace,
    plugin_set,
)
from tests.waiting import until_async

Use = Callable[[Host], Coroutine[Any, Any, None]]

DEMOTE = SetBackup(token=TOKEN, local=RADIO[0], remote=RADIO[1], backup=True, reason="test")
DESTROY = DestroySubflow(token=TOKEN, local=FIBRE[0], remote=FIBRE[1], reason="test")
CONNECTED = [created(), established(), joined()]


def fails(*_: object) -> Commands:
    raise ZeroDivisionError("by the test")


# --- the order of events and commands


def test_events_are_handled_in_the_order_of_their_arrival(tmp_path: Path) -> None:
    async def use(host: Host) -> None:
        host.loop.dispatch(CONNECTED)

    host = Host(tmp_path, Scripted()).run(use)
    assert host.events == ["ConnectionCreated", "ConnectionEstablished", "SubflowEstablished"]
    assert [record.seq for record in host.records] == sorted(r.seq for r in host.records)


def test_commands_leave_before_observers_see_them_and_the_answer_follows(tmp_path: Path) -> None:
    plugin = Scripted(new_subflow=lambda *_: [DEMOTE])

    async def use(host: Host) -> None:
        host.loop.dispatch([*CONNECTED, left()])

    host = Host(tmp_path, plugin).run(use)
    after = host.steps[host.steps.index("execute SetBackup") :]
    assert after == [
        "execute SetBackup",
        "publish SubflowEstablished",
        "publish SubflowClosed",  # it arrived before the answer
        "publish CommandAnswered",
        "save",
    ]
    (decision,) = host.records[2].decisions
    answer = host.records[4].event
    assert answer == ev.CommandAnswered(decision_id=decision.id)
    assert plugin.calls[-1] == "answered"


def test_a_path_probe_is_sent_and_ends_at_its_deadline(tmp_path: Path) -> None:
    results: list[int | None] = []
    probe = ProbePath(local_ip=RADIO[0].ip, remote=RADIO[1], within=20 * MS, reason="test")

    def path_probed(_ctx: Context, _decision: Decision, rtt_us: int | None) -> Commands:
        results.append(rtt_us)
        return ()

    plugin = Scripted(new_subflow=lambda *_: [probe], path_probed=path_probed)

    async def use(host: Host) -> None:
        host.loop.dispatch(CONNECTED)
        await until_async(lambda: results, "the probe's end")

    host = Host(tmp_path, plugin).run(use)
    assert results == [None]
    assert f"probe {RADIO[0].ip}" in host.steps
    assert host.events[-2:] == ["CommandAnswered", "Tick"]


def test_a_refusal_by_the_kernel_is_answered_after_the_connection_s_mode(tmp_path: Path) -> None:
    """A plugin learns first that the connection is not its own."""

    async def use(host: Host) -> None:
        host.executor.answer = REFUSED
        host.executor.modes = {TOKEN: True}
        host.loop.dispatch(CONNECTED)

    host = Host(tmp_path, Scripted(new_subflow=lambda *_: [DEMOTE])).run(use)
    modes, answer = (record.event for record in host.records[-2:])
    assert modes == ev.ModesRead(modes=[ev.ConnectionMode(token=TOKEN, in_kernel=True)])
    assert isinstance(answer, ev.CommandAnswered)
    assert (answer.errno, answer.explanation) == REFUSED


def test_an_excluded_plugin_is_out_before_the_next_event(tmp_path: Path) -> None:
    """Several that fail at one event are excluded in their order."""
    first, second = Scripted(new_interface=fails), OtherScripted(new_interface=fails)
    link = ev.LinkChanged(if_index=2, name="eth0", up=True, running=True)

    async def use(host: Host) -> None:
        host.loop.dispatch([link, *CONNECTED])

    host = Host(tmp_path, first, second).run(use)
    assert host.events[:4] == [
        "LinkChanged", "PluginExcluded", "PluginExcluded", "ConnectionCreated"
    ]  # fmt: skip
    excluded = [record.event for record in host.records[1:3]]
    assert [e.plugin for e in excluded if isinstance(e, ev.PluginExcluded)] == ["scripted", "other"]
    assert host.loop.engine.plugins == []
    assert "new_connection" not in first.calls


def test_an_event_that_fails_leaves_the_rest_and_the_timer_in_place(tmp_path: Path) -> None:
    woken = asyncio.Event()
    plugin = Scripted(
        new_connection=lambda ctx, *_: [WakeAt(at=ctx.now + 5 * MS, reason="test")],
        new_subflow=lambda *_: [DEMOTE],
        wake=lambda *_: woken.set() or (),  # type: ignore[func-returns-value]
    )

    async def use(host: Host) -> None:
        host.executor.raises = OSError("by the test")
        with pytest.raises(OSError, match="by the test"):
            host.loop.dispatch([*CONNECTED, left()])
        assert host.steps[-1] == "save"
        await asyncio.wait_for(woken.wait(), 10)

    host = Host(tmp_path, plugin).run(use)
    assert host.events[-2:] == ["SubflowClosed", "Tick"]


def test_changes_are_saved_once_and_after_all_commands(tmp_path: Path) -> None:
    async def use(host: Host) -> None:
        host.loop.dispatch([*CONNECTED, joined(), joined()])

    host = Host(tmp_path, Scripted(new_connection=lambda *_: [DEMOTE] * 3)).run(use)
    assert host.steps.count("save") == 1
    assert host.steps[-1] == "save"


def test_listeners_of_closed_connections_are_closed(tmp_path: Path) -> None:
    async def use(host: Host) -> None:
        host.loop.dispatch([*CONNECTED, created(token=7)])
        assert host.executor.kept == []
        host.loop.dispatch([gone()])

    host = Host(tmp_path, Scripted()).run(use)
    assert host.executor.kept == [[7]]


# --- lost events


def test_everything_that_waits_is_read_before_a_snapshot(tmp_path: Path) -> None:
    """What waits is older than the snapshot and must not change the model after it."""

    async def use(host: Host) -> None:
        host.first.push(created(token=7))
        host.first.push(created(token=8))
        host.second.push(gone(token=7))
        host.loop.dispatch([ev.EventsLost(source="mptcp_pm"), created(token=9)])
        assert list(host.loop.engine.world.connections) == []

    host = Host(tmp_path, Scripted()).run(use)
    assert host.steps == [
        "publish EventsLost",
        "publish ConnectionCreated",  # 9, which was in the queue
        "publish ConnectionCreated",
        "publish ConnectionCreated",
        "publish ConnectionClosed",
        "read everything",
        "publish Resynchronised",
        "save",
    ]


def test_several_losses_need_one_snapshot(tmp_path: Path) -> None:
    async def use(host: Host) -> None:
        host.first.push(ev.EventsLost(source="rtnetlink"))
        host.loop.dispatch([ev.EventsLost(source="mptcp_pm"), ev.EventsLost(source="mptcp_pm")])

    host = Host(tmp_path, Scripted()).run(use)
    assert host.events == ["EventsLost"] * 3 + ["Resynchronised"]


def test_a_snapshot_that_fails_is_taken_with_the_next_event(tmp_path: Path) -> None:
    async def use(host: Host) -> None:
        host.unreadable = NetlinkRefused("no memory", errno.ENOMEM)
        with pytest.raises(NetlinkRefused):
            host.loop.dispatch([ev.EventsLost(source="mptcp_pm")])
        host.unreadable = None
        host.loop.dispatch([created()])

    host = Host(tmp_path, Scripted()).run(use)
    assert host.events == ["EventsLost", "ConnectionCreated", "Resynchronised"]


# --- timers


def test_a_deadline_becomes_a_tick(tmp_path: Path) -> None:
    """Also one that is earlier than the one that is set."""
    woken: list[int] = []
    both = asyncio.Event()
    delays = {TOKEN: 60 * MS, 7: 5 * MS}

    def wake_up(_ctx: Context, connection: Any) -> Commands:
        woken.append(connection.token)
        if len(woken) == 2:
            both.set()
        return ()

    plugin = Scripted(
        new_connection=lambda ctx, connection: [
            WakeAt(at=ctx.now + delays[connection.token], token=connection.token, reason="test")
        ],
        wake_connection=wake_up,
    )

    async def use(host: Host) -> None:
        host.loop.dispatch([created()])
        host.loop.dispatch([created(token=7)])
        await asyncio.wait_for(both.wait(), 10)

    host = Host(tmp_path, plugin).run(use)
    assert woken == [7, TOKEN]
    assert host.events == ["ConnectionCreated", "ConnectionCreated", "Tick", "Tick"]
    first, second, early, late = (record.now for record in host.records)
    assert early >= second + 5 * MS
    assert late >= first + 60 * MS


# --- what plugins ask for


@pytest.mark.parametrize("with_owners", [False, True])
def test_a_sample_is_answered_with_what_is_measured(tmp_path: Path, with_owners: bool) -> None:
    request = RequestSample(reason="test", with_owners=with_owners)

    async def use(host: Host) -> None:
        host.listed = [measured(FIBRE, owner=Owner(pid=None, comm="curl"))]
        host.loop.dispatch([created()])

    host = Host(tmp_path, Scripted(new_connection=lambda *_: [request])).run(use)
    answer = host.records[-1].event
    assert answer == ev.Sampled(measurements=host.listed, with_owners=with_owners)


@pytest.mark.parametrize("error", [KernelError("no dump"), OSError("no dump")])
def test_a_sample_that_cannot_be_taken_is_no_empty_sample(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    plugin = Scripted(new_connection=lambda *_: [RequestSample(reason="test")])

    async def use(host: Host) -> None:
        host.unreadable = error
        host.loop.dispatch([created()])

    host = Host(tmp_path, plugin).run(use)
    assert host.events == ["ConnectionCreated"]
    assert "sampled" not in plugin.calls
    assert "no dump" in caplog.text


def test_the_table_is_read_with_the_mode_of_unknown_connections(tmp_path: Path) -> None:
    async def use(host: Host) -> None:
        host.executor.modes = {TOKEN: True}
        host.loop.dispatch([created()])
        host.loop.dispatch([created(token=7)])

    host = Host(tmp_path, InKernel(new_connection=lambda *_: [ReadEndpoints(reason="test")])).run(
        use
    )
    found = [r.event for r in host.records if isinstance(r.event, ev.ModesRead)]
    tokens = [[mode.token for mode in each.modes] for each in found]
    assert tokens == [[TOKEN], []]  # the kernel does not know 7, and TOKEN is known by then
    assert host.events[-1] == "EndpointsRead"


# --- manual commands


def test_a_manual_command_returns_the_kernel_s_answer(tmp_path: Path) -> None:
    async def use(host: Host) -> None:
        host.loop.dispatch(CONNECTED)
        assert host.loop.carry_out(DEMOTE) == (DEMOTE, DONE)
        host.executor.answer = REFUSED
        assert host.loop.carry_out(DEMOTE) == (DEMOTE, REFUSED)

    plugin = Scripted()
    host = Host(tmp_path, plugin).run(use)
    assert host.executor.executed == [(DEMOTE, True)] * 2
    assert plugin.calls.count("manual_command") == 1


def test_a_refused_manual_command_returns_the_decision(tmp_path: Path) -> None:
    async def use(host: Host) -> None:
        host.loop.dispatch([created(), established()])
        refused = host.loop.carry_out(DESTROY)
        assert isinstance(refused, Decision)
        assert refused.refused
        # The next one is not mistaken for it.
        host.loop.dispatch([joined()])
        assert host.loop.carry_out(DESTROY) == (DESTROY, DONE)

    host = Host(tmp_path, Scripted()).run(use)
    assert host.executor.executed == [(DESTROY, True)]


def test_a_manual_command_is_not_confused_with_a_plugin_s(tmp_path: Path) -> None:
    """What the plugin decides on the same event has an answer of its own."""
    restore = replace(DEMOTE, backup=False)
    plugin = Scripted(manual_command=lambda *_: [restore])

    async def use(host: Host) -> None:
        host.loop.dispatch(CONNECTED)
        assert host.loop.carry_out(DESTROY) == (DESTROY, DONE)

    host = Host(tmp_path, plugin).run(use)
    assert host.executor.executed == [(DESTROY, True), (restore, False)]


# --- start, configuration and stop


def test_the_start_reads_what_exists_before_the_plugins_start(tmp_path: Path) -> None:
    seen: list[list[int]] = []
    plugin = Userspace(init=lambda ctx: seen.append(list(ctx.world.connections)) or ())  # type: ignore[func-returns-value]
    host = Host(tmp_path, plugin)
    host.kernel = truth(measured())

    async def main() -> None:
        with host.sources:
            host.loop.start()
            assert host.setting.value == "userspace"
            host.second.push(created(token=7))
            await until_async(
                lambda: 7 in host.loop.engine.world.connections, "the connection is known"
            )
            host.loop.stop()

    asyncio.run(main())
    assert host.events[:4] == ["Started", "Resynchronised", "ModesRead", "Configured"]
    first = host.records[1].event
    assert isinstance(first, ev.Resynchronised)
    assert first.at_start
    assert host.steps.index("publish Resynchronised") < host.steps.index("reopen listeners")
    assert host.steps.index("reopen listeners") < host.steps.index("publish Configured")
    assert seen == [[TOKEN]]


def test_a_start_that_fails_restores_the_setting(tmp_path: Path) -> None:
    host = Host(tmp_path, Userspace())
    host.unreadable = NetlinkRefused("no memory", errno.ENOMEM)

    async def main() -> None:
        with host.sources, pytest.raises(NetlinkRefused):
            host.loop.start()

    asyncio.run(main())
    assert host.setting.value == "kernel"


def test_a_configuration_is_put_in_force_after_all_that_waits(tmp_path: Path) -> None:
    plugin = InKernel()

    async def use(host: Host) -> None:
        host.first.push(created(), established())
        host.loop.configure(host.config, host.plugins)

    host = Host(tmp_path, plugin).run(use)
    assert host.events == [
        "ConnectionCreated", "ConnectionEstablished", "ModesRead", "Configured"
    ]  # fmt: skip
    configured = host.records[-1].event
    assert isinstance(configured, ev.Configured)
    assert configured.endpoints is not None  # a plugin removes only what is still its own
    assert host.steps.index("read endpoints") < host.steps.index("publish Configured")


def test_thresholds_reach_the_probes(tmp_path: Path) -> None:
    probes = FakeProbes()
    config = Config()

    async def use(host: Host) -> None:
        host.loop.configure(config, plugin_set())

    Host(tmp_path, probes=probes).run(use)
    assert probes.thresholds is config.probes.thresholds


@pytest.mark.parametrize("on_exit", list(OnExit))
def test_the_stop_ends_the_plugins_and_restores_the_setting(
    tmp_path: Path, on_exit: OnExit
) -> None:
    kept: list[bool] = []
    plugin = Userspace(
        exit=lambda ctx: kept.append(ctx.keep) or [],  # type: ignore[func-returns-value]
        new_connection=lambda ctx, *_: [WakeAt(at=ctx.now + MS, reason="test")],
    )
    host = Host(tmp_path, plugin, config=Config(path_manager=plugin.name, on_exit=on_exit))

    async def main() -> None:
        with host.sources:
            host.loop.start()
            host.loop.dispatch([created()])
            host.first.push(gone())
            host.loop.stop()
            assert host.setting.value == "kernel"
            stopped = len(host.records)
            host.first.push(created(token=7))
            await asyncio.sleep(0.02)  # longer than the timer and a turn of the loop
            assert len(host.records) == stopped

    asyncio.run(main())
    assert host.events[-3:] == ["Stopping", "ConnectionClosed", "Stopped"]
    assert host.steps[-2:] == ["save", "close"]
    assert "wake" not in plugin.calls
    assert "connection_closed" not in plugin.calls
    assert kept == [on_exit is OnExit.KEEP]


def test_the_start_logs_what_is_managed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for host in (Host(tmp_path), Host(tmp_path, Userspace())):
        host.kernel = truth(measured())
        host.executor.modes = {TOKEN: True}

        async def main(host: Host = host) -> None:
            with host.sources:
                host.loop.start()
                host.loop.stop()

        asyncio.run(main())
    assert "observing only" in caplog.text
    assert "plugins userspace" in caplog.text
    assert "1 of the connections use the in-kernel path manager" in caplog.text
    assert caplog.text.count("new connections use the userspace path manager") == 1


def test_the_clock_is_the_kernel_s_monotonic_one(tmp_path: Path) -> None:
    before = time.monotonic_ns()

    async def use(host: Host) -> None:
        host.loop.dispatch([created()])

    host = Host(tmp_path, Scripted()).run(use)
    assert before <= host.records[0].now <= time.monotonic_ns()
