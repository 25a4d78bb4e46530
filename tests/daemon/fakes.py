# SPDX-License-Identifier: BSD-3-Clause
"""Fakes for what the parts of the daemon depend on: kernel, sources, executor and plugins.

Each fake is the real class without its input and output, or implements the protocol that is asked
for, so that mypy compares their signatures.
"""

import asyncio
import errno
import os
from collections.abc import Callable, Container, Coroutine, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mptcpd_ebpf.config.plugin_set import PluginSet
from mptcpd_ebpf.config.settings import Config, ProbeBackend
from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.commands import (
    AddEndpoint,
    ChangeEndpoint,
    FlushEndpoints,
    KernelCommand,
    ProbePath,
    RemoveEndpoint,
    SetLimits,
)
from mptcpd_ebpf.core.endpoints import Endpoint, Limits
from mptcpd_ebpf.core.measurement import Measurement, Thresholds
from mptcpd_ebpf.core.plugin import Commands, Context, Plugin
from mptcpd_ebpf.core.recording import Record
from mptcpd_ebpf.daemon.command_executor import CommandExecutor
from mptcpd_ebpf.daemon.event_sources import EventSources
from mptcpd_ebpf.daemon.loop import Loop
from mptcpd_ebpf.daemon.new_connections import NewConnections
from mptcpd_ebpf.daemon.observers import Observers
from mptcpd_ebpf.daemon.pm_sysctl import PathManagerSysctl
from mptcpd_ebpf.kernel.errors import KernelError, NotPermitted
from mptcpd_ebpf.kernel.listeners import Listeners
from mptcpd_ebpf.kernel.path_probe import PathProber
from mptcpd_ebpf.kernel.pm_client import CommandAnswer, PmClient
from mptcpd_ebpf.kernel.sysctl import PathManagerSetting
from mptcpd_ebpf.probes.core_probes import HookReport, ProbeReport
from mptcpd_ebpf.testing import spec_of
from tests.core.scenario import truth

DONE = CommandAnswer(0, "")

# --- plugins


class Scripted(Plugin):
    """A plugin that records its calls; the test defines its handlers."""

    name = "scripted"

    def __init__(self, options: Any = None, **on: Callable[..., Commands]) -> None:
        super().__init__(options)
        self.on = on
        """What to do in a handler, by its name."""
        self.calls: list[str] = []


def _handler(name: str) -> Callable[..., Commands]:
    def handle(self: Scripted, ctx: Context, *args: object) -> Commands:
        self.calls.append(name)
        return self.on[name](ctx, *args) if name in self.on else ()

    return handle


for each, value in list(vars(Plugin).items()):
    if callable(value) and not each.startswith("_") and each != "Options":
        setattr(Scripted, each, _handler(each))


class OtherScripted(Scripted):
    name = "other"
    priority = -1


class Userspace(Scripted):
    name = "userspace"
    mode = "userspace"


class InKernel(Scripted):
    name = "in_kernel"
    mode = "kernel"


def plugin_set(*plugins: Plugin) -> PluginSet:
    return PluginSet({each.name: each for each in plugins}, [spec_of(each) for each in plugins])


# --- the kernel


class FakePm(PmClient):
    """The path managers of a namespace: a table, limits, and an answer to every command."""

    def __init__(self, *endpoints: Endpoint) -> None:
        self.executed: list[KernelCommand] = []
        self.answer = DONE
        """Of the next commands."""
        self.table = list(endpoints)
        self.limit = Limits(subflows=2, add_addr_accepted=2)
        self.modes: dict[int, bool] = {}
        """By token: whether the in-kernel path manager has the connection."""

    def close(self) -> None:
        pass

    def execute_now(self, command: KernelCommand) -> CommandAnswer:
        self.executed.append(command)
        if not self.answer.errno:
            self._apply(command)
        return self.answer

    def _apply(self, command: KernelCommand) -> None:
        match command:
            case AddEndpoint():
                free = next(n for n in range(1, 256) if all(n != e.address_id for e in self.table))
                self.table.append(
                    Endpoint(
                        ip=command.ip,
                        address_id=command.address_id or free,
                        flags=command.flags,
                        if_index=command.if_index,
                        port=command.port,
                    )
                )
            case RemoveEndpoint() | ChangeEndpoint():
                kept = [each for each in self.table if each.address_id != command.address_id]
                if isinstance(command, ChangeEndpoint):
                    changed = Endpoint(
                        ip=command.ip, address_id=command.address_id, flags=command.flags
                    )
                    kept.append(changed)
                self.table = kept
            case FlushEndpoints():
                self.table = []
            case SetLimits():
                self.limit = Limits(
                    subflows=command.subflows, add_addr_accepted=command.add_addr_accepted
                )

    def endpoints(self) -> list[Endpoint]:
        return list(self.table)

    def limits(self) -> Limits:
        return self.limit

    def highest_limit(self) -> int:
        return 8

    def in_kernel(self, token: int) -> bool | None:
        return self.modes.get(token)


class FakeSetting(PathManagerSetting):
    """The sysctl of a namespace."""

    def __init__(self, value: str = "kernel") -> None:
        super().__init__()
        self.value = value
        self.refuses: str | None = None
        """A value that cannot be set."""

    def current(self) -> str:
        return self.value

    def set(self, path_manager: str) -> str:
        if path_manager == self.refuses:
            raise NotPermitted(f"{path_manager} may not be written")
        before, self.value = self.value, path_manager
        return before


class FakeListeners(Listeners):
    """Listeners with an eventfd in place of each socket."""

    FIRST_PORT = 5000

    def __init__(self) -> None:
        super().__init__()
        self.users: dict[SockAddr, int] = {}
        """How often each address is open."""
        self.refuses: set[str] = set()
        """Addresses that cannot be listened on."""
        self.turned_away = 0
        self._descriptors: dict[SockAddr, int] = {}

    def open(self, address: SockAddr) -> SockAddr:
        if address.ip in self.refuses:
            raise KernelError(f"cannot listen on {address}: the address is not on this host")
        if not address.port:
            address = SockAddr(address.ip, self.FIRST_PORT + len(self._descriptors))
        if address not in self._descriptors:
            self._descriptors[address] = os.eventfd(0, os.EFD_NONBLOCK)
        self.users[address] = self.users.get(address, 0) + 1
        return address

    def close(self, address: SockAddr) -> bool:
        self.users[address] -= 1
        if self.users[address]:
            return False
        del self.users[address]
        os.close(self._descriptors.pop(address))
        return True

    def close_all(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
        self.users.clear()

    def filenos(self) -> list[int]:
        return list(self._descriptors.values())

    def connect(self, address: SockAddr) -> None:
        """A connection that is no join arrives."""
        os.eventfd_write(self._descriptors[address], 1)

    def close_accepted(self) -> int:
        for descriptor in self._descriptors.values():
            try:
                os.eventfd_read(descriptor)
            except BlockingIOError:
                continue
            self.turned_away += 1
        return self.turned_away


# --- event sources


class FakeSource:
    """A source of the events that the test pushes."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK)
        self._batches: list[list[ev.Event]] = []

    def push(self, *events: ev.Event) -> None:
        """One batch."""
        if not self._batches:
            os.eventfd_write(self._descriptor, 1)
        self._batches.append(list(events))

    def fileno(self) -> int:
        return self._descriptor

    def read(self) -> Sequence[ev.Event]:
        if not self._batches:
            return []
        batch = self._batches.pop(0)
        if not self._batches:
            os.eventfd_read(self._descriptor)
        return batch

    def close(self) -> None:
        os.close(self._descriptor)


class FakeProbes:
    """Probes with the measurements of the test."""

    def __init__(self, *measured: Measurement, sees_all: bool = True) -> None:
        self.report = ProbeReport(hooks=[HookReport("tap", "tp_btf/tcp_probe", True)], netns=1)
        self.measured = list(measured)
        self.sees_all = sees_all
        self.thresholds = Thresholds()
        self.closed = False

    @property
    def lost(self) -> dict[str, int]:
        return {"ring": 3}

    def programs(self) -> dict[str, int]:
        return {}

    def fileno(self) -> int:
        raise AssertionError("not to be watched")

    def read(self) -> Sequence[ev.AlarmRaised | ev.SubflowEnded]:
        return []

    def sample(self) -> list[Measurement]:
        return list(self.measured)

    def set_thresholds(self, thresholds: Thresholds) -> None:
        self.thresholds = thresholds

    def close(self) -> None:
        self.closed = True


class FakeProber(PathProber):
    """Sends nothing, and records each probe in `steps`."""

    def __init__(self, steps: list[str]) -> None:
        super().__init__()
        self._steps = steps

    def send(self, decision_id: int, command: ProbePath) -> CommandAnswer:
        self._steps.append(f"probe {command.local_ip}")
        return DONE


# --- the loop


class FakeExecutor(CommandExecutor):
    """Carries out nothing, and records each call in `steps`."""

    def __init__(self, steps: list[str]) -> None:
        self._steps = steps
        self.answer = DONE
        """Of the next commands."""
        self.raises: Exception | None = None
        """What the next command raises."""
        self.executed: list[tuple[KernelCommand, bool]] = []
        """Each with whether it was an operator's."""
        self.modes: dict[int, bool] = {}
        self.kept: list[list[int]] = []
        """The tokens of each `keep_listeners_of`."""

    def execute(
        self, command: KernelCommand, *, manual: bool = False
    ) -> tuple[KernelCommand, CommandAnswer]:
        self._steps.append(f"execute {type(command).__name__}")
        self.executed.append((command, manual))
        if self.raises is not None:
            raise self.raises
        return command, self.answer

    def read_endpoints(self) -> ev.EndpointsRead:
        self._steps.append("read endpoints")
        return ev.EndpointsRead(endpoints=[], limits=Limits(subflows=2, add_addr_accepted=0))

    def read_modes(self, tokens: Iterable[int]) -> ev.ModesRead:
        found = [
            ev.ConnectionMode(token=token, in_kernel=self.modes[token])
            for token in tokens
            if token in self.modes
        ]
        return ev.ModesRead(modes=found)

    def reopen_listeners(self, tokens: Container[int]) -> None:
        self._steps.append("reopen listeners")

    def keep_listeners_of(self, tokens: Container[int]) -> None:
        assert isinstance(tokens, Iterable)
        self.kept.append(list(tokens))

    def save(self) -> None:
        self._steps.append("save")

    def close(self) -> None:
        self._steps.append("close")


class Host:
    """A loop with fakes at its borders.

    `steps` is the order in which the loop acted: commands, reads, published events, saves.
    """

    def __init__(
        self,
        folder: Path,
        *plugins: Plugin,
        config: Config | None = None,
        probes: FakeProbes | None = None,
    ) -> None:
        """Without `config` the first plugin serves all connections."""
        self.steps: list[str] = []
        self.records: list[Record] = []
        self.first, self.second = FakeSource(), FakeSource()
        self.kernel = truth(connections=[])
        """What reading everything finds; an exception is raised."""
        self.unreadable: Exception | None = None
        """What reading the kernel raises."""
        self.listed: list[Measurement] = []
        """What a sample without probes finds."""
        closing = ExitStack()
        closing.callback(self.first.close)
        closing.callback(self.second.close)
        self.sources = EventSources(
            1,
            [self.first, self.second],
            probes,
            ProbeBackend.CORE if probes else ProbeBackend.NETLINK,
            "as the test says",
            closing,
            prober=FakeProber(self.steps),
            list_subflows=self._list,
            read_all=self._read_all,
        )
        self.executor = FakeExecutor(self.steps)
        self.setting = FakeSetting()
        self.path_manager = PathManagerSysctl(folder, self.setting)
        self.config = config or Config(path_manager=plugins[0].name if plugins else None)
        self.plugins = plugin_set(*plugins)
        self.observers = Observers(self)
        self.loop = Loop(
            self.config,
            self.plugins,
            self.sources,
            self.executor,
            self.path_manager,
            self.observers,
            NewConnections("not steered, as configured"),
            lambda _call, handler: handler(),
        )

    def run(self, use: Callable[["Host"], Coroutine[Any, Any, None]]) -> "Host":
        """Runs `use` in an event loop, with the plugins in force."""

        async def main() -> None:
            with self.sources:
                self.loop.configure(self.config, self.plugins)
                self.records.clear()
                self.steps.clear()
                await use(self)

        asyncio.run(main())
        return self

    def publish(self, record: Record) -> None:
        """As an observer."""
        self.records.append(record)
        self.steps.append(f"publish {type(record.event).__name__}")

    @property
    def events(self) -> list[str]:
        """The types of the published events."""
        return [type(record.event).__name__ for record in self.records]

    def _list(self, _with_owners: bool) -> list[Measurement]:
        if self.unreadable is not None:
            raise self.unreadable
        return self.listed

    def _read_all(self, _subflows: list[Measurement] | None) -> ev.Resynchronised:
        self.steps.append("read everything")
        if self.unreadable is not None:
            raise self.unreadable
        return self.kernel


REFUSED = CommandAnswer(errno.ESRCH, "no such subflow")
