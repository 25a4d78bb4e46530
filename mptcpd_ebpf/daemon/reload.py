# SPDX-License-Identifier: BSD-3-Clause
"""Reloads the configuration: the new one is in force as a whole, or not at all.

The steps that can fail come first: reading files and plugins, opening the log's destination,
setting the path manager.  If one fails, the old configuration stays in force.
"""

import logging
from collections.abc import Callable

from mptcpd_ebpf.config import plugin_loader, plugin_set
from mptcpd_ebpf.config.settings import Config, Settings, fixed_at_start
from mptcpd_ebpf.daemon.loop import Loop
from mptcpd_ebpf.daemon.pm_sysctl import PathManagerSysctl
from mptcpd_ebpf.kernel.errors import KernelError
from mptcpd_ebpf.runtime import logging_setup
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure
from mptcpd_ebpf.runtime.logging_setup import LogDestination, LogSwitch

log = logging.getLogger("mptcpd-ebpf")

PrepareLog = Callable[[LogDestination, str], LogSwitch]
"""Opens a log destination; raises `Failure` (`logging_setup.prepare`)."""


class Reloader:
    """Reads the settings again and puts them in force in a running loop."""

    def __init__(
        self,
        settings: Settings,
        config: Config,
        loop: Loop,
        path_manager: PathManagerSysctl,
        prepare_log: PrepareLog = logging_setup.prepare,
    ) -> None:
        """`config` is the one with which the daemon started."""
        self._settings = settings
        self._started_with = config
        self._loop = loop
        self._path_manager = path_manager
        self._prepare_log = prepare_log

    @property
    def pending_restart(self) -> list[str]:
        """Changed keys that take effect only after a restart."""
        return fixed_at_start(self._started_with, self._loop.config)

    def reload(self) -> None:
        """Reads the configuration again and puts it in force, all of it or nothing.

        Raises `Failure`, and the old configuration stays in force.
        """
        config = self._settings.load(plugin_loader.options_of)
        warnings = self._settings.warnings(config)
        plugins = plugin_set.build(config)
        switch_log = self._prepare_log(config.log, config.log_level)
        try:
            self._path_manager.use(plugin_set.path_manager(config, plugins))
        except KernelError as error:
            switch_log.cancel()
            raise Failure(str(error), ExitCode.PRIVILEGE) from None
        # The steps from here on do not fail.
        switch_log.apply()
        self._loop.configure(config, plugins)
        for warning in warnings:
            log.warning("%s", warning)
        log.info("configuration reloaded")
        if pending := self.pending_restart:
            log.warning("changed, takes effect only after a restart: %s", ", ".join(pending))

    def reload_or_log(self) -> None:
        """Reloads for SIGHUP, with failures in the log."""
        try:
            self.reload()
        except Failure as failure:
            log.error("configuration not reloaded, the old one stays in force: %s", failure)
