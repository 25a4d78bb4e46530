# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf reload``: reloads the daemon's configuration and plugins."""

import click

from mptcpd_ebpf.cli import _options
from mptcpd_ebpf.control import client
from mptcpd_ebpf.control.schema import Status


@click.command()
@_options.control
def command(control: str | None) -> None:
    """Reload configuration and plugins. Everything is checked first: if something is wrong, every
    mistake is shown and the daemon keeps the old configuration (exit code 78). The control socket,
    metrics and probes change only at a restart; the command says so.
    """
    status: Status = client.post(control or client.default_path(), "/v1/reload")
    click.echo("reloaded")
    if fixed := ", ".join(status["pending_restart"]):
        click.echo(f"mptcpd-ebpf: changed, takes effect only after a restart: {fixed}", err=True)
