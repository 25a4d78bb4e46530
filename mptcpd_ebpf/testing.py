# SPDX-License-Identifier: BSD-3-Clause
"""What the tests of a plugin import: an engine with plugins in it, and a clock that the test moves.

    host = PluginTest(Patient())
    host.add_address("wan0", "10.0.1.2")
    connection = host.connect("10.0.1.2", "10.0.9.1")
    host.wait(2 * SECOND)
    assert host.commands == [...]

Commands are answered at once, with success or with what the test says.  What a plugin raises is
raised in the test.
"""

import errno
import itertools
from collections.abc import Callable
from typing import Any

from msgspec import to_builtins

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.address import SockAddr, is_ipv6
from mptcpd_ebpf.core.commands import (
    AnyCommand,
    Command,
    Decision,
    KernelCommand,
    OwnCommand,
    ProbePath,
    ReadEndpoints,
    ReportPath,
    RequestSample,
    SteerNewConnections,
    WakeAt,
)
from mptcpd_ebpf.core.configuration import CoreConfig, PluginSpec
from mptcpd_ebpf.core.engine import Engine, Outcome
from mptcpd_ebpf.core.measurement import AlarmKind, Measurement
from mptcpd_ebpf.core.model import SECOND, Connection, Subflow
from mptcpd_ebpf.core.plugin import Plugin

__all__ = ["PluginTest", "configured", "spec_of"]

START = 1000 * SECOND
"""The first moment of the clock, so that no plugin depends on a machine that has just booted."""


def spec_of(plugin: Plugin) -> PluginSpec:
    """The spec by which an engine knows a plugin that exists already."""
    kind = type(plugin)
    return PluginSpec(
        name=plugin.name,
        options=to_builtins(plugin.options),
        digest=f"{kind.__module__}.{kind.__qualname__}",
    )


def configured(*plugins: Plugin, config: CoreConfig | None = None) -> ev.Configured:
    """The event that puts these plugins in force.

    Without `config` the first plugin serves all connections.
    """
    if config is None:
        config = CoreConfig(default_plugin=plugins[0].name if plugins else None)
    return ev.Configured(config=config, plugins=[spec_of(plugin) for plugin in plugins])


class PluginTest:
    """An engine that is started, with a kernel that answers every command.

    `answer` returns the errno with which the kernel answers a command, 0 for success.
    """

    def __init__(
        self,
        *plugins: Plugin,
        config: CoreConfig | None = None,
        seed: int = 0,
        answer: Callable[[KernelCommand], int] = lambda _: 0,
    ) -> None:
        self._plugins = {plugin.name: plugin for plugin in plugins}
        self._config = config
        self._raised: BaseException | None = None
        self._indexes = itertools.count(1)
        self._ports = itertools.count(40_000)
        self.answer = answer
        self.now = START
        """CLOCK_MONOTONIC nanoseconds."""
        self.decisions: list[Decision] = []
        """All that was decided, oldest first."""
        self.engine = Engine(lambda spec: self._plugins[spec.name], self._run)
        self.handle(ev.Started(seed=seed))
        self.handle(configured(*plugins, config=config))

    @property
    def commands(self) -> list[Command]:
        """The commands that were not refused, without requests for samples."""
        return [
            each.command
            for each in self.decisions
            if each.refused is None and not isinstance(each.command, OwnCommand)
        ]

    def _run(self, _call: int, handler: Callable[[], list[AnyCommand]]) -> list[AnyCommand]:
        try:
            return handler()
        except BaseException as error:
            self._raised = error
            raise

    def handle(self, event: ev.Event) -> list[Decision]:
        """Feeds in an event and the kernel's answers to what follows; returns the decisions."""
        before = len(self.decisions)
        waiting = [event]
        while waiting:
            outcome = self.engine.handle(waiting.pop(0), self.now)
            if self._raised is not None:
                raise self._raised
            self.decisions += outcome.decisions
            waiting += self.answers_to(outcome)
        return self.decisions[before:]

    def answers_to(self, outcome: Outcome) -> list[ev.Event]:
        """What the kernel answers to the commands of an outcome."""
        answers: list[ev.Event] = []
        for decision in outcome.decisions:
            command = decision.command
            assert not isinstance(command, WakeAt)
            if decision.refused is not None or isinstance(command, ReadEndpoints | ReportPath):
                continue
            if isinstance(command, RequestSample):
                answers.append(ev.Sampled(measurements=self.sample()))
                continue
            if isinstance(command, ProbePath):
                answers += self._probe(decision.id, command)
                continue
            refusal = 0 if isinstance(command, SteerNewConnections) else self.answer(command)
            answers.append(ev.CommandAnswered(decision_id=decision.id, errno=refusal))
        return answers

    def _probe(self, number: int, command: ProbePath) -> list[ev.Event]:
        try:
            rtt_us = self.probe(command)
        except OSError as error:
            return [ev.CommandAnswered(decision_id=number, errno=error.errno or errno.EIO)]
        sent = ev.CommandAnswered(decision_id=number)
        if rtt_us is None:
            return [sent]
        return [sent, ev.PathProbed(decision_id=number, rtt_us=rtt_us, size=1500)]

    def probe(self, command: ProbePath) -> int | None:
        """The RTT in microseconds with which a path probe is answered, or None; override it.

        An OSError that it raises is the kernel's answer: the probe was not sent.
        """
        return 10_000

    def sample(self) -> list[Measurement]:
        """What a RequestSample is answered with; override it to measure something."""
        connections = self.engine.world.connections.values()
        return [
            self.measure(subflow)
            for connection in connections
            for subflow in connection.subflows.values()
        ]

    def measure(self, subflow: Subflow, **fields: Any) -> Measurement:
        """A measurement of a subflow at this moment."""
        fields = {"state": 1, **fields}
        token, local, remote = subflow.token, subflow.local, subflow.remote
        return Measurement(at=self.now, token=token, local=local, remote=remote, **fields)

    def wait(self, nanoseconds: int) -> list[Decision]:
        """Lets time pass, with every deadline on the way; returns the decisions."""
        before = len(self.decisions)
        until = self.now + nanoseconds
        while (deadline := self.engine.deadline) is not None and deadline <= until:
            self.now = max(self.now, deadline)
            self.handle(ev.Tick())
        self.now = until
        return self.decisions[before:]

    def reload(self, *plugins: Plugin, config: CoreConfig | None = None) -> list[Decision]:
        """Reads the configuration again; without plugins, as it was."""
        chosen = plugins or tuple(self._plugins.values())
        self._plugins = {plugin.name: plugin for plugin in chosen}
        return self.handle(configured(*chosen, config=config or self._config))

    def stop(self, keep: list[str] | None = None) -> list[Decision]:
        """Ends the run: plugins put back what they changed, except those in `keep`."""
        return self.handle(ev.Stopped(keep=keep or []))

    # --- the host

    def add_address(self, interface: str, ip: str) -> list[Decision]:
        """An address of ours, with a default route; the interface is created, with carrier, if it
        does not exist."""
        world = self.engine.world
        known = {link.name: link.if_index for link in world.links.values()}
        if interface not in known:
            known[interface] = next(self._indexes)
            self.set_carrier(interface, if_index=known[interface])
        if_index = known[interface]
        self.handle(ev.DefaultRouteAdded(if_index=if_index, ipv6=is_ipv6(ip)))
        return self.handle(ev.LocalAddressChanged(if_index=if_index, ip=ip, prefix_len=24))

    def remove_address(self, ip: str) -> list[Decision]:
        index = self.engine.world.interface_of(ip)
        assert index is not None, f"no interface has {ip}"
        return self.handle(ev.LocalAddressRemoved(if_index=index, ip=ip))

    def set_carrier(
        self, interface: str, *, on: bool = True, if_index: int | None = None
    ) -> list[Decision]:
        links = self.engine.world.links.values()
        index = if_index or next(link.if_index for link in links if link.name == interface)
        return self.handle(ev.LinkChanged(if_index=index, name=interface, up=True, running=on))

    # --- connections

    def connect(
        self, local_ip: str, remote_ip: str, *, token: int = 1, port: int = 443, **fields: Any
    ) -> Connection:
        """A connection that is established, with its initial subflow."""
        local, remote = SockAddr(local_ip, next(self._ports)), SockAddr(remote_ip, port)
        for kind in (ev.ConnectionCreated, ev.ConnectionEstablished):
            self.handle(kind(token=token, local=local, remote=remote, **fields))
        return self.engine.world.connections[token]

    def join(self, connection: Connection, local_ip: str, **fields: Any) -> Subflow:
        """A join from `local_ip` succeeds."""
        local = SockAddr(local_ip, next(self._ports))
        remote = fields.pop("remote", connection.remote)
        fields = {"local_id": connection.local_ids.get(local_ip), "remote_id": 0, **fields}
        self.handle(
            ev.SubflowEstablished(token=connection.token, local=local, remote=remote, **fields)
        )
        return connection.subflows[local, remote]

    def close(self, subflow: Subflow, **fields: Any) -> list[Decision]:
        """A subflow is closed, for what `error` or `reset_reason` say."""
        return self.handle(
            ev.SubflowClosed(
                token=subflow.token, local=subflow.local, remote=subflow.remote, **fields
            )
        )

    def alarm(
        self, subflow: Subflow, kind: AlarmKind, *, value: int = 0, **fields: Any
    ) -> list[Decision]:
        """A probe raises an alarm for a subflow; `fields` are those of its measurement."""
        measurement = self.measure(subflow, **fields)
        return self.handle(ev.AlarmRaised(kind=kind, measurement=measurement, value=value))
