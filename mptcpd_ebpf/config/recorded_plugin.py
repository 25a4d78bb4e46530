# SPDX-License-Identifier: BSD-3-Clause
"""The plugin of a recorded run, for a replay: of the same name, options and code."""

from pathlib import Path

from mptcpd_ebpf.config import plugin_set
from mptcpd_ebpf.core.configuration import PluginSpec
from mptcpd_ebpf.core.plugin import Plugin
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure


def recorded_plugin(spec: PluginSpec, folder: Path | None = None) -> Plugin:
    """Loads the plugin of a spec.

    Raises `Failure` (CONFIG) if it does not load, or if its code is not the recorded one: its
    decisions would say nothing about the recorded run.
    """
    plugin, digest = plugin_set.make(spec.name, spec.options, folder)
    if digest != spec.digest:
        raise Failure(
            f"plugin {spec.name}: its code has changed since the recording; "
            "replay with the version that recorded it",
            ExitCode.CONFIG,
        )
    return plugin
