# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf reload``: the daemon reads its configuration and plugins anew."""

import click

from mptcpd_ebpf import control_client
from mptcpd_ebpf.cli import _options


@click.command()
@_options.control
def command(control: str | None) -> None:
    """Read configuration and plugins anew.

    Everything is checked first; if something is wrong, every mistake is shown and the
    daemon goes on as before (exit code 78).
    """
    control_client.post(control or control_client.default_path(), "/v1/reload")
    click.echo("reloaded")
