# SPDX-License-Identifier: BSD-3-Clause
"""The daemon as a service: from its configuration to the exit code.

One daemon serves one network namespace, which it locks; everything that it opens here is
closed again in the reverse order, whatever ends it.
"""

import asyncio
import logging
import signal
from contextlib import ExitStack
from pathlib import Path

from mptcpd_ebpf import __version__
from mptcpd_ebpf.config import plugin_loader, plugin_set
from mptcpd_ebpf.config.settings import Config, Settings
from mptcpd_ebpf.control.client import SOCKET
from mptcpd_ebpf.control.server import ControlServer, epoch_ns
from mptcpd_ebpf.core.recording import Head
from mptcpd_ebpf.daemon.command_executor import CommandExecutor
from mptcpd_ebpf.daemon.control_source import DaemonControl
from mptcpd_ebpf.daemon.event_sources import EventSources
from mptcpd_ebpf.daemon.handler_budget import HandlerBudget
from mptcpd_ebpf.daemon.loop import Loop
from mptcpd_ebpf.daemon.observers import LogObserver, Observers, Recorder, Statistics
from mptcpd_ebpf.daemon.sd_notify import feed_watchdog, notify
from mptcpd_ebpf.kernel.errors import KernelError, MptcpMissing, NamespaceTaken
from mptcpd_ebpf.kernel.lock import NamespaceLock
from mptcpd_ebpf.kernel.pm_client import PmClient
from mptcpd_ebpf.runtime import logging_setup, netns, run_folder, startup_signals
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure
from mptcpd_ebpf.runtime.signals import PendingSignals

log = logging.getLogger("mptcpd-ebpf")


def run(settings: Settings) -> int:
    """Serves the network namespace of the calling thread until SIGTERM or SIGINT.

    Raises `Failure` for what keeps it from starting.
    """
    config = settings.load(plugin_loader.options_of)
    logging_setup.prepare(config.log, config.log_level).apply()
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
    statistics = Statistics()
    observers = Observers(LogObserver(), statistics)
    with ExitStack() as stack:
        if settings.record is not None:
            observers.add(_recorder(settings.record, stack))
        sources = stack.enter_context(EventSources.open(config.probes))
        pm = stack.enter_context(PmClient())
        signals = stack.enter_context(PendingSignals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
        loop = Loop(settings, config, plugins, sources, CommandExecutor(pm), budget, observers)

        def take_signals() -> None:
            came = signals.take()
            if came & {signal.SIGTERM, signal.SIGINT}:
                stopping.set()
            # A daemon that ends does not reload.
            if signal.SIGHUP in came and not stopping.is_set():
                loop.reload_or_log()

        control = ControlServer(DaemonControl(loop, sources, pm, statistics), config.metrics)
        observers.add(control)
        await control.start(config.control or str(run_folder.here(SOCKET)))
        try:
            loop.start()
            try:
                # Only now is there something to reload.
                if startup_signals.hangup_came():
                    loop.reload_or_log()
                asyncio.get_running_loop().add_reader(signals, take_signals)
                notify("READY=1")
                feed_watchdog()
                await stopping.wait()
                notify("STOPPING=1")
            finally:
                asyncio.get_running_loop().remove_reader(signals)
                loop.stop()
        finally:
            control.close()
            startup_signals.shut()
    return ExitCode.OK


def _recorder(file: Path, stack: ExitStack) -> Recorder:
    head = Head(version=__version__, epoch_ns=epoch_ns(), netns=netns.inode())
    recorder = Recorder(file, head)
    stack.callback(recorder.close)
    return recorder
