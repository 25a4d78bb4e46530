# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf resume``: the daemon decides again."""

import click

from mptcpd_ebpf.cli import _options
from mptcpd_ebpf.control import client


@click.command()
@_options.control
def command(control: str | None) -> None:
    """Decide again after 'pause'."""
    client.post(control or client.default_path(), "/v1/resume")
    click.echo("resumed")
