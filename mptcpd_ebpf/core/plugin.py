# SPDX-License-Identifier: BSD-3-Clause
"""The base class of plugins, which decide what happens to subflows.

Handlers tell a plugin what happened, and return commands, each with its reason.  All handlers are
optional.  Connection events go to the one plugin that serves the connection; links, addresses,
routes and listeners go to every plugin, in order of priority.  The names and their arguments
follow mptcpd's plugin.h.

A handler gets a `Context`, must not block, and does no input or output: a replay of a recording
runs it again, and it must decide the same.
"""

from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Any, ClassVar, Literal, NamedTuple

from msgspec import Struct

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.commands import Command, Decision, KernelCommand
from mptcpd_ebpf.core.events import AlarmRaised
from mptcpd_ebpf.core.model import Connection, DefaultRoute, Link, LocalAddress, Subflow, World
from mptcpd_ebpf.core.roles import Preset

Commands = Iterable[Command]
"""What a handler returns: a list, or what a generator yields."""

Mode = Literal["kernel", "userspace", "any"]


class Context(NamedTuple):
    """What a handler may look at besides its arguments."""

    world: World
    """Read-only."""
    now: int
    """CLOCK_MONOTONIC, nanoseconds."""
    random: Random
    """Seeded by the engine: the only random numbers that a replay repeats."""
    connections: Mapping[int, Connection]
    """By token: the live connections that this plugin serves."""
    presets: Mapping[int, Preset]
    """By token: what a rule of the configuration says that the connection needs."""
    keep: bool = False
    """In `exit`: what the plugin made stays, since it or the next daemon adopts it."""

    def served(self) -> list[Connection]:
        """The live connections that this plugin serves; costs time in their number."""
        return list(self.connections.values())

    def serves(self, token: int) -> bool:
        """Whether the plugin serves that connection."""
        return token in self.connections


class Options(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of a plugin's options; its fields are the keys under `plugins: NAME:`."""


class Plugin:
    """Derive from this, set `name`, and override the handlers you need."""

    name: ClassVar[str]
    """Its name in the configuration and in reports."""
    priority: ClassVar[int] = 0
    """Plugins with a higher priority are called first."""
    mode: ClassVar[Mode] = "any"
    """The kernel path manager it needs for new connections."""
    Options: ClassVar[type[Options]] = Options

    def __init__(self, options: Any = None) -> None:
        """`options` is an instance of the class's own `Options`."""
        self.options = options if options is not None else self.Options()

    def init(self, ctx: Context) -> Commands:
        """The engine starts, reloads or resumes.

        Existing links, addresses and connections are in `ctx.world`; no handler is called for each.
        """
        return ()

    def reloaded(self, ctx: Context) -> Commands:
        """Instead of `exit` and `init`, when a reload found its code and options as they were.

        The plugin keeps its state. Which interfaces and addresses are usable may have changed, and
        it may serve more connections than before, never fewer. A plugin without this handler is
        created anew.
        """
        return ()

    def exit(self, ctx: Context) -> Commands:
        """The plugin is about to be unloaded. `ctx.keep` says whether what it created may stay."""
        return ()

    # --- connections

    def new_connection(self, ctx: Context, connection: Connection) -> Commands:
        """Both sides agreed to MPTCP; subflows cannot be created yet."""
        return ()

    def connection_established(self, ctx: Context, connection: Connection) -> Commands:
        """From now on subflows can be created."""
        return ()

    def connection_closed(self, ctx: Context, connection: Connection) -> Commands:
        """The connection is closed; or, if its state is another, the in-kernel path manager has
        it, so that a plugin of mode userspace cannot serve it (`connection.in_kernel`)."""
        return ()

    def new_address(
        self, ctx: Context, connection: Connection, address_id: int, address: SockAddr
    ) -> Commands:
        """The peer announced an address; its port is the connection's if it named none."""
        return ()

    def address_removed(
        self, ctx: Context, connection: Connection, address_id: int, address: SockAddr | None
    ) -> Commands:
        """The peer withdrew an address; None if the id was not known."""
        return ()

    def new_subflow(self, ctx: Context, connection: Connection, subflow: Subflow) -> Commands:
        """A join succeeded, ours or the peer's.  Not called for the initial subflow."""
        return ()

    def subflow_closed(self, ctx: Context, connection: Connection, subflow: Subflow) -> Commands:
        """`subflow.error` and `subflow.reset_reason` give the cause, if the kernel does. Also
        called for a failed join, without a `new_subflow` before.
        """
        return ()

    def subflow_priority(self, ctx: Context, connection: Connection, subflow: Subflow) -> Commands:
        """The peer changed `subflow.backup_by_peer`."""
        return ()

    # --- what the probes see

    def alarm(
        self, ctx: Context, connection: Connection, subflow: Subflow, alarm: AlarmRaised
    ) -> Commands:
        """The subflow crossed a threshold; `alarm.measurement` is its state at that moment."""
        return ()

    def sampled(self, ctx: Context) -> Commands:
        """The values requested with RequestSample are in the world's subflows."""
        return ()

    # --- the local network

    def new_interface(self, ctx: Context, link: Link) -> Commands:
        """An interface was added, up or not."""
        return ()

    def update_interface(self, ctx: Context, link: Link) -> Commands:
        """Its name, `link.up` or `link.running` (carrier) changed."""
        return ()

    def delete_interface(self, ctx: Context, link: Link) -> Commands:
        """An interface was removed; `delete_local_address` is called for each of its addresses."""
        return ()

    def new_local_address(self, ctx: Context, address: LocalAddress) -> Commands:
        """An address was added or changed: called again when a tentative address becomes usable."""
        return ()

    def delete_local_address(self, ctx: Context, address: LocalAddress) -> Commands:
        """An address was removed from an interface."""
        return ()

    def new_default_route(self, ctx: Context, route: DefaultRoute) -> Commands:
        """A default route was added, in any routing table."""
        return ()

    def delete_default_route(self, ctx: Context, route: DefaultRoute) -> Commands:
        """A default route was removed."""
        return ()

    def listener_created(self, ctx: Context, address: SockAddr) -> Commands:
        """An MPTCP socket of the namespace listens there (not reported by Linux 6.1)."""
        return ()

    def listener_closed(self, ctx: Context, address: SockAddr) -> Commands:
        """It stopped listening (not reported by Linux 6.1)."""
        return ()

    # --- the in-kernel path manager

    def endpoints_read(self, ctx: Context) -> Commands:
        """The endpoints and limits requested with ReadEndpoints are in the world."""
        return ()

    # --- the plugin's own requests

    def wake(self, ctx: Context) -> Commands:
        """The time of a WakeAt without a token has come.

        Every one is kept; those that are due together cause one call.  A millisecond is the
        shortest time.
        """
        return ()

    def wake_connection(self, ctx: Context, connection: Connection) -> Commands:
        """The time of a WakeAt that names the connection has come; it ends with the connection."""
        return ()

    def answered(self, ctx: Context, decision: Decision, errno: int, explanation: str) -> Commands:
        """The kernel answered one of the plugin's commands: 0, or an errno with an explanation."""
        return ()

    def refused(self, ctx: Context, decision: Decision) -> Commands:
        """The engine did not send one of the plugin's commands; `decision.refused` says why."""
        return ()

    def path_probed(self, ctx: Context, decision: Decision, rtt_us: int | None) -> Commands:
        """A ProbePath of the plugin was answered after `rtt_us` microseconds, or not in time."""
        return ()

    # --- the operator's commands

    def manual_command(self, ctx: Context, command: KernelCommand) -> Commands:
        """The daemon has carried out an operator's command; every plugin is told.

        What it changes in connections and endpoints comes as events of its own.
        """
        return ()


class Notice(NamedTuple):
    """One change of the model, as a call of a plugin handler."""

    handler: Callable[..., Commands]
    """The function of `Plugin` that plugins override."""
    args: tuple[Any, ...]
    connection: Connection | None = None
    """The connection it belongs to; None for what all plugins are told."""
