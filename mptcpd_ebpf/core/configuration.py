# SPDX-License-Identifier: BSD-3-Clause
"""The part of the configuration that decisions depend on, as data that a recording can hold."""

from typing import Any

from msgspec import Struct

from mptcpd_ebpf.core.model import AddressPolicy
from mptcpd_ebpf.core.serving import Rule


class PluginSpec(Struct, frozen=True, kw_only=True):
    """A plugin that is loaded."""

    name: str
    options: dict[str, Any] = {}
    """As the plugin's ``Options`` accepts them; defaults may be left out."""
    digest: str = ""
    """Of the plugin's source: two specs that are equal make equal plugins."""


class CoreConfig(Struct, frozen=True, kw_only=True):
    """What the engine and the model are configured with."""

    default_plugin: str | None = None
    """Serves the connections that no rule names a plugin for; None: the kernel does."""
    rules: list[Rule] = []
    """The first rule that fits names the plugin of a connection."""
    allowed_interfaces: list[str] = []
    """Patterns of the interfaces that may carry subflows; empty: all."""
    denied_interfaces: list[str] = []
    """Patterns of those that may not, which beat the former."""
    addresses: AddressPolicy = AddressPolicy()
    dry_run: bool = False
    """Plugins decide, and none of their commands is sent."""
    destructive_per_second: int = 200
    """Subflows destroyed or demoted, per second, by one plugin on one path, for which no
    measurement calls; endpoints removed, by one plugin."""
