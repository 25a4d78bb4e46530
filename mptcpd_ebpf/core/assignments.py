# SPDX-License-Identifier: BSD-3-Clause
"""Which plugin serves each live connection, and the connections of each plugin."""

from collections.abc import Mapping
from types import MappingProxyType

from mptcpd_ebpf.core.configuration import CoreConfig
from mptcpd_ebpf.core.model import Connection, World
from mptcpd_ebpf.core.plugin import Plugin
from mptcpd_ebpf.core.roles import Preset
from mptcpd_ebpf.core.serving import Undecided, choose

_NONE: Mapping[int, Connection] = MappingProxyType({})


class Assignments:
    """Applies the rules of a configuration to connections."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._config = CoreConfig()
        self._plugins: Mapping[str, Plugin] = {}
        self._plugin_of: dict[int, str | None] = {}
        self._served: dict[str, dict[int, Connection]] = {}
        self._undecided: dict[int, None] = {}
        """Connections whose plugin depends on a pending owner lookup."""
        self._presets: dict[int, Preset] = {}

    def configure(self, config: CoreConfig, plugins: Mapping[str, Plugin]) -> None:
        """Assigns every live connection anew."""
        self._config = config
        self._plugins = plugins
        self._plugin_of.clear()
        self._served.clear()
        self._undecided.clear()
        self._presets.clear()
        for connection in self._world.connections.values():
            self.assign(connection)

    def losing(self, config: CoreConfig) -> list[str]:
        """The plugins that `config` takes a connection from."""
        found: dict[str, None] = {}
        for token, name in self._plugin_of.items():
            connection = self._world.connections[token]
            wanted = choose(config.rules, config.default_plugin, connection, self._world)
            if name is not None and (isinstance(wanted, Undecided) or wanted.plugin != name):
                found[name] = None
        return list(found)

    @property
    def undecided(self) -> list[int]:
        """Tokens of connections whose owner must be looked up."""
        return list(self._undecided)

    def plugin_of(self, token: int) -> Plugin | None:
        return self._plugins.get(self._plugin_of.get(token) or "")

    @property
    def presets(self) -> Mapping[int, Preset]:
        """By token: the presets that rules name for connections."""
        return self._presets

    def served(self, plugin: str) -> Mapping[int, Connection]:
        """By token: the connections that a plugin serves."""
        return self._served.get(plugin, _NONE)

    def assign(self, connection: Connection) -> None:
        """Chooses the plugin of a connection."""
        token = connection.token
        self.remove(token)
        config = self._config
        rule = choose(config.rules, config.default_plugin, connection, self._world)
        name = None
        if isinstance(rule, Undecided):
            self._undecided[token] = None
        else:
            name = rule.plugin
            if rule.preset is not None:
                self._presets[token] = rule.preset
        if name is not None and self._kernel_has_it(name, connection):
            name = None
        self._plugin_of[token] = name
        if name is not None:
            self._served.setdefault(name, {})[token] = connection

    def remove(self, token: int) -> None:
        """The connection is closed, or gets another plugin."""
        name = self._plugin_of.pop(token, None)
        if name is not None:
            served = self._served[name]
            del served[token]
            if not served:
                del self._served[name]
        self._undecided.pop(token, None)
        self._presets.pop(token, None)

    def take_from_userspace(self, connection: Connection) -> Plugin | None:
        """Leaves a connection to the in-kernel path manager, if that turned out to have it.

        Returns the plugin that served it and cannot.
        """
        name = self._plugin_of.get(connection.token)
        if name is None or not self._kernel_has_it(name, connection):
            return None
        self.remove(connection.token)
        self._plugin_of[connection.token] = None
        return self._plugins[name]

    def _kernel_has_it(self, name: str, connection: Connection) -> bool:
        plugin = self._plugins.get(name)
        if self._config.dry_run:
            return False  # plugins decide on them, and nothing is sent
        return bool(connection.in_kernel and plugin is not None and plugin.mode == "userspace")
