# SPDX-License-Identifier: BSD-3-Clause
"""A connection keeps the path manager of its creation; what command answers show about it."""

import errno
from typing import Any, ClassVar

import pytest
from msgspec.structs import replace

from mptcpd_ebpf.config.plugin_loader import load
from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.commands import AnnounceAddress, Command, CreateSubflow, KernelCommand
from mptcpd_ebpf.core.model import Connection
from mptcpd_ebpf.core.plugin import Commands, Context, Plugin
from tests.core.scenario import (
    FIBRE,
    RADIO,
    SECOND,
    SERVER,
    START,
    TOKEN,
    StartedEngine,
    connect,
    created,
    established,
    gone,
    joined,
    measured,
    truth,
)

JOIN = CreateSubflow(token=TOKEN, local_ip=RADIO[0].ip, local_id=1, remote=SERVER, reason="test")
OURS, THE_KERNELS = (
    ev.ModesRead(modes=[ev.ConnectionMode(token=TOKEN, in_kernel=in_kernel)])
    for in_kernel in (False, True)
)


class Telling(Plugin):
    """Records its calls."""

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.told: list[str] = []

    def init(self, ctx: Context) -> Commands:
        self.told.append(f"init with {len(ctx.served())}")
        return ()

    def connection_established(self, ctx: Context, connection: Connection) -> list[Command]:
        self.told.append("connection_established")
        return [JOIN]

    def connection_closed(self, ctx: Context, connection: Connection) -> Commands:
        self.told.append(f"connection_closed, serving {len(ctx.served())}")
        return ()

    def new_subflow(self, ctx: Context, connection: Connection, subflow: Any) -> Commands:
        self.told.append("new_subflow")
        return ()


class Userspace(Telling):
    name = "userspace"
    mode = "userspace"


class Anywhere(Telling):
    name = "anywhere"
    mode = "any"


@pytest.mark.parametrize(
    ("kind", "modes", "served"),
    [(Userspace, OURS, 1), (Userspace, THE_KERNELS, 0), (Anywhere, THE_KERNELS, 1)],
)
def test_who_serves_what_was_there_before(
    kind: type[Telling], modes: ev.ModesRead, served: int
) -> None:
    engine = StartedEngine()
    engine.handle(truth(measured(initial=True)), START)
    engine.handle(modes, START)
    plugin = kind()
    engine.configure(plugin, default_plugin=kind.name)
    assert plugin.told == [f"init with {served}"]
    engine.handle(joined(), START)
    assert plugin.told[1:] == ["new_subflow"] * served


def test_a_connection_that_turns_out_to_be_the_kernels_is_taken_away_once() -> None:
    plugin = Userspace()
    engine = StartedEngine(plugin, default_plugin="userspace")
    engine.handle(created(), START)
    (decision,) = engine.handle(established(), START).decisions
    for _ in range(2):
        engine.handle(THE_KERNELS, START)
    engine.handle(ev.CommandAnswered(decision_id=decision.id, errno=errno.EINVAL), START)
    for event in (joined(), gone()):
        engine.handle(event, START)
    assert plugin.told == [
        "init with 0",
        "connection_established",
        "connection_closed, serving 0",
    ]


def test_a_successful_command_shows_the_mode() -> None:
    engine = StartedEngine(Userspace(), default_plugin="userspace")
    engine.handle(created(), START)
    (decision,) = engine.handle(established(), START).decisions
    assert engine.world.connections[TOKEN].in_kernel is None
    engine.handle(ev.CommandAnswered(decision_id=decision.id, errno=0), START)
    assert engine.world.connections[TOKEN].in_kernel is False


def test_an_accepted_id_is_known_before_its_subflow_is_established() -> None:
    engine = StartedEngine()
    connection = connect(engine)
    commands: list[KernelCommand] = [
        AnnounceAddress(token=TOKEN, ip="10.0.3.2", address_id=1, reason="test"),
        replace(JOIN, local_id=2),
    ]
    for number, command in enumerate(commands, start=1):
        engine.handle(ev.CommandAsked(command=command), START)
        engine.handle(ev.CommandAnswered(decision_id=number), START)
    assert connection.local_ids == {"10.0.3.2": 1, RADIO[0].ip: 2}


@pytest.mark.parametrize("name", ["adaptive", "backup", "fullmesh", "ndiffports", "sspi"])
class TestShipped:
    network: ClassVar[list[ev.Event]] = [
        event
        for number, (local, _) in enumerate((FIBRE, RADIO), start=1)
        for event in (
            ev.LinkChanged(if_index=number, name=f"wan{number}", up=True, running=True),
            ev.LocalAddressChanged(if_index=number, ip=local.ip, prefix_len=24),
            ev.DefaultRouteAdded(if_index=number, ipv6=False),
        )
    ]

    def test_they_try_nothing_again_where_nothing_can_be_done(self, name: str) -> None:
        engine = StartedEngine(load(name)(), default_plugin=name)
        for event in self.network:
            engine.handle(event, START)
        engine.handle(created(), START)
        decisions = engine.handle(established(), START).decisions
        assert [type(decision.command) for decision in decisions] == [CreateSubflow]
        engine.handle(THE_KERNELS, START)
        for decision in decisions:
            engine.handle(ev.CommandAnswered(decision_id=decision.id, errno=errno.EINVAL), START)
        for seconds in (1, 10, 100):
            assert not engine.handle(ev.Tick(), START + seconds * SECOND).decisions
        # The next one, created with the userspace path manager, is served.
        connect(engine, token=7, now=START + 200 * SECOND)
        assert 7 in engine.world.connections
        assert engine.plugin_of(7) == name
