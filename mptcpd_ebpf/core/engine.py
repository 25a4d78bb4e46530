# SPDX-License-Identifier: BSD-3-Clause
"""The engine: one event in, decisions and the next deadline out.

    event ─▶ tracker ─▶ notices ─▶ plugins ─▶ commands ─▶ admission ─▶ decisions

`Engine.handle` is the only way in.  The engine holds no socket and reads no clock: the same
events at the same times give the same decisions, which unit tests and `replay` depend on.

A handler that raises ends in a `Fault` of the outcome.  The plugin is not called again in that
turn, and the event `PluginExcluded`, which the caller feeds in next, keeps it out from then on;
the others and the model go on.
"""

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.admission import MARKER, Admission
from mptcpd_ebpf.core.assignments import Assignments
from mptcpd_ebpf.core.commands import (
    MANUAL,
    ActingCommand,
    AnyCommand,
    Cause,
    Decision,
    DestroySubflow,
    HeldBack,
    OwnCommand,
    ProbePath,
    ReportPath,
    RequestSample,
    SetBackup,
    SteerNewConnections,
    WakeAt,
)
from mptcpd_ebpf.core.model import State, Subflow, World
from mptcpd_ebpf.core.path_probes import PathProbes
from mptcpd_ebpf.core.plugin import Context, Notice, Plugin
from mptcpd_ebpf.core.plugin_host import (
    Fault,
    Handler,
    HandlerFailed,
    MakePlugin,
    PluginHost,
    RunHandler,
    run_handler,
)
from mptcpd_ebpf.core.steering import Steering
from mptcpd_ebpf.core.timers import Timers
from mptcpd_ebpf.core.tracker import Change, ModeRead, SubflowFinal, Tracker

RULES = "rules"
"""The author of decisions that serve the choice of plugins."""
STEERING = "new connections"
"""The author of decisions on where new connections start."""
VERIFIER = "budget"
"""The author of samples that show whether a path for which commands wait has recovered."""

DRY_RUN = "dry run"
"""Why a command of a plugin is not sent while the configuration says dry_run."""

SHORTEST_SLEEP = 1_000_000
"""Nanoseconds: a plugin that asks to be woken at once, again and again, leaves time for others."""


class Outcome(Struct, kw_only=True):
    """What one event led to."""

    seq: int
    """Number of the event since the start, from 1."""
    decisions: list[Decision]
    faults: list[Fault]
    finals: list[Subflow]
    """Subflows that every source has closed."""
    held: list[HeldBack]
    """Summaries of the commands that wait."""


class _Turn:
    """One event on its way through the engine."""

    def __init__(self, seq: int, event: ev.Event, now: int) -> None:
        self.now = now
        self.event = type(event).__name__
        self.outcome = Outcome(seq=seq, decisions=[], faults=[], finals=[], held=[])

        self.failed: dict[str, None] = {}
        """Plugins that failed in this turn and are not called any more."""


def _no_plugin(spec: object) -> Plugin:
    raise LookupError(f"no plugin is known for {spec}")


class Engine:
    """Plugins around one model.

    `make` returns the plugin of a spec; `run` runs a handler, within a time limit if there is one.
    """

    def __init__(self, make: MakePlugin = _no_plugin, run: RunHandler = run_handler) -> None:
        self._tracker = Tracker()
        self._admission = Admission()
        self._host = PluginHost(make, run)
        self._assignments = Assignments(self._tracker.world)
        self._timers = Timers()
        self._joins_marked = True
        self._dry_run = False
        self._steers = False
        self._seq = 0
        self._next_id = 1
        self._unanswered: dict[int, Decision] = {}
        self._probes = PathProbes()
        self.steering = Steering()
        self._stopping = False
        self.paused = False

    @property
    def world(self) -> World:
        return self._tracker.world

    @property
    def plugins(self) -> list[str]:
        """The names of the plugins at work, in order of priority."""
        return [name for name in self._host.plugins if name not in self._host.excluded]

    @property
    def installed(self) -> list[Plugin]:
        """All plugins, also those excluded, in order of priority."""
        return list(self._host.plugins.values())

    @property
    def excluded(self) -> dict[str, Fault]:
        """By name: why a plugin is excluded."""
        return self._host.excluded

    @property
    def deadline(self) -> int | None:
        """When a Tick is due, CLOCK_MONOTONIC nanoseconds; None if nothing waits."""
        parts = (self._tracker, self._timers, self._probes, self.steering, self._admission)
        times = [part.deadline for part in parts]
        return min((at for at in times if at is not None), default=None)

    def plugin_of(self, token: int) -> str | None:
        """The name of the plugin that serves a connection."""
        plugin = self._assignments.plugin_of(token)
        return plugin.name if plugin is not None else None

    def handle(self, event: ev.Event, now: int) -> Outcome:
        """Takes in one event.  `now`: CLOCK_MONOTONIC, nanoseconds."""
        self._seq += 1
        turn = _Turn(self._seq, event, now)
        _HANDLE.get(type(event), Engine._model_event)(self, turn, event)
        if not self._stopping:
            for change in self._tracker.expire(now):
                self._notify(turn, change)
            for decision in self._probes.due(now):
                self._path_probed(turn, decision, None)
            self._wake(turn)
            self._retry(turn)
            self._steer(turn, event)
            self._report_refusals(turn)
        return turn.outcome

    # --- events that change the model

    def _model_event(self, turn: _Turn, event: ev.Event) -> None:
        for change in self._tracker.apply(event, turn.now):
            self._notify(turn, change)

    def _subflow_established(self, turn: _Turn, event: ev.SubflowEstablished) -> None:
        changes = self._tracker.apply(event, turn.now)
        self._set_backup_flag(turn, event)
        for change in changes:
            self._notify(turn, change)

    def _set_backup_flag(self, turn: _Turn, event: ev.SubflowEstablished) -> None:
        """Sets the flag of a join that was requested as backup, before data uses it."""
        connection = self.world.connections.get(event.token)
        subflow = connection and connection.subflows.get((event.local, event.remote))
        if subflow and subflow.backup and not self._joins_marked:
            command = SetBackup(
                token=event.token,
                local=event.local,
                remote=event.remote,
                backup=True,
                reason="this kernel creates joins without the backup flag",
            )
            self._decide(turn, MARKER, "set-backup-flag", command)

    # --- the daemon's own events

    def _started(self, _turn: _Turn, event: ev.Started) -> None:
        self._host.seed(event.seed)
        self._joins_marked = event.joins_marked
        self._steers = event.steers

    def _configured(self, turn: _Turn, event: ev.Configured) -> None:
        """Replaces the plugins; the new ones start from the live connections.

        A plugin whose spec is as before goes on with what it knows, unless it would serve fewer
        connections: it gives up none without its `exit`.
        """
        self._read_table(turn, event.endpoints)
        self._tracker.apply(event, turn.now)
        if event.config.dry_run is not self._dry_run:
            self.steering.steered.clear()  # the daemon did not carry it out, or has taken it back
        self._dry_run = event.config.dry_run
        # Not before: which interfaces may be used is known from here on.
        self.steering.enabled = self._steers
        self._admission.set_rate(event.config.destructive_per_second)
        kept = {} if self.paused else self._host.survivors(event.plugins)
        for name in self._assignments.losing(event.config):
            kept.pop(name, None)
        self._admission.drop([] if self._dry_run else list(kept))
        staying = {spec.name for spec in event.plugins}
        for plugin in self.installed:
            if plugin.name not in kept:
                self._exit(turn, plugin, keep=plugin.name in staying)
                self._tracker.forget_paths(plugin.name)
        self._host.install(event.plugins, kept)
        turn.failed.clear()
        self._timers.keep_plugins(list(kept))
        self._assignments.configure(event.config, self._host.plugins)
        self._begin(turn, kept)

    def _plugin_excluded(self, _turn: _Turn, event: ev.PluginExcluded) -> None:
        if event.handler == Plugin.exit.__name__:
            return  # it has ended anyway, and a new one of its name is not at fault
        self._host.excluded[event.plugin] = Fault(
            plugin=event.plugin, handler=event.handler, error=event.error, call=event.call
        )
        self._timers.keep_plugins(self.plugins)
        self._tracker.forget_paths(event.plugin)
        self._admission.drop(self.plugins)

    def _paused(self, _turn: _Turn, _event: ev.Paused) -> None:
        self.paused = True
        self._admission.drop([])

    def _resumed(self, turn: _Turn, _event: ev.Resumed) -> None:
        if self.paused:
            self.paused = False
            self._timers.clear()
            for name in self._host.plugins:
                self._tracker.forget_paths(name)
            self._begin(turn, {})

    def _stop(self, _turn: _Turn, _event: ev.Stopping) -> None:
        self._stopping = True

    def _stopped(self, turn: _Turn, event: ev.Stopped) -> None:
        self._stopping = True
        self._read_table(turn, event.endpoints)
        for plugin in self.installed:
            self._exit(turn, plugin, keep=plugin.name in event.keep)

    def _read_table(self, turn: _Turn, endpoints: ev.EndpointsRead | None) -> None:
        if endpoints is not None:
            self._tracker.apply(endpoints, turn.now)

    def _exit(self, turn: _Turn, plugin: Plugin, *, keep: bool) -> None:
        with self._admission.without_rate():
            self._call(turn, plugin, Plugin.exit, (), keep=keep, while_stopping=True)

    def _begin(self, turn: _Turn, kept: dict[str, Plugin]) -> None:
        for plugin in self.installed:
            handler = Plugin.reloaded if plugin.name in kept else Plugin.init
            self._call(turn, plugin, handler, ())
        if self._assignments.undecided:
            self._ask_for_owners(turn)

    def _command_asked(self, turn: _Turn, event: ev.CommandAsked) -> None:
        self._decide(turn, MANUAL, "manual-command", event.command)

    def _command_answered(self, turn: _Turn, event: ev.CommandAnswered) -> None:
        decision = self._unanswered.pop(event.decision_id, None)
        if decision is None:
            return
        command = decision.command
        assert not isinstance(command, OwnCommand | WakeAt)
        if isinstance(command, ProbePath):
            if event.errno:
                self._probes.take(decision.id)
                if decision.plugin == STEERING:
                    self.steering.unsent(command, event.errno, self.world, turn.now)
        elif isinstance(command, SteerNewConnections):
            if event.errno:
                self.steering.refused(command, turn.now)
        else:
            self._tracker.answered(command, event.errno, turn.now)
        if isinstance(command, SetBackup) or (event.errno and isinstance(command, DestroySubflow)):
            # A destruction that succeeded counts until netlink reports it.
            self._admission.guard.settled(command.token, (command.local, command.remote))
        if decision.plugin == MANUAL and not event.errno:
            for each in self.installed:
                self._call(turn, each, Plugin.manual_command, (command,))
        plugin = self._host.plugins.get(decision.plugin)
        if plugin is not None:
            args = (decision, event.errno, event.explanation)
            self._call(turn, plugin, Plugin.answered, args)

    def _probe_answered(self, turn: _Turn, event: ev.PathProbed) -> None:
        decision = self._probes.take(event.decision_id)
        if decision is not None:
            self._path_probed(turn, decision, event.rtt_us)

    def _path_probed(self, turn: _Turn, decision: Decision, rtt_us: int | None) -> None:
        if decision.plugin == STEERING:
            assert isinstance(decision.command, ProbePath)
            self.steering.probed(decision.command, rtt_us is not None, self.world, turn.now)
            return
        plugin = self._host.plugins.get(decision.plugin)
        if plugin is not None:
            self._call(turn, plugin, Plugin.path_probed, (decision, rtt_us))

    def _steer(self, turn: _Turn, event: ev.Event) -> None:
        if self.paused or not self.steering.enabled:
            return
        away = self._host.away()
        for rule, command in self.steering.turn(event, self.world, away, turn.now):
            self._decide(turn, STEERING, rule, command)

    # --- notices to plugins

    def _notify(self, turn: _Turn, change: Change) -> None:
        if isinstance(change, SubflowFinal):
            turn.outcome.finals.append(change.subflow)
            return
        if isinstance(change, ModeRead):
            plugin = self._assignments.take_from_userspace(change.connection)
            if plugin is not None:
                self._timers.cancel_connection(change.connection.token)
                self._call(turn, plugin, Plugin.connection_closed, (change.connection,))
            return
        if (before := _BEFORE.get(change.handler)) is not None:
            before(self, turn, change)
        if change.connection is None:
            for plugin in self.installed:
                self._call(turn, plugin, change.handler, change.args)
            return
        serving = self._assignments.plugin_of(change.connection.token)
        if serving is not None:
            self._call(turn, serving, change.handler, change.args)
        if change.handler is Plugin.connection_closed:
            self._assignments.remove(change.connection.token)
            self._timers.cancel_connection(change.connection.token)
            self._admission.connection_closed(change.connection.token)

    def _before_new_connection(self, turn: _Turn, notice: Notice) -> None:
        assert notice.connection is not None
        self._assignments.assign(notice.connection)
        if notice.connection.token in self._assignments.undecided:
            self._ask_for_owners(turn)

    def _before_subflow_closed(self, _turn: _Turn, notice: Notice) -> None:
        subflow: Subflow = notice.args[1]
        self._admission.subflow_closed(subflow)

    def _before_alarm(self, _turn: _Turn, notice: Notice) -> None:
        _, subflow, alarm = notice.args
        self._admission.evidence.alarm(subflow, alarm)

    def _before_cut(self, turn: _Turn, _notice: Notice) -> None:
        """An address or a carrier may be gone."""
        self._admission.evidence.cut_off(self.world, turn.now)

    def _before_sampled(self, turn: _Turn, _notice: Notice) -> None:
        self._admission.sampled(turn.now)
        self._assign_owned(turn)

    def _assign_owned(self, turn: _Turn) -> None:
        """Assigns the connections whose owner is known now, and tells the plugins of them."""
        for token in self._assignments.undecided:
            connection = self.world.connections[token]
            self._assignments.assign(connection)
            plugin = self._assignments.plugin_of(token)
            if plugin is None:
                continue
            self._call(turn, plugin, Plugin.new_connection, (connection,))
            if connection.state is State.ESTABLISHED:
                self._call(turn, plugin, Plugin.connection_established, (connection,))

    def _ask_for_owners(self, turn: _Turn) -> None:
        reason = "the rules for a connection depend on its owner"
        self._decide(turn, RULES, "owner-lookup", RequestSample(with_owners=True, reason=reason))

    def _report_refusals(self, turn: _Turn) -> None:
        """Tells authors what the guard refused; once, so that no plugin can answer in circles."""
        for decision in [each for each in turn.outcome.decisions if each.refused is not None]:
            plugin = self._host.plugins.get(decision.plugin)
            if plugin is not None:
                self._call(turn, plugin, Plugin.refused, (decision,))

    def _retry(self, turn: _Turn) -> None:
        """Sends what the budget held back and has room for, after another look at it."""
        if self._admission.idle:
            return  # as after most events
        for held, refused in self._admission.retry(self.world, turn.now):
            waited = turn.now - held.at
            self._record(turn, held.author, held.cause, held.command, refused, waited=waited)
        turn.outcome.held += self._admission.summaries(self.world, turn.now)
        if self._admission.asks_for_sample(turn.now):
            reason = "has the path recovered for which commands wait?"
            command = RequestSample(reason=reason, routine=True, urgent=True)
            self._decide(turn, VERIFIER, "held-back", command)

    def _wake(self, turn: _Turn) -> None:
        for name, token in self._timers.due(turn.now):
            plugin = self._host.plugins[name]
            if token is None:
                self._call(turn, plugin, Plugin.wake, ())
            elif token in self._assignments.served(name):
                connection = self.world.connections[token]
                self._call(turn, plugin, Plugin.wake_connection, (connection,))

    def _call(
        self,
        turn: _Turn,
        plugin: Plugin,
        handler: Handler,
        args: tuple[Any, ...],
        *,
        keep: bool = False,
        while_stopping: bool = False,
    ) -> None:
        name = plugin.name
        silent = self.paused or name in self._host.excluded or name in turn.failed
        if silent or (self._stopping and not while_stopping):
            return
        served = self._assignments.served(name)
        random, presets = self._host.random(name), self._assignments.presets
        ctx = Context(self.world, turn.now, random, served, presets, keep)
        try:
            commands = self._host.call(plugin, handler, ctx, args)
        except HandlerFailed as failed:
            turn.outcome.faults.append(failed.fault)
            turn.failed[name] = None
            return
        for command in commands:
            self._decide(turn, name, handler.__name__, command)

    def _decide(self, turn: _Turn, author: str, rule: str, command: AnyCommand) -> None:
        if isinstance(command, WakeAt):
            if command.token is None or command.token in self.world.connections:
                self._timers.add(author, command.token, max(command.at, turn.now + SHORTEST_SLEEP))
            return
        cause = Cause(seq=turn.outcome.seq, event=turn.event, rule=rule)
        acts = isinstance(command, ActingCommand)
        if self._dry_run and author != MANUAL and acts:
            self._record(turn, author, cause, command, DRY_RUN)
            return
        if author == STEERING:
            # It takes nothing from a connection, and probes where applications connect to.
            self._record(turn, author, cause, command, None)
            return
        verdict = self._admission.admit(author, cause, command, self.world, turn.now)
        if not verdict.held:
            self._record(turn, author, cause, command, verdict.refused)

    def _record(
        self,
        turn: _Turn,
        author: str,
        cause: Cause,
        command: AnyCommand,
        refused: str | None,
        *,
        waited: int = 0,
    ) -> None:
        decision = Decision(
            id=self._next_id,
            at=turn.now,
            plugin=author,
            cause=cause,
            command=command,
            refused=refused,
            waited=waited,
        )
        self._next_id += 1
        if isinstance(command, ReportPath):
            self._tracker.path_reported(author, command, turn.now)
        elif refused is None and not isinstance(command, OwnCommand):
            self._unanswered[decision.id] = decision
            if isinstance(command, ProbePath):
                self._probes.add(decision, turn.now + command.within)
        turn.outcome.decisions.append(decision)


_HANDLE: dict[type[ev.Event], Callable[[Engine, _Turn, Any], None]] = {
    ev.SubflowEstablished: Engine._subflow_established,
    ev.Started: Engine._started,
    ev.Configured: Engine._configured,
    ev.PluginExcluded: Engine._plugin_excluded,
    ev.Paused: Engine._paused,
    ev.Resumed: Engine._resumed,
    ev.Stopping: Engine._stop,
    ev.Stopped: Engine._stopped,
    ev.CommandAsked: Engine._command_asked,
    ev.CommandAnswered: Engine._command_answered,
    ev.PathProbed: Engine._probe_answered,
}
"""All other events change the model alone."""

_BEFORE: dict[Handler, Callable[[Engine, _Turn, Notice], None]] = {
    Plugin.new_connection: Engine._before_new_connection,
    Plugin.subflow_closed: Engine._before_subflow_closed,
    Plugin.alarm: Engine._before_alarm,
    Plugin.update_interface: Engine._before_cut,
    Plugin.delete_local_address: Engine._before_cut,
    Plugin.sampled: Engine._before_sampled,
}
"""What the engine does itself before plugins are told."""
