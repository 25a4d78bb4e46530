# SPDX-License-Identifier: BSD-3-Clause
"""The plugins that a configuration names: made with their options, fit to work together."""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import msgspec

from mptcpd_ebpf.config import plugin_loader
from mptcpd_ebpf.config.settings import Config
from mptcpd_ebpf.core.model import World
from mptcpd_ebpf.core.plugin import Mode, Plugin
from mptcpd_ebpf.core.serving import Serving
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure


def build(config: Config) -> list[Plugin]:
    """The plugins, with their options.  Raises `Failure` (CONFIG) naming the plugin."""
    folder = Path(config.plugin_dir) if config.plugin_dir else None
    plugins = []
    for name in config.plugin_names:
        found = plugin_loader.load(name, folder)
        modes = get_args(Mode)
        if found.mode not in modes:
            raise Failure(
                f"plugin {name}: its mode is {found.mode!r}; there are {', '.join(modes)}",
                ExitCode.CONFIG,
            )
        options = msgspec.convert(config.plugins.get(name, {}), found.Options)
        try:
            plugins.append(found(options))
        except Exception as error:
            raise Failure(
                f"plugin {name}: making it raised {type(error).__name__}: {error}",
                ExitCode.CONFIG,
            ) from error
    _refuse_mixed_modes(plugins)
    return plugins


def _refuse_mixed_modes(plugins: Sequence[Plugin]) -> None:
    kernel = [plugin.name for plugin in plugins if plugin.mode == "kernel"]
    userspace = [plugin.name for plugin in plugins if plugin.mode == "userspace"]
    if kernel and userspace:
        raise Failure(
            f"plugins: {', '.join(kernel)} needs the in-kernel path manager and "
            f"{', '.join(userspace)} the userspace one; a namespace has only one of them",
            ExitCode.CONFIG,
        )


def serving(config: Config, plugins: Sequence[Plugin], world: World) -> Serving:
    """Who serves a connection: by rules, else the named default, else the loaded one that
    comes first."""
    default = config.default_plugin
    if default is None and config.load_plugins:
        default = max(
            (plugin for plugin in plugins if plugin.name in config.load_plugins),
            key=lambda plugin: plugin.priority,
        ).name
    return Serving(world, config.rules, default)
