# SPDX-License-Identifier: BSD-3-Clause
"""The engine: one event in, decisions and the next deadline out.

    event ─▶ tracker ─▶ notices ─▶ plugins ─▶ commands ─▶ guard ─▶ decisions

It holds no socket and reads no clock: the same events at the same times give the same
decisions, which is what unit tests and `replay` live on.  A plugin that raises is
excluded, with the reason kept; the others and the model go on.
"""

import errno
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any

from msgspec import Struct, ValidationError, convert, to_builtins

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.commands import (
    BY_HAND,
    AnnounceAddress,
    AnyCommand,
    Command,
    ConnectionCommand,
    CreateSubflow,
    Decision,
    DestroySubflow,
    ReadEndpoints,
    RequestSample,
    SetBackup,
    WakeAt,
)
from mptcpd_ebpf.core.guard import Guard
from mptcpd_ebpf.core.model import Connection, State, Subflow, World
from mptcpd_ebpf.core.notice import Notice
from mptcpd_ebpf.core.plugin import Context, Plugin
from mptcpd_ebpf.core.serving import Undecided
from mptcpd_ebpf.core.tracker import Tracker

Serve = Callable[[Connection], str | Undecided | None]
"""Names the plugin that serves a connection; None leaves it to the kernel.

Undecided until `Connection.owner_asked` at most.
"""

RULES = "rules"
"""The author of decisions that serve the choice of plugins."""
MARKER = "backup mark"
"""The author of decisions that mark a join which the kernel made without its mark."""

Budget = Callable[[Callable[[], list[Command]]], list[Command]]
"""Runs a handler and raises if it takes too long; the daemon's, for the core has no clock."""


class Fault(Struct, frozen=True, kw_only=True):
    """A plugin that was excluded."""

    plugin: str
    handler: str
    error: str


class Outcome(Struct, kw_only=True):
    """What one event led to."""

    decisions: list[Decision]
    faults: list[Fault]
    finals: list[Subflow]
    """Subflows about which every source has said its last word."""


SHORTEST_SLEEP = 1_000_000
"""Nanoseconds: a plugin that asks to be woken at once, again and again, leaves time for others."""


def checked(command: object) -> AnyCommand:
    """A plugin's command with every field of its declared type; raises TypeError if it is none."""
    if not isinstance(command, AnyCommand):
        raise TypeError(f"{command!r} is no command")
    try:
        return convert(to_builtins(command), type(command))
    except ValidationError as error:
        raise TypeError(f"{command!r}: {error}") from None


def serve_none(_connection: Connection) -> None:
    """Leaves every connection to the kernel."""


def no_budget(handler: Callable[[], list[Command]]) -> list[Command]:
    return handler()


class Engine:
    """Plugins around one model.

    `plugins` in any order; `serve` names who serves a connection;
    `destructive_per_second` bounds destroying and demoting over all connections;
    `joins_marked` tells whether the kernel marks a join backup itself.
    """

    def __init__(
        self,
        plugins: Sequence[Plugin] = (),
        serve: Serve = serve_none,
        *,
        destructive_per_second: int = 200,
        seed: int = 0,
        budget: Budget = no_budget,
        joins_marked: Callable[[], bool] = lambda: True,
    ) -> None:
        self._tracker = Tracker()
        self._guard = Guard(destructive_per_second)
        self._random = Random(seed)
        self._budget = budget
        self._joins_marked = joins_marked
        self._next_id = 1
        self._unanswered: dict[int, Decision] = {}
        self._wake_at: dict[str, int] = {}
        self._plugins: dict[str, Plugin] = {}
        self._serve = serve
        self._servants: dict[int, str | None] = {}
        self._undecided: dict[int, None] = {}
        """Connections whose servant hangs on their owner, which was asked for."""
        self.excluded: dict[str, Fault] = {}
        self.paused = False
        self._asking = True
        self._install(plugins)

    @property
    def world(self) -> World:
        return self._tracker.world

    @property
    def plugins(self) -> list[str]:
        """The names of the plugins at work, in order of priority."""
        return [name for name in self._plugins if name not in self.excluded]

    @property
    def installed(self) -> list[Plugin]:
        """All plugins, also those kept out, in order of priority."""
        return list(self._plugins.values())

    @property
    def deadline(self) -> int | None:
        """When a Tick is due, CLOCK_MONOTONIC nanoseconds; None if nothing waits."""
        waiting = [at for at in (self._tracker.deadline, *self._wake_at.values()) if at is not None]
        return min(waiting, default=None)

    def servant(self, token: int) -> str | None:
        """The plugin that serves a connection."""
        return self._servants.get(token)

    def start(self, now: int) -> Outcome:
        """Lets the plugins take up what the model holds already."""
        outcome = Outcome(decisions=[], faults=[], finals=[])
        self._begin(outcome, now)
        return outcome

    def stop(self, now: int, keep: Container[str] = ()) -> Outcome:
        """Lets the plugins say their last word; what those in `keep` made shall stay."""
        outcome = Outcome(decisions=[], faults=[], finals=[])
        for plugin in self._plugins.values():
            self._leave(outcome, plugin, now, keep=plugin.name in keep)
        return outcome

    def _leave(self, outcome: Outcome, plugin: Plugin, now: int, *, keep: bool) -> None:
        with self._guard.last_words():
            self._call(outcome, plugin, "exit", (), now, keep=keep)

    @contextmanager
    def unasked(self) -> Iterator[None]:
        """Meanwhile events change the model alone: before a last word, nothing new is begun."""
        self._asking = False
        try:
            yield
        finally:
            self._asking = True

    def reconfigure(self, plugins: Sequence[Plugin], serve: Serve, now: int) -> Outcome:
        """Replaces the plugins; the new ones start from the live connections.

        One that can go on as before does, in the place of the new one and with what it knows.
        """
        kept = {p.name: self._plugins[p.name] for p in plugins if self._can_go_on(p)}
        for token, connection in self.world.connections.items():
            name = self._servants.get(token)
            if name is not None and serve(connection) != name:
                kept.pop(name, None)  # it gives up no connection without its last word
        outcome = Outcome(decisions=[], faults=[], finals=[])
        staying = {plugin.name for plugin in plugins}
        for plugin in self._plugins.values():
            if plugin.name not in kept:
                self._leave(outcome, plugin, now, keep=plugin.name in staying)
        self._serve = serve
        self._install([kept.get(plugin.name, plugin) for plugin in plugins])
        self._begin(outcome, now, kept)
        return outcome

    def _can_go_on(self, plugin: Plugin) -> bool:
        """Whether one of the same code and options is at work already, and knows to go on."""
        before = self._plugins.get(plugin.name)
        return (
            before is not None
            and type(before) is type(plugin)
            and type(plugin).reloaded is not Plugin.reloaded
            and before.options == plugin.options
            and plugin.name not in self.excluded
            and not self.paused
        )

    def handle(self, event: ev.Event, now: int) -> Outcome:
        """Takes in one event.  `now`: CLOCK_MONOTONIC, nanoseconds."""
        outcome = Outcome(decisions=[], faults=[], finals=[])
        if isinstance(event, ev.CommandAnswered):
            self._answered(outcome, event, now)
        elif isinstance(event, ev.CommandAsked):
            self._decide(outcome, BY_HAND, event.command, now)
        elif isinstance(event, ev.Paused):
            self.paused = True
        elif isinstance(event, ev.Resumed):
            if self.paused:
                self.paused = False
                self._wake_at.clear()
                resumed = self.start(now)
                outcome.decisions += resumed.decisions
                outcome.faults += resumed.faults
        else:
            if isinstance(event, ev.ConfigChanged):
                rate = event.config.get("limits", {}).get("destructive_per_second")
                if rate is not None:
                    self._guard.set_rate(rate)
            notices = self._tracker.apply(event, now)
            if isinstance(event, ev.SubflowEstablished):
                self._mark(outcome, event, now)
            for notice in notices:
                self._tell(outcome, notice, now)
        if self._asking:
            for notice in self._tracker.expire(now):
                self._tell(outcome, notice, now)
            self._wake(outcome, now)
            self._tell_refusals(outcome, now)
        return outcome

    def _mark(self, outcome: Outcome, event: ev.SubflowEstablished, now: int) -> None:
        """Marks a join that was asked for as a backup, before data takes it."""
        connection = self.world.connections.get(event.token)
        subflow = connection and connection.subflows.get((event.local, event.remote))
        if subflow and subflow.backup and not self._joins_marked():
            command = SetBackup(
                token=event.token,
                local=event.local,
                remote=event.remote,
                backup=True,
                reason="this kernel makes joins without the backup mark",
            )
            self._decide(outcome, MARKER, command, now)

    # --- telling the plugins

    def _begin(self, outcome: Outcome, now: int, kept: Container[str] = ()) -> None:
        for plugin in self._plugins.values():
            self._call(outcome, plugin, "reloaded" if plugin.name in kept else "init", (), now)
        if self._undecided:
            self._ask_for_owners(outcome, now)

    def _install(self, plugins: Sequence[Plugin]) -> None:
        kept = [plugin.name for plugin in plugins if self._plugins.get(plugin.name) is plugin]
        self._wake_at = {name: at for name, at in self._wake_at.items() if name in kept}
        self._plugins = {p.name: p for p in sorted(plugins, key=lambda p: -p.priority)}
        self.excluded.clear()
        self._servants.clear()
        self._undecided.clear()
        for connection in self._tracker.world.connections.values():
            self._choose(connection)

    def _tell(self, outcome: Outcome, notice: Notice, now: int) -> None:
        if notice.handler == "subflow_final":
            outcome.finals.append(notice.args[0])
            return
        if notice.handler == "mode_read":
            self._leave_to_kernel(outcome, notice.args[0], now)
            return
        if notice.handler == "subflow_closed":
            subflow = notice.args[1]
            self._guard.settled(subflow.token, subflow.key)
        if notice.handler == "sampled" and self._undecided:
            self._settle_undecided(outcome, now)
        if notice.connection is None:
            for plugin in self._plugins.values():
                self._call(outcome, plugin, notice.handler, notice.args, now)
            return
        token = notice.connection.token
        if notice.handler == "new_connection":
            self._choose(notice.connection)
            if token in self._undecided:
                self._ask_for_owners(outcome, now)
        servant = self._plugins.get(self._servants.get(token) or "")
        if servant is not None:
            self._call(outcome, servant, notice.handler, notice.args, now)
        if notice.handler == "connection_closed":
            self._servants.pop(token, None)
            self._undecided.pop(token, None)

    # --- who serves whom

    def _choose(self, connection: Connection) -> None:
        servant = self._serve(connection)
        if isinstance(servant, Undecided):
            self._undecided[connection.token] = None
            servant = None
        if servant is not None and self._is_beyond(servant, connection):
            servant = None
        self._servants[connection.token] = servant

    def _is_beyond(self, servant: str, connection: Connection) -> bool:
        """Whether a plugin commands single connections, and the kernel keeps this one to itself."""
        plugin = self._plugins.get(servant)
        return bool(connection.in_kernel and plugin is not None and plugin.mode == "userspace")

    def _leave_to_kernel(self, outcome: Outcome, connection: Connection, now: int) -> None:
        """Takes a connection from a plugin that cannot manage it, as it has turned out."""
        servant = self._servants.get(connection.token)
        if servant is not None and self._is_beyond(servant, connection):
            self._servants[connection.token] = None
            self._call(outcome, self._plugins[servant], "connection_closed", (connection,), now)

    def _ask_for_owners(self, outcome: Outcome, now: int) -> None:
        reason = "who serves the connection hangs on who owns it"
        self._decide(outcome, RULES, RequestSample(with_owners=True, reason=reason), now)

    def _settle_undecided(self, outcome: Outcome, now: int) -> None:
        """Decides for those whose owner is known by now, and tells the plugins of them."""
        for token in list(self._undecided):
            connection = self.world.connections[token]
            del self._undecided[token]
            self._choose(connection)
            servant = self._plugins.get(self._servants[token] or "")
            if servant is None:
                continue
            self._call(outcome, servant, "new_connection", (connection,), now)
            if connection.state is State.ESTABLISHED:
                self._call(outcome, servant, "connection_established", (connection,), now)

    def _tell_refusals(self, outcome: Outcome, now: int) -> None:
        """Tells authors what the guard refused; once, so that nobody can answer in circles."""
        for decision in [each for each in outcome.decisions if each.refused is not None]:
            plugin = self._plugins.get(decision.plugin)
            if plugin is not None:
                self._call(outcome, plugin, "refused", (decision,), now)

    def _wake(self, outcome: Outcome, now: int) -> None:
        for name in [name for name, at in self._wake_at.items() if at <= now]:
            del self._wake_at[name]
            self._call(outcome, self._plugins[name], "wake", (), now)

    def _answered(self, outcome: Outcome, event: ev.CommandAnswered, now: int) -> None:
        decision = self._unanswered.pop(event.decision_id, None)
        if decision is None:
            return
        command = decision.command
        if isinstance(command, ConnectionCommand) and not event.errno:
            managed = self.world.connections.get(command.token)
            if managed is not None:
                managed.in_kernel = False
                _learn_id(managed, command)
        if isinstance(command, SetBackup | DestroySubflow):
            key = (command.local, command.remote)
            if event.errno or isinstance(command, SetBackup):
                # A destruction that succeeded counts until netlink tells of it.
                self._guard.settled(command.token, key)
            connection = self.world.connections.get(command.token)
            subflow = connection.subflows.get(key) if connection is not None else None
            if isinstance(command, SetBackup) and subflow is not None and not event.errno:
                # The kernel reports only the peer's MP_PRIO, never our own.
                subflow.backup, subflow.backup_set_at = command.backup, now
        if isinstance(command, CreateSubflow):
            connection = self.world.connections.get(command.token)
            if connection is not None and not event.errno:
                connection.joins[command.local_ip, command.remote] = command.backup
            elif connection is not None and event.errno == errno.ENOTCONN:
                # One that was found, and has carried no data yet, or is about to close.
                connection.state = State.OPENING
        if decision.plugin == BY_HAND and not event.errno:
            for each in self._plugins.values():
                self._call(outcome, each, "by_hand", (command,), now)
        plugin = self._plugins.get(decision.plugin)
        if plugin is not None:
            args = (decision, event.errno, event.explanation)
            self._call(outcome, plugin, "answered", args, now)

    def _call(
        self,
        outcome: Outcome,
        plugin: Plugin,
        handler: str,
        args: tuple[Any, ...],
        now: int,
        *,
        keep: bool = False,
    ) -> None:
        if self.paused or not self._asking or plugin.name in self.excluded:
            return
        method: Callable[..., Iterable[Command]] = getattr(plugin, handler)
        if getattr(type(plugin), handler) is getattr(Plugin, handler):
            return
        ctx = Context(self.world, now, self._random, lambda: self._served_by(plugin.name), keep)
        try:
            commands = [checked(c) for c in self._budget(lambda: list(method(ctx, *args) or ()))]
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin is foreign code: whatever it raises stays here
            fault = Fault(
                plugin=plugin.name, handler=handler, error=f"{type(error).__name__}: {error}"
            )
            self.excluded[plugin.name] = fault
            self._wake_at.pop(plugin.name, None)
            outcome.faults.append(fault)
            return
        for command in commands:
            self._decide(outcome, plugin.name, command, now)

    def _served_by(self, plugin: str) -> list[Connection]:
        connections = self.world.connections
        return [c for token, c in connections.items() if self._servants.get(token) == plugin]

    def _decide(self, outcome: Outcome, plugin: str, command: AnyCommand, now: int) -> None:
        if isinstance(command, WakeAt):
            at = max(command.at, now + SHORTEST_SLEEP)
            self._wake_at[plugin] = min(at, self._wake_at.get(plugin, at))
            return
        decision = Decision(
            id=self._next_id,
            at=now,
            plugin=plugin,
            command=command,
            refused=self._guard.refusal(command, self.world, now),
        )
        self._next_id += 1
        if decision.refused is None and not isinstance(command, RequestSample | ReadEndpoints):
            self._unanswered[decision.id] = decision
        outcome.decisions.append(decision)


def _learn_id(connection: Connection, command: ConnectionCommand) -> None:
    """The kernel took up an address with its id: no other may be proposed for it, nor that id."""
    if isinstance(command, CreateSubflow) and command.local_id:
        connection.local_ids[command.local_ip] = command.local_id
    elif isinstance(command, AnnounceAddress):
        connection.local_ids[command.ip] = command.address_id
