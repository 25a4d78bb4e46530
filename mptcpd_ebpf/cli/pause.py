# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf pause``: from now on the daemon decides nothing."""

import click

from mptcpd_ebpf.cli import _options
from mptcpd_ebpf.control import client


@click.command()
@_options.control
def command(control: str | None) -> None:
    """Stop deciding, at once.

    The daemon keeps measuring and stays subscribed to the kernel's events, so that joins are still
    accepted. It sends no command until 'resume'. Subflows stay unchanged.
    """
    client.post(control or client.default_path(), "/v1/pause")
    click.echo("paused")
