# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf reload``: the daemon reads its configuration and plugins anew."""

import click

from mptcpd_ebpf.cli import _options
from mptcpd_ebpf.control import client
from mptcpd_ebpf.control.schema import Status


@click.command()
@_options.control
def command(control: str | None) -> None:
    """Read configuration and plugins anew.

    Everything is checked first; if something is wrong, every mistake is shown and the
    daemon goes on as before (exit code 78).  Where the control socket and the metrics are
    and which probes are loaded can only be changed by a restart; that is told.
    """
    status: Status = client.post(control or client.default_path(), "/v1/reload")
    click.echo("reloaded")
    if fixed := ", ".join(status["waits_for_restart"]):
        click.echo(f"mptcpd-ebpf: changed, but in force only after a restart: {fixed}", err=True)
