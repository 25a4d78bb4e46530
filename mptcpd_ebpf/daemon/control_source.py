# SPDX-License-Identifier: BSD-3-Clause
"""The daemon's answers to the control socket (`control.server.ControlSource`).

A read never reaches a plugin: `connections` shows new measurements in place of the model's, and
leaves the model as it is.
"""

import asyncio
import os
import time
from typing import Any

from mptcpd_ebpf import __version__
from mptcpd_ebpf.control import operator_commands, paths_view, story, views
from mptcpd_ebpf.control.paths_view import Rates
from mptcpd_ebpf.control.schema import (
    SCHEMA,
    CarriedOut,
    Connections,
    DecisionView,
    Endpoints,
    JournalView,
    LimitsView,
    Paths,
    Status,
    Story,
)
from mptcpd_ebpf.control.server import epoch_ns
from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.commands import Decision, TableCommand
from mptcpd_ebpf.daemon.event_sources import EventSources
from mptcpd_ebpf.daemon.loop import Loop
from mptcpd_ebpf.daemon.observers import Memory, Statistics
from mptcpd_ebpf.daemon.reload import Reloader
from mptcpd_ebpf.journal.writer import Writer
from mptcpd_ebpf.kernel.pm_client import PmClient
from mptcpd_ebpf.kernel.sysctl import PathManagerSetting
from mptcpd_ebpf.runtime.log_sinks import NonBlockingHandler

TOLD_AT_ONCE = 250
"""Records whose story is told in one turn of the loop: some 4 ms."""


class DaemonControl:
    """Answers for a running daemon."""

    def __init__(
        self,
        loop: Loop,
        reloader: Reloader,
        sources: EventSources,
        pm: PmClient,
        statistics: Statistics,
        memory: Memory,
        path_manager: PathManagerSetting,
        journal: Writer | None = None,
    ) -> None:
        self._loop = loop
        self._reloader = reloader
        self._sources = sources
        self._pm = pm
        self._statistics = statistics
        self._memory = memory
        self._path_manager = path_manager
        self._journal = journal
        self._rates = Rates()
        self._started_at = time.time()

    async def connections(self) -> Connections:
        return views.connections(self._loop.engine.world, epoch_ns(), self._sources.sample())

    async def paths(self) -> Paths:
        measured = self._sources.sample()
        self._rates.read(measured, time.monotonic_ns())
        world = self._loop.engine.world
        connections = views.at_present(world, measured)
        subflows = [subflow for each in connections for subflow in each.subflows.values()]
        return paths_view.paths(world, subflows, self._rates, epoch_ns())

    def status(self) -> Status:
        engine = self._loop.engine
        connections = engine.world.connections
        return {
            "schema": SCHEMA,
            "version": __version__,
            "pid": os.getpid(),
            "netns": self._sources.netns,
            "started_at": self._started_at,
            "paused": engine.paused,
            "dry_run": self._loop.config.dry_run,
            "pending_restart": self._reloader.pending_restart,
            "path_manager": self._path_manager.current(),
            "plugins": [
                {"name": plugin.name, "excluded": self._why_excluded(plugin.name)}
                for plugin in engine.installed
            ],
            "probes": self._sources.status(),
            "new_connections": self._loop.new_connections.status(engine.steering, epoch_ns()),
            "connections": len(connections),
            "subflows": sum(len(c.subflows) for c in connections.values()),
            "events_lost": self._statistics.events_lost,
            "decisions": self._statistics.decided,
            "decisions_refused": self._statistics.refused,
            "log_messages_dropped": NonBlockingHandler.dropped_in_all,
            "paths": paths_view.not_active(engine.world, epoch_ns()),
            "journal": self._journal_view(),
        }

    def _journal_view(self) -> JournalView | None:
        journal = self._journal
        if journal is None:
            return None
        return {
            "path": str(journal.path.absolute()),
            "bytes": journal.size,
            "records_dropped": journal.dropped,
            "problem": journal.problem,
        }

    def _why_excluded(self, name: str) -> str | None:
        fault = self._loop.engine.excluded.get(name)
        return f"{fault.handler}() raised {fault.error}" if fault is not None else None

    def decisions(self) -> list[DecisionView]:
        shift = epoch_ns()
        return [views.decision(decision, shift) for decision in self._statistics.decisions]

    async def story(self) -> Story:
        world = self._loop.engine.world
        interfaces = {
            address.ip: world.interface_name(address.if_index) or address.ip
            for address in world.addresses.values()
        }
        teller = story.Teller(epoch_ns(), interfaces)
        for number, record in enumerate(self._memory.records):
            if number % TOLD_AT_ONCE == TOLD_AT_ONCE - 1:
                await asyncio.sleep(0)
            teller.take(record)
        return {"schema": SCHEMA, "entries": teller.finish()}

    async def carry_out(self, fields: dict[str, Any]) -> CarriedOut:
        command = operator_commands.parse(fields, self._pm)
        table = isinstance(command, TableCommand)
        if table:
            # The guard depends on the table, which may not have been read yet.
            self._loop.dispatch(self._loop.read_table())
        done = self._loop.carry_out(command)
        if table:
            self._loop.dispatch(self._loop.read_table())
        if isinstance(done, Decision):
            return operator_commands.carried_out(command, "daemon", None, done.refused or "")
        return operator_commands.carried_out(done[0], "daemon", *done[1])

    async def endpoints(self) -> Endpoints:
        return operator_commands.endpoints(self._pm.endpoints())

    async def limits(self) -> LimitsView:
        return operator_commands.limits(self._pm.limits())

    async def pause(self) -> None:
        self._loop.dispatch([ev.Paused()])

    async def resume(self) -> None:
        self._loop.dispatch([ev.Resumed()])

    async def reload(self) -> None:
        self._reloader.reload()
