# SPDX-License-Identifier: BSD-3-Clause
"""The daemon as a service: from its configuration to the exit code.

One daemon serves one network namespace, which it locks; everything that it opens here is
closed again in the reverse order, whatever ends it.
"""

import asyncio
import logging
import signal

from mptcpd_ebpf.config import plugin_loader, plugin_set
from mptcpd_ebpf.config.settings import Config, Settings
from mptcpd_ebpf.control.client import SOCKET
from mptcpd_ebpf.control.server import ControlServer
from mptcpd_ebpf.daemon.event_sources import EventSources
from mptcpd_ebpf.daemon.handler_budget import HandlerBudget
from mptcpd_ebpf.daemon.loop import Daemon
from mptcpd_ebpf.daemon.sd_notify import feed_watchdog, notify
from mptcpd_ebpf.kernel.errors import KernelError, MptcpMissing, NamespaceTaken
from mptcpd_ebpf.kernel.lock import NamespaceLock
from mptcpd_ebpf.kernel.pm_client import PmClient
from mptcpd_ebpf.runtime import logging_setup, run_folder, startup_signals
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure
from mptcpd_ebpf.runtime.signals import PendingSignals

log = logging.getLogger("mptcpd-ebpf")


def run(settings: Settings) -> int:
    """Serves the network namespace of the calling thread until SIGTERM or SIGINT.

    Raises `Failure` for what keeps it from starting.
    """
    config = settings.load(plugin_loader.options_of)
    logging_setup.set_up(config.log, config.log_level)
    for warning in settings.warnings():
        log.warning("%s", warning)
    try:
        with NamespaceLock(), HandlerBudget() as budget:
            return asyncio.run(_serve(settings, config, budget))
    except NamespaceTaken as error:
        raise Failure(str(error), ExitCode.HELD) from None
    except MptcpMissing as error:
        raise Failure(str(error), ExitCode.NO_MPTCP) from None
    except KernelError as error:
        raise Failure(str(error), ExitCode.PRIVILEGE) from None


async def _serve(settings: Settings, config: Config, budget: HandlerBudget) -> int:
    stopping = asyncio.Event()
    plugins = plugin_set.build(config)
    with (
        EventSources.open(config.probes) as sources,
        PmClient() as hands,
        PendingSignals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals,
    ):
        daemon = Daemon(settings, config, sources, hands, budget)

        def heed() -> None:
            came = signals.take()
            if came & {signal.SIGTERM, signal.SIGINT}:
                stopping.set()
            # What ends is not made anew.
            if signal.SIGHUP in came and not stopping.is_set():
                daemon.reload_or_complain()

        control = ControlServer(daemon, config.metrics)
        await control.start(config.control or str(run_folder.here(SOCKET)))
        try:
            daemon.start(control, plugins)
            try:
                # Only now is there something to reload.
                if startup_signals.hangup_came():
                    daemon.reload_or_complain()
                asyncio.get_running_loop().add_reader(signals, heed)
                notify("READY=1")
                feed_watchdog()
                await stopping.wait()
                notify("STOPPING=1")
            finally:
                asyncio.get_running_loop().remove_reader(signals)
                daemon.stop()
        finally:
            control.close()
            startup_signals.shut()
    return ExitCode.OK
