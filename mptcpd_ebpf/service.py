# SPDX-License-Identifier: BSD-3-Clause
"""The daemon as a service: from its configuration to the exit code.

One daemon serves one network namespace, which it locks; everything that it opens here is
closed again in the reverse order, whatever ends it.
"""

import asyncio
import logging
import signal
from collections.abc import Callable

from mptcpd_ebpf import early_signals, logs, plugin_loader, plugin_set, run_folder
from mptcpd_ebpf.budget import HandlerBudget
from mptcpd_ebpf.config import Config, Settings
from mptcpd_ebpf.control import ControlServer
from mptcpd_ebpf.control_client import SOCKET
from mptcpd_ebpf.daemon import Daemon
from mptcpd_ebpf.ears import Ears
from mptcpd_ebpf.exitcodes import ExitCode, Failure
from mptcpd_ebpf.kernel.errors import KernelError, MptcpMissing, NamespaceTaken
from mptcpd_ebpf.kernel.lock import NamespaceLock
from mptcpd_ebpf.kernel.pm_client import PmClient
from mptcpd_ebpf.service_notify import feed_watchdog, notify

log = logging.getLogger("mptcpd-ebpf")


def run(settings: Settings) -> int:
    """Serves the network namespace of the calling thread until SIGTERM or SIGINT.

    Raises `Failure` for what keeps it from starting.
    """
    config = settings.load(plugin_loader.options_of)
    logs.set_up(config.log, config.log_level)
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


def _take(number: signal.Signals, act: Callable[[], None]) -> None:
    """Has the loop do something when a signal comes, without a word about signals that follow
    each other faster than it looks: Python would print a traceback for each."""
    asyncio.get_running_loop().add_signal_handler(number, act)
    # None may come while there is nowhere to write it to.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pipe = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(pipe, warn_on_full_buffer=False)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def _serve(settings: Settings, config: Config, budget: HandlerBudget) -> int:
    stopping = asyncio.Event()
    plugins = plugin_set.build(config)
    with Ears.open(config.probes) as ears, PmClient() as hands:
        daemon = Daemon(settings, config, ears, hands, budget)

        def reload() -> None:
            if not stopping.is_set():  # what ends is not made anew
                daemon.reload_or_complain()

        for number in (signal.SIGTERM, signal.SIGINT):
            _take(number, stopping.set)
        control = ControlServer(daemon, config.metrics)
        await control.start(config.control or str(run_folder.here(SOCKET)))
        try:
            daemon.start(control, plugins)
            try:
                # Only now is there something to reload.
                _take(signal.SIGHUP, reload)
                if early_signals.hangup_came():
                    reload()
                notify("READY=1")
                feed_watchdog()
                await stopping.wait()
                notify("STOPPING=1")
            finally:
                daemon.stop()
        finally:
            control.close()
            early_signals.shut()
    return ExitCode.OK
