# SPDX-License-Identifier: BSD-3-Clause
"""Options that several commands share."""

import click

from mptcpd_ebpf.runtime import netns, run_folder

control = click.option(
    "--control",
    metavar="PATH",
    help="The daemon's control socket.  [default: "
    f"{run_folder.SYSTEM}/<inode of this network namespace>.sock]",
)

as_json = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object with a schema number."
)


def _enter(_context: click.Context, _parameter: click.Parameter, name: str | None) -> None:
    if name is not None:
        netns.enter(name)


# Eager: the defaults of the other options depend on the namespace.
netns_option = click.option(
    "--netns",
    metavar="NAME|PID",
    is_eager=True,
    expose_value=False,
    callback=_enter,
    help="Look into this network namespace: a name of 'ip netns', or a process in it.",
)

direct = click.option(
    "--direct", is_flag=True, help="Ask the kernel itself, also while a daemon runs."
)
