# SPDX-License-Identifier: BSD-3-Clause
"""Runs the daemon: from its configuration to the exit code.

One daemon serves one network namespace, which it locks.  Everything that is opened here is closed
in the reverse order, also after an error.
"""

import asyncio
import gc
import logging
import signal
from contextlib import ExitStack
from pathlib import Path

from mptcpd_ebpf import __version__
from mptcpd_ebpf.config import plugin_loader, plugin_set
from mptcpd_ebpf.config.plugin_set import PluginSet
from mptcpd_ebpf.config.settings import Config, ProbeBackend, Settings
from mptcpd_ebpf.control import describe
from mptcpd_ebpf.control.client import SOCKET
from mptcpd_ebpf.control.server import ControlServer, epoch_ns
from mptcpd_ebpf.core.measurement import Measurement
from mptcpd_ebpf.core.recording import Head
from mptcpd_ebpf.daemon import privileges
from mptcpd_ebpf.daemon.announced_listeners import AnnouncedListeners
from mptcpd_ebpf.daemon.command_executor import CommandExecutor
from mptcpd_ebpf.daemon.control_source import DaemonControl
from mptcpd_ebpf.daemon.descriptor_store import subscribe
from mptcpd_ebpf.daemon.endpoint_ledger import EndpointLedger
from mptcpd_ebpf.daemon.event_sources import EventSources
from mptcpd_ebpf.daemon.handler_budget import HandlerBudget
from mptcpd_ebpf.daemon.loop import Loop
from mptcpd_ebpf.daemon.new_connections import NewConnections
from mptcpd_ebpf.daemon.observers import LogObserver, Memory, Observers, Recorder, Statistics
from mptcpd_ebpf.daemon.pm_sysctl import PathManagerSysctl
from mptcpd_ebpf.daemon.reload import Reloader
from mptcpd_ebpf.daemon.sd_notify import feed_watchdog, notify
from mptcpd_ebpf.journal import location
from mptcpd_ebpf.journal.writer import Bounds, Writer
from mptcpd_ebpf.kernel import others, sysctl
from mptcpd_ebpf.kernel.detour import detour
from mptcpd_ebpf.kernel.errors import KernelError, MptcpMissing, NamespaceTaken
from mptcpd_ebpf.kernel.listeners import Listeners
from mptcpd_ebpf.kernel.lock import NamespaceLock
from mptcpd_ebpf.kernel.pm import joins_marked
from mptcpd_ebpf.kernel.pm_client import PmClient
from mptcpd_ebpf.kernel.sysctl import PathManagerSetting
from mptcpd_ebpf.runtime import logging_setup, netns, run_folder, startup_signals
from mptcpd_ebpf.runtime.capabilities import Capability, effective
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure
from mptcpd_ebpf.runtime.signals import PendingSignals

log = logging.getLogger("mptcpd-ebpf")


def run(settings: Settings) -> int:
    """Serves the network namespace of the calling thread until SIGTERM or SIGINT.

    Raises `Failure` if the daemon cannot start.
    """
    config = settings.load(plugin_loader.options_of)
    logging_setup.prepare(config.log, config.log_level).apply()
    for warning in settings.warnings(config):
        log.warning("%s", warning)
    privileges.require_files()
    privileges.require_capabilities()
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
    memory = Memory()
    log_observer = LogObserver(asyncio.get_running_loop().call_later)
    observers = Observers(log_observer, statistics, memory)
    folder = run_folder.own()
    with ExitStack() as stack:
        if settings.record is not None:
            observers.add(_recorder(settings.record, stack))
        sources = stack.enter_context(EventSources.open(config.probes, subscribe))
        new_connections = stack.enter_context(NewConnections.open(config))
        sources.sources += new_connections.sources
        pm = stack.enter_context(PmClient())
        # Before any thread starts, because each thread has capabilities of its own.
        privileges.drop()
        signals = stack.enter_context(PendingSignals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
        setting = PathManagerSetting()
        path_manager = PathManagerSysctl(folder, setting)
        loop = Loop(
            config,
            plugins,
            sources,
            _executor(pm, folder),
            path_manager,
            observers,
            new_connections,
            budget,
        )
        budget.connections = lambda: len(loop.engine.world.connections)
        reloader = Reloader(settings, config, loop, path_manager)

        def take_signals() -> None:
            came = signals.take()
            if came & {signal.SIGTERM, signal.SIGINT}:
                stopping.set()
            # No reload while the daemon stops.
            if signal.SIGHUP in came and not stopping.is_set():
                reloader.reload_or_log()

        journal = _journal(config, sources, stack)
        if journal is not None:
            observers.add(journal)
        source = DaemonControl(loop, reloader, sources, pm, statistics, memory, setting, journal)
        control = ControlServer(source, config.metrics)
        observers.add(control)
        await control.start(config.control or str(run_folder.here(SOCKET)))
        try:
            _log_surroundings(sources, config.probes.backend, plugins)
            loop.start()
            # The objects of the start stay: the garbage collector need not visit them again.
            gc.freeze()
            try:
                # A SIGHUP that arrived during the start.
                if startup_signals.hangup_came():
                    reloader.reload_or_log()
                asyncio.get_running_loop().add_reader(signals, take_signals)
                notify("READY=1")
                feed_watchdog()
                await stopping.wait()
                notify("STOPPING=1")
            finally:
                asyncio.get_running_loop().remove_reader(signals)
                loop.stop()
                log_observer.flush()
        finally:
            control.close()
            startup_signals.shut()
    return ExitCode.OK


def _journal(config: Config, sources: EventSources, stack: ExitStack) -> Writer | None:
    """The journal, if it is enabled; its thread opens the file while the daemon starts."""
    wanted = config.journal
    if not wanted.enabled:
        return None

    def sample() -> list[Measurement]:
        try:
            return sources.sample()
        except KernelError as error:
            raise OSError(str(error)) from None

    journal = Writer(
        Path(wanted.path) if wanted.path is not None else location.default_path(),
        Bounds(max_mb=wanted.max_mb, max_age_days=wanted.max_age_days, sample_s=wanted.sample_s),
        __version__,
        describe=lambda decision: describe.action(decision.command),
        sample=sample,
    )
    journal.start()
    stack.callback(journal.close)
    return journal


def _executor(pm: PmClient, folder: Path) -> CommandExecutor:
    ledger = EndpointLedger(pm, folder)
    listeners = AnnouncedListeners(Listeners(), folder)
    return CommandExecutor(pm, ledger, listeners, None if joins_marked() else detour)


def _log_surroundings(sources: EventSources, wanted: ProbeBackend, plugins: PluginSet) -> None:
    """Logs what the daemon finds in its network namespace.

    Also removes the files of namespaces that do not exist any more.
    """
    for file in run_folder.sweep():
        log.info("removed %s: its network namespace does not exist any more", file)
    blind = sources.backend is ProbeBackend.NETLINK and wanted is not ProbeBackend.NETLINK
    log.log(logging.WARNING if blind else logging.INFO, "probes: %s", sources.choice)
    if plugins.specs and Capability.CAP_NET_RAW not in effective():
        log.warning(
            "CAP_NET_RAW is missing: a path that a plugin left cannot be probed, and is used again "
            "after a while without knowing whether it has recovered"
        )
    if not sysctl.enabled():
        log.warning(
            "net.mptcp.enabled is 0: new sockets of this network namespace cannot use MPTCP; "
            "run 'sysctl -w net.mptcp.enabled=1'"
        )
    for other in others.others():
        log.warning(
            "%s (pid %s) manages or monitors MPTCP in this network namespace too: %s",
            other.comm or "a process",
            other.pid or "unknown",
            other.advice,
        )


def _recorder(file: Path, stack: ExitStack) -> Recorder:
    head = Head(version=__version__, epoch_ns=epoch_ns(), netns=netns.inode())
    recorder = Recorder(file, head)
    stack.callback(recorder.close)
    return recorder
