# SPDX-License-Identifier: BSD-3-Clause
"""The daemon's loop: moves events from the kernel into the engine, and commands back.

    event sources ──▶ engine ──▶ command executor
                        │
                        └──▶ observers

One thread, one timer.  Commands are carried out in the turn of the loop that decided them: the
kernel handles a path-manager request inside the call, so waiting for the answer takes microseconds
and keeps events, commands and answers in order.
"""

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Sequence
from typing import cast

from msgspec.structs import replace

from mptcpd_ebpf.config import plugin_set
from mptcpd_ebpf.config.plugin_set import PluginSet
from mptcpd_ebpf.config.settings import Config, OnExit
from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.commands import (
    MANUAL,
    AnnounceAddress,
    ConnectionCommand,
    Decision,
    KernelCommand,
    ProbePath,
    ReadEndpoints,
    ReportPath,
    RequestSample,
    SteerNewConnections,
    WakeAt,
)
from mptcpd_ebpf.core.engine import Engine
from mptcpd_ebpf.core.plugin_host import RunHandler
from mptcpd_ebpf.core.recording import Record
from mptcpd_ebpf.daemon.command_executor import CommandExecutor
from mptcpd_ebpf.daemon.event_sources import EventSources
from mptcpd_ebpf.daemon.new_connections import NewConnections
from mptcpd_ebpf.daemon.observers import Observers
from mptcpd_ebpf.daemon.pm_sysctl import PathManagerSysctl
from mptcpd_ebpf.daemon.repeated_alarms import without_repeated
from mptcpd_ebpf.daemon.resync_scheduler import ResyncScheduler
from mptcpd_ebpf.daemon.sampler import Sampler
from mptcpd_ebpf.kernel.errors import KernelError
from mptcpd_ebpf.kernel.event_source import EventSource
from mptcpd_ebpf.kernel.pm import joins_marked
from mptcpd_ebpf.kernel.pm_client import CommandAnswer

log = logging.getLogger("mptcpd-ebpf")


class Loop:
    """One engine between event sources, command executor and observers."""

    def __init__(
        self,
        config: Config,
        plugins: PluginSet,
        sources: EventSources,
        executor: CommandExecutor,
        path_manager: PathManagerSysctl,
        observers: Observers,
        new_connections: NewConnections,
        run_handler: RunHandler,
    ) -> None:
        self.config = config
        """The configuration in force."""
        self._plugins = plugins
        self._sources = sources
        self._executor = executor
        self._path_manager = path_manager
        self._observers = observers
        self.new_connections = new_connections
        self.engine = Engine(lambda spec: self._plugins.plugins[spec.name], run_handler)
        self._queue: deque[ev.Event] = deque()
        self._resync_due = False
        self._resync = ResyncScheduler(self._resynchronise, sees_ends=sources.sees_ends)
        self._sampler = Sampler(self._sample, lambda: self.dispatch(()))
        self._timer: asyncio.TimerHandle | None = None
        self._manual: tuple[KernelCommand, CommandAnswer] | Decision | None = None

    def start(self) -> None:
        """Sets the path manager, reads the existing connections, and waits for events.

        Raises KernelError, and the path manager is as before.
        """
        self._path_manager.use(plugin_set.path_manager(self.config, self._plugins))
        try:
            self._begin()
        except BaseException:
            self._path_manager.restore()
            raise

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        # The plugins start after the snapshot, so that their `init` sees every live connection.
        started = ev.Started(
            seed=int.from_bytes(os.urandom(4)),
            joins_marked=joins_marked(),
            steers=self.new_connections.steers,
        )
        self.dispatch([started, replace(self._sources.snapshot(), at_start=True)])
        self._executor.reopen_listeners(self.engine.world.connections)
        self.configure(self.config, self._plugins)
        for source in self._sources.sources:
            loop.add_reader(source.fileno(), self._read, source)
        self._resync.start()
        log.info(
            "ready: %s; existing connections: %d",
            self._plugins_at_work(),
            len(self.engine.world.connections),
        )

    def stop(self) -> None:
        """Lets the plugins clean up and restores the settings of the namespace."""
        loop = asyncio.get_running_loop()
        for source in self._sources.sources:
            loop.remove_reader(source.fileno())
        # From here on plugins start nothing new; events that wait still update the model.
        self.dispatch([ev.Stopping(), *self._sources.waiting()])
        keep = self.engine.plugins if self.config.on_exit is OnExit.KEEP else []
        self.dispatch([ev.Stopped(keep=keep, endpoints=self._endpoints_if_managed())])
        # asyncio may run one more turn, in which the timer must not fire.
        self._resync.stop()
        self._sampler.stop()
        if self._timer is not None:
            self._timer.cancel()
        self._executor.save()
        self._executor.close()
        self._path_manager.restore()
        log.info("stopped")

    def _plugins_at_work(self) -> str:
        if self.config.dry_run and self.engine.installed:
            return f"dry run of {', '.join(self.engine.plugins)}: nothing is sent to the kernel"
        if not self.engine.installed:
            return "observing only, no plugin is configured (choose one with --path-manager)"
        names = self.engine.plugins
        return (
            f"plugins {', '.join(names)}" if names else "observing only, all plugins are excluded"
        )

    # --- configuration

    def configure(self, config: Config, plugins: PluginSet) -> None:
        """Puts a configuration in force; its plugins start from the present model."""
        self.config, self._plugins = config, plugins
        self._sources.set_thresholds(config.probes.thresholds)
        if config.dry_run:
            self.new_connections.release()
        self.dispatch(self._sources.waiting())
        userspace = plugin_set.path_manager(config, plugins) == "userspace"
        if userspace or self._manages_endpoints():
            self.dispatch(self._read_modes())
        if userspace:
            self._log_in_kernel_connections()
        self.dispatch(
            [
                ev.Configured(
                    config=plugin_set.core_config(config, plugins),
                    plugins=plugins.specs,
                    endpoints=self._endpoints_if_managed(),
                )
            ]
        )

    def _manages_endpoints(self) -> bool:
        return any(plugin.mode == "kernel" for plugin in self.engine.installed)

    def _endpoints_if_managed(self) -> ev.EndpointsRead | None:
        """The table, for plugins that are about to end and remove only endpoints of their own."""
        return self._executor.read_endpoints() if self._manages_endpoints() else None

    def read_table(self) -> list[ev.Event]:
        """The endpoint table, and the path manager of connections for which it is unknown."""
        return [*self._read_modes(), self._executor.read_endpoints()]

    def _read_modes(self) -> list[ev.Event]:
        """The path manager of each connection for which it is unknown."""
        found = self.engine.world.connections.items()
        tokens = [token for token, connection in found if connection.in_kernel is None]
        return [self._executor.read_modes(tokens)] if tokens else []

    def _log_in_kernel_connections(self) -> None:
        count = sum(bool(c.in_kernel) for c in self.engine.world.connections.values())
        if count:
            log.info(
                "%d of the connections use the in-kernel path manager, as they did when they were "
                "created: no plugin manages them",
                count,
            )

    # --- events in

    def _read(self, source: EventSource) -> None:
        self.dispatch(without_repeated(source.read()))

    def dispatch(self, events: Sequence[ev.Event]) -> None:
        """Handles events, and all events that follow from them."""
        self._queue.extend(events)
        try:
            while self._queue or self._resync_due:
                if self._queue:
                    self._handle(self._queue.popleft())
                else:
                    self._handle(self._sources.snapshot())
                    self._resync_due = False
        finally:
            # An error in one event must not cost the next deadline.
            self._set_timer()
            # Once and after all commands of the turn, because a file takes longer than they do.
            self._executor.save()

    def _handle(self, event: ev.Event) -> None:
        now = time.monotonic_ns()
        outcome = self.engine.handle(event, now)
        if isinstance(event, ev.Sampled):
            self._sampler.spent(time.monotonic_ns() - now)
        for fault in reversed(outcome.faults):
            self._queue.appendleft(
                ev.PluginExcluded(
                    plugin=fault.plugin, handler=fault.handler, error=fault.error, call=fault.call
                )
            )
        for decision in outcome.decisions:
            if decision.refused is None:
                self._execute(decision)
            elif decision.plugin == MANUAL:
                self._manual = decision
        happened = cast(ev.AnyEvent, event)
        self._observers.publish(
            Record(
                seq=outcome.seq,
                now=now,
                event=happened,
                decisions=outcome.decisions,
                held=outcome.held,
            )
        )
        self._resync.look_at(outcome.finals, self.engine.world)
        if isinstance(event, ev.ConnectionClosed | ev.Resynchronised):
            self._executor.keep_listeners_of(self.engine.world.connections)
        elif isinstance(event, ev.EventsLost):
            self._want_resync()

    def _want_resync(self) -> None:
        if not self._resync_due:
            # All events that wait are older than the snapshot and must be handled before it.
            self._resync_due = True
            self._queue.extend(self._sources.waiting())

    def _resynchronise(self) -> None:
        if self.engine.world.connections:
            self._want_resync()
            self.dispatch(())

    def _set_timer(self) -> None:
        deadline = self.engine.deadline
        at = None if deadline is None else deadline / 1e9
        if self._timer is not None:
            if self._timer.when() == at:
                return  # as after most events
            self._timer.cancel()
            self._timer = None
        if at is not None:
            self._timer = asyncio.get_running_loop().call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.dispatch([ev.Tick()])
        # The deadline of a path probe may have come.
        self._sources.prober.tidy(time.monotonic_ns())

    # --- commands out

    def _execute(self, decision: Decision) -> None:
        command = decision.command
        if isinstance(command, RequestSample):
            self._sampler.request(with_owners=command.with_owners, urgent=command.urgent)
            return
        if isinstance(command, ReadEndpoints):
            self._queue.extend(self.read_table())
            return
        if isinstance(command, ProbePath):
            self._answer(decision, self._sources.prober.send(decision.id, command))
            return
        if isinstance(command, SteerNewConnections):
            self._answer(decision, self.new_connections.execute(command))
            return
        if isinstance(command, ReportPath):
            return  # the engine has recorded it
        assert not isinstance(command, WakeAt)
        manual = decision.plugin == MANUAL
        done, answer = self._executor.execute(command, manual=manual)
        if manual:
            self._manual = (done, answer)
        if answer.errno and isinstance(command, ConnectionCommand):
            # Before the answer: a plugin first learns whether it serves the connection at all.
            self._queue.append(self._executor.read_modes([command.token]))
        self._answer(decision, answer, done.port if isinstance(done, AnnounceAddress) else 0)

    def _answer(self, decision: Decision, answer: CommandAnswer, port: int = 0) -> None:
        self._queue.append(
            ev.CommandAnswered(
                decision_id=decision.id,
                errno=answer.errno,
                explanation=answer.explanation,
                port=port,
            )
        )

    def carry_out(self, command: KernelCommand) -> tuple[KernelCommand, CommandAnswer] | Decision:
        """Carries out an operator's command.

        Returns the command as it was sent with the kernel's answer, or the refusal by the guard.
        """
        self._manual = None
        self.dispatch([ev.CommandAsked(command=command)])
        assert self._manual is not None
        return self._manual

    def _sample(self, with_owners: bool) -> None:
        """Answers a request for a sample.

        A failure is not answered, because an empty sample would mean that no subflow is left.
        """
        connections = self.engine.world.connections
        unasked = {token: None for token, c in connections.items() if not c.owner_asked}
        began = time.monotonic_ns()
        try:
            measured = self._sources.sample(owners_of=unasked if with_owners else None)
        except (OSError, KernelError) as error:
            log.error("subflows cannot be read, so the plugins get no sample: %s", error)
            return
        self._sampler.spent(time.monotonic_ns() - began)
        self._queue.append(ev.Sampled(measurements=measured, with_owners=with_owners))
