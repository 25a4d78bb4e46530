# SPDX-License-Identifier: BSD-3-Clause
"""The plugins that a configuration names: built with their options, fit to work together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import msgspec

from mptcpd_ebpf.config import plugin_loader
from mptcpd_ebpf.config.settings import Config
from mptcpd_ebpf.core.configuration import CoreConfig, PluginSpec
from mptcpd_ebpf.core.plugin import Mode, Plugin
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure


class PluginSet(NamedTuple):
    """Plugins that are built, and the specs by which the engine asks for them."""

    plugins: dict[str, Plugin]
    specs: list[PluginSpec]

    @property
    def mode(self) -> Mode | None:
        """The path manager that they need for new connections; None if they need none."""
        return next((p.mode for p in self.plugins.values() if p.mode != "any"), None)


def path_manager(config: Config, plugins: PluginSet) -> Mode | None:
    """The kernel path manager that a configuration needs for new connections; None: any."""
    return None if config.dry_run else plugins.mode


def build(config: Config) -> PluginSet:
    """The plugins, with their options.  Raises `Failure` (CONFIG) naming the plugin."""
    folder = Path(config.plugin_dir) if config.plugin_dir else None
    plugins: dict[str, Plugin] = {}
    specs = []
    for name in config.plugin_names:
        options = config.plugins.get(name, {})
        plugins[name], digest = make(name, options, folder)
        specs.append(PluginSpec(name=name, options=options, digest=digest))
    _refuse_mixed_modes(list(plugins.values()))
    return PluginSet(plugins, specs)


def make(name: str, options: dict[str, Any], folder: Path | None = None) -> tuple[Plugin, str]:
    """A plugin and the digest of its source.  Raises `Failure` (CONFIG)."""
    found = plugin_loader.load(name, folder)
    modes = get_args(Mode)
    if found.mode not in modes:
        raise Failure(
            f"plugin {name}: its mode is {found.mode!r}; there are {', '.join(modes)}",
            ExitCode.CONFIG,
        )
    try:
        plugin = found(msgspec.convert(options, found.Options))
    except Exception as error:
        raise Failure(
            f"plugin {name}: making it raised {type(error).__name__}: {error}",
            ExitCode.CONFIG,
        ) from error
    return plugin, plugin_loader.digest(found)


def _refuse_mixed_modes(plugins: Sequence[Plugin]) -> None:
    kernel = [plugin.name for plugin in plugins if plugin.mode == "kernel"]
    userspace = [plugin.name for plugin in plugins if plugin.mode == "userspace"]
    if kernel and userspace:
        raise Failure(
            f"plugins: {', '.join(kernel)} needs the in-kernel path manager and "
            f"{', '.join(userspace)} the userspace one; a namespace has only one of them",
            ExitCode.CONFIG,
        )


def core_config(config: Config, plugins: PluginSet) -> CoreConfig:
    """What the engine is told of a configuration.

    Connections that no rule names a plugin for get the named default, else the loaded plugin of
    the highest priority.
    """
    default = config.default_plugin
    if default is None and config.load_plugins:
        loaded = [plugins.plugins[name] for name in config.load_plugins]
        default = max(loaded, key=lambda plugin: plugin.priority).name
    return CoreConfig(
        default_plugin=default,
        rules=config.rules,
        allowed_interfaces=config.interfaces.allow,
        denied_interfaces=config.interfaces.deny,
        addresses=config.addresses,
        dry_run=config.dry_run,
        destructive_per_second=config.limits.destructive_per_second,
    )
