# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf daemon``: the command line of the daemon."""

import signal
from pathlib import Path
from typing import Any

import click

from mptcpd_ebpf.config import DEFAULT_FILE, LogLevel, OnExit, ProbeBackend, Settings


@click.command()
@click.option(
    "--path-manager",
    metavar="PLUGIN[,PLUGIN…]",
    help="The plugins that decide.  Without any, the daemon observes and manages nothing.",
)
@click.option(
    "--plugin-dir", metavar="FOLDER", help="A folder searched for plugins before the shipped ones."
)
@click.option(
    "--config",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help=f"The configuration.  [default: {DEFAULT_FILE}, if it exists]",
)
@click.option(
    "--control",
    metavar="PATH",
    help="Where to put the control socket.  [default: one per network namespace in "
    "/run/mptcpd-ebpf]",
)
@click.option(
    "--probes",
    type=click.Choice([backend.value for backend in ProbeBackend]),
    help="Where measurements come from: CO-RE eBPF probes, netlink alone, or the best of "
    "them that this kernel allows.",
)
@click.option(
    "--on-exit",
    type=click.Choice([choice.value for choice in OnExit]),
    help="What becomes of the subflows and endpoints that the daemon made.",
)
@click.option(
    "--log-level",
    type=click.Choice([level.value for level in LogLevel]),
    help="How much to tell on stderr.",
)
def command(file: Path | None, **options: Any) -> int:
    """Measure subflows and keep connections on good paths.

    Serves the network namespace it is started in, until SIGTERM or Ctrl-C; SIGHUP reads
    the configuration anew.  The command line beats the file.

    \b
    mptcpd-ebpf daemon                          observe only: watch with 'mptcpd-ebpf ls'
    mptcpd-ebpf daemon --path-manager=adaptive  a subflow per interface, off bad paths
    ip netns exec NAME mptcpd-ebpf daemon …     one more, in another namespace

    With a plugin that decides by itself, the kernel's path manager for new connections
    is set to userspace while the daemon runs, and put back at exit.
    """
    from mptcpd_ebpf import daemon

    # Writing to a connection that is gone is an error to handle, not a reason to die.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    return daemon.run(Settings(file=_chosen(file), overrides=_overrides(options)))


def _chosen(file: Path | None) -> Path | None:
    if file is not None:
        return file
    return DEFAULT_FILE if DEFAULT_FILE.exists() else None


_KEYS = {"probes": "probes.backend"}
"""The key of the configuration that an option sets, where its name is another one."""


def _overrides(options: dict[str, Any]) -> dict[str, Any]:
    given = {_KEYS.get(name, name): value for name, value in options.items() if value is not None}
    if "path_manager" in given:
        given["path_manager"] = [name for name in given["path_manager"].split(",") if name]
    return given
