# SPDX-License-Identifier: BSD-3-Clause
"""The daemon's loop: moves events from the kernel into the core, and commands back.

    sources (netlink, probes) ──▶ engine ──▶ hands (path-manager commands)
                                 │
                                 └──▶ log, control socket

One thread, one timer.  Whatever is decided is carried out in the same turn of the
loop: the kernel handles a path-manager request inside the call, so waiting for the
answer costs microseconds and keeps everything in order.
"""

import asyncio
import gc
import logging
import os
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from mptcpd_ebpf import __version__
from mptcpd_ebpf.config import plugin_loader, plugin_set
from mptcpd_ebpf.config.settings import Config, OnExit, Settings, fixed_at_start
from mptcpd_ebpf.control import describe, operator_commands, views
from mptcpd_ebpf.control.schema import (
    SCHEMA,
    CarriedOut,
    Connections,
    DecisionView,
    Endpoints,
    LimitsView,
    Status,
)
from mptcpd_ebpf.control.server import ControlServer, epoch_ns
from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.commands import (
    BY_HAND,
    Command,
    ConnectionCommand,
    Decision,
    KernelCommand,
    ReadEndpoints,
    RequestSample,
    TableCommand,
    WakeAt,
)
from mptcpd_ebpf.core.engine import Engine, Outcome
from mptcpd_ebpf.core.plugin import Plugin
from mptcpd_ebpf.daemon.command_executor import CommandExecutor
from mptcpd_ebpf.daemon.event_sources import EventSources
from mptcpd_ebpf.daemon.handler_budget import HandlerBudget
from mptcpd_ebpf.daemon.pm_sysctl import PathManagerSysctl
from mptcpd_ebpf.daemon.resync_scheduler import ResyncScheduler
from mptcpd_ebpf.kernel import others, sysctl
from mptcpd_ebpf.kernel.errors import KernelError
from mptcpd_ebpf.kernel.event_source import EventSource
from mptcpd_ebpf.kernel.pm import joins_marked
from mptcpd_ebpf.kernel.pm_client import CommandAnswer, PmClient
from mptcpd_ebpf.runtime import logging_setup, run_folder
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure

log = logging.getLogger("mptcpd-ebpf")

REMEMBERED_DECISIONS = 1000


class Daemon:
    """One engine between the sources and the hands; what the control socket asks for."""

    def __init__(
        self,
        settings: Settings,
        config: Config,
        sources: EventSources,
        pm: PmClient,
        budget: HandlerBudget,
    ) -> None:
        self._settings = settings
        self._started_with = self._config = config
        self._sources = sources
        self._pm = pm
        self._executor = CommandExecutor(pm)
        self._engine = Engine(
            destructive_per_second=config.limits.destructive_per_second,
            seed=int.from_bytes(os.urandom(8)),
            budget=budget,
            joins_marked=joins_marked,
        )
        self._setting = PathManagerSysctl()
        self._mode: str | None = None
        self._queue: deque[ev.Event] = deque()
        self._decisions: deque[Decision] = deque(maxlen=REMEMBERED_DECISIONS)
        self._decided = self._refused = 0
        self._events_lost: dict[str, int] = {}
        self._resync_due = False
        self._resync = ResyncScheduler(self._read_anew, sees_ends=sources.sees_ends)
        self._started_at = time.time()
        self._timer: asyncio.TimerHandle | None = None
        self._control: ControlServer | None = None
        self._done_by_hand: tuple[KernelCommand, CommandAnswer] | None = None

    def start(self, control: ControlServer, plugins: Sequence[Plugin]) -> None:
        """Takes up what lives already, then listens."""
        loop = asyncio.get_running_loop()
        self._control = control
        for file in run_folder.sweep():
            log.info("%s removed: its network namespace is no more", file)
        self._set_path_manager(plugins)
        log.info("probes: %s", self._sources.choice)
        if not sysctl.enabled():
            log.warning(
                "net.mptcp.enabled is 0: no socket here becomes MPTCP; "
                "run 'sysctl -w net.mptcp.enabled=1'"
            )
        for other in others.others():
            log.warning("%s (pid %s) manages or hears MPTCP here too; %s", *_named(other))
        # The plugins come after the snapshot: their `init` finds all that lives already.
        self._dispatch([replace(self._sources.snapshot(), at_start=True)])
        self._executor.reopen_doors(self._engine.world.connections)
        self._install(plugins)
        for source in self._sources.sources:
            loop.add_reader(source.fileno(), self._read, source)
        self._resync.start()
        log.info(
            "ready: %s; %d connections live already",
            self._who_is_at_work(),
            len(self._engine.world.connections),
        )
        # What was made up to here stays: the collector need not look at it ever again.
        gc.freeze()

    def stop(self) -> None:
        """Lets the plugins clean up and gives the namespace back."""
        loop = asyncio.get_running_loop()
        for source in self._sources.sources:
            loop.remove_reader(source.fileno())
        with self._engine.unasked():
            self._dispatch(self._sources.waiting())
        self._refresh_endpoints()
        keep = self._engine.plugins if self._config.on_exit is OnExit.KEEP else ()
        self._carry_out(self._engine.stop(time.monotonic_ns(), keep))
        # The loop may turn once more, and nobody may be woken then.
        self._resync.stop()
        if self._timer is not None:
            self._timer.cancel()
        self._executor.save()
        self._executor.close()
        self._setting.give_back()
        log.info("stopped")

    def _who_is_at_work(self) -> str:
        installed = self._engine.installed
        if not installed:
            return "observing only, nothing is managed (choose a plugin with --path-manager)"
        names = [each.name for each in installed if each.name not in self._engine.excluded]
        return f"plugins {', '.join(names)}" if names else "no plugin is left, nothing is managed"

    def _install(self, plugins: Sequence[Plugin]) -> None:
        """Gives the engine the configuration and its plugins, which start from the model."""
        self._dispatch(self._sources.waiting())
        self._dispatch([ev.ConfigChanged(config=msgspec.to_builtins(self._config))])
        serve = plugin_set.serving(self._config, plugins, self._engine.world)
        self._refresh_endpoints()
        if any(plugin.mode == "userspace" for plugin in plugins):
            self._dispatch(self._read_modes())
            self._say_what_stays_with_the_kernel()
        self._carry_out(self._engine.reconfigure(plugins, serve, time.monotonic_ns()))
        self._drain()

    def _refresh_endpoints(self) -> None:
        """Before plugins say their last word: what they remove must still be what they made."""
        if any(plugin.mode == "kernel" for plugin in self._engine.installed):
            with self._engine.unasked():
                self._dispatch(self._read_table())

    def _read_table(self) -> list[ev.Event]:
        """The endpoint table, and who is concerned by what happens to it."""
        return [*self._read_modes(), self._executor.read_endpoints()]

    def _read_modes(self) -> list[ev.Event]:
        """Which path manager has the connections that nobody asked about yet."""
        found = self._engine.world.connections.items()
        tokens = [token for token, connection in found if connection.in_kernel is None]
        return [self._executor.read_modes(tokens)] if tokens else []

    def _say_what_stays_with_the_kernel(self) -> None:
        count = sum(bool(c.in_kernel) for c in self._engine.world.connections.values())
        if count:
            log.info(
                "%d of the connections were made under the in-kernel path manager and stay with "
                "it: no plugin manages them",
                count,
            )

    def _set_path_manager(self, plugins: Sequence[Plugin]) -> None:
        modes = {plugin.mode for plugin in plugins} - {"any"}
        if not modes:
            self._setting.give_back()
            self._mode = None
            return
        (mode,) = modes
        before = self._setting.borrow(mode)
        is_news, self._mode = mode != self._mode, mode
        if before != mode and is_news:
            log.info(
                "new connections get the %s path manager (was: %s) until this daemon ends",
                mode,
                before,
            )

    # --- events in

    def _read(self, source: EventSource) -> None:
        self._dispatch(source.read())

    def _dispatch(self, events: Sequence[ev.Event]) -> None:
        self._queue.extend(events)
        self._drain()

    def _drain(self) -> None:
        try:
            while self._queue or self._resync_due:
                if self._queue:
                    self._take_in(self._queue.popleft())
                else:
                    self._take_in(self._sources.snapshot())
                    self._resync_due = False
        finally:
            # Whatever went wrong with one event, the next deadline must not be missed.
            self._set_timer()
            # A file takes longer than all the commands of a turn: once, and after them.
            self._executor.save()

    def _take_in(self, event: ev.Event) -> None:
        if isinstance(event, ev.EventsLost):
            self._lost(event)
            return
        outcome = self._engine.handle(event, time.monotonic_ns())
        self._carry_out(outcome, event)
        self._resync.look_at(outcome.finals, self._engine.world)
        if isinstance(event, ev.ConnectionClosed | ev.Resynchronised):
            self._executor.keep_doors_of(self._engine.world.connections)

    def _lost(self, event: ev.EventsLost) -> None:
        count = self._events_lost[event.source] = self._events_lost.get(event.source, 0) + 1
        log.warning("events lost from %s (%d. time): reading everything anew", event.source, count)
        self._want_resync()

    def _want_resync(self) -> None:
        if not self._resync_due:
            # All that waits is older than what will be read anew, and must not come after it.
            self._resync_due = True
            self._queue.extend(self._sources.waiting())

    def _read_anew(self) -> None:
        if self._engine.world.connections:
            self._want_resync()
            self._drain()

    def _set_timer(self) -> None:
        deadline = self._engine.deadline
        at = None if deadline is None else deadline / 1e9
        if self._timer is not None:
            if self._timer.when() == at:
                return  # most events change nothing here, and a timer made anew costs as much
            self._timer.cancel()
            self._timer = None
        if at is not None:
            self._timer = asyncio.get_running_loop().call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._dispatch([ev.Tick()])

    # --- commands out

    def _carry_out(self, outcome: Outcome, event: ev.Event | None = None) -> None:
        """Commands first; then whoever watches hears of the event and what it led to."""
        carried_out = []
        for decision in outcome.decisions:
            self._decided += 1
            if decision.refused is None:
                command = self._execute(decision)
                if command is not decision.command:
                    # It was completed on the way: with the port of an announcement.
                    decision = replace(decision, command=command)
            else:
                self._refused += 1
            carried_out.append(decision)
        if event is not None and self._control is not None:
            self._control.publish(event)
        for fault in outcome.faults:
            log.error(
                "plugin %s is kept out from now on: its %s raised %s; mend it and reload (SIGHUP)",
                fault.plugin,
                fault.handler,
                fault.error,
            )
        for decision in carried_out:
            if not isinstance(decision.command, RequestSample | ReadEndpoints):
                self._remember(decision)

    def _execute(self, decision: Decision) -> Command:
        """Returns the command as it was carried out."""
        command = decision.command
        if isinstance(command, RequestSample):
            self._sample(with_owners=command.with_owners)
            return command
        if isinstance(command, ReadEndpoints):
            self._queue.extend(self._read_table())
            return command
        assert not isinstance(command, WakeAt)
        by_person = decision.plugin == BY_HAND
        command, answer = self._executor.execute(command, by_person=by_person)
        if by_person:
            self._done_by_hand = (command, answer)
        if answer.errno:
            log.warning("%s: %s", describe.action(command), answer.explanation)
            if isinstance(command, ConnectionCommand):
                # Before the answer: whose connection it is not, learns that first.
                self._queue.append(self._executor.read_modes([command.token]))
        self._queue.append(
            ev.CommandAnswered(
                decision_id=decision.id, errno=answer.errno, explanation=answer.explanation
            )
        )
        return command

    def _sample(self, *, with_owners: bool) -> None:
        """Without an answer plugins go on waiting; a sample that is empty would be a lie."""
        connections = self._engine.world.connections
        unasked = {token: None for token, c in connections.items() if not c.owner_asked}
        try:
            measured = self._sources.sample(owners_of=unasked if with_owners else None)
        except (OSError, KernelError) as error:
            log.error("the subflows could not be read, nothing is decided from them: %s", error)
            return
        self._queue.append(ev.Sampled(measurements=measured, with_owners=with_owners))

    def _remember(self, decision: Decision) -> None:
        level = logging.DEBUG if decision.command.routine else logging.INFO
        log.log(level, "%s", describe.decision(decision))
        self._decisions.append(decision)
        if self._control is not None:
            self._control.publish(decision)

    # --- what the control socket asks for (`control.ControlSource`)

    async def connections(self) -> Connections:
        self._dispatch([ev.Sampled(measurements=self._sources.sample())])
        return views.connections(self._engine.world, epoch_ns())

    def status(self) -> Status:
        world = self._engine.world
        return {
            "schema": SCHEMA,
            "version": __version__,
            "pid": os.getpid(),
            "netns": self._sources.netns,
            "started_at": self._started_at,
            "paused": self._engine.paused,
            "waits_for_restart": fixed_at_start(self._started_with, self._config),
            "path_manager": sysctl.PathManagerSetting().current(),
            "plugins": [
                {"name": plugin.name, "excluded": _why(self._engine, plugin.name)}
                for plugin in self._engine.installed
            ],
            "probes": self._sources.status(),
            "connections": len(world.connections),
            "subflows": sum(len(c.subflows) for c in world.connections.values()),
            "events_lost": self._events_lost,
            "decisions": self._decided,
            "decisions_refused": self._refused,
        }

    def decisions(self) -> list[DecisionView]:
        return [views.decision(decision, epoch_ns()) for decision in self._decisions]

    async def carry_out(self, fields: dict[str, Any]) -> CarriedOut:
        command = operator_commands.parse(fields, self._pm)
        if isinstance(command, TableCommand):
            # The guard must know the table; nobody may have read it yet.
            self._dispatch(self._read_table())
        self._done_by_hand = None
        self._dispatch([ev.CommandAsked(command=command)])
        done = self._done_by_hand
        if isinstance(command, TableCommand):
            self._dispatch([self._executor.read_endpoints()])
        if done is None:
            refused = next(d.refused for d in reversed(self._decisions) if d.plugin == BY_HAND)
            return operator_commands.carried_out(command, "daemon", None, refused or "")
        return operator_commands.carried_out(done[0], "daemon", *done[1])

    async def endpoints(self) -> Endpoints:
        return operator_commands.endpoints(self._pm.endpoints())

    async def limits(self) -> LimitsView:
        return operator_commands.limits(self._pm.limits())

    async def pause(self) -> None:
        log.info("paused: nothing is decided until 'mptcpd-ebpf resume'")
        self._dispatch([ev.Paused()])

    async def resume(self) -> None:
        log.info("resumed")
        self._dispatch([ev.Resumed()])

    async def reload(self) -> None:
        config = self._settings.load(plugin_loader.options_of)
        plugins = plugin_set.build(config)
        try:
            self._set_path_manager(plugins)
        except KernelError as error:
            raise Failure(str(error), ExitCode.PRIVILEGE) from None
        self._config = config
        self._sources.set_thresholds(config.probes.thresholds)
        self._install(plugins)
        logging_setup.set_up(config.log, config.log_level)
        for warning in self._settings.warnings():
            log.warning("%s", warning)
        log.info("configuration reloaded")
        if fixed := fixed_at_start(self._started_with, config):
            log.warning(
                "changed, but as before until the daemon is restarted: %s", ", ".join(fixed)
            )

    def reload_or_complain(self) -> None:
        """SIGHUP: like the control socket's reload, with the mistakes told in the log."""
        asyncio.get_running_loop().create_task(self._reload_or_complain())

    async def _reload_or_complain(self) -> None:
        try:
            await self.reload()
        except Failure as failure:
            log.error("configuration not reloaded, the old one stays: %s", failure)


def _named(other: others.Manager) -> tuple[str, int | str, str]:
    return other.comm or "a process", other.pid or "unknown", other.advice


def _why(engine: Engine, name: str) -> str | None:
    fault = engine.excluded.get(name)
    return f"its {fault.handler} raised {fault.error}" if fault is not None else None
