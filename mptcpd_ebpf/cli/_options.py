# SPDX-License-Identifier: BSD-3-Clause
"""Options that several commands share."""

import click

from mptcpd_ebpf.runtime import run_folder

control = click.option(
    "--control",
    metavar="PATH",
    help="The daemon's control socket.  [default: "
    f"{run_folder.SYSTEM}/<inode of this network namespace>.sock]",
)

as_json = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object with a schema number."
)

direct = click.option(
    "--direct", is_flag=True, help="Ask the kernel itself, also while a daemon runs."
)
