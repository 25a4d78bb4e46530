# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf resume``: the daemon decides again."""

import click

from mptcpd_ebpf import control_client
from mptcpd_ebpf.cli import _options


@click.command()
@_options.control
def command(control: str | None) -> None:
    """Decide again after 'pause'."""
    control_client.post(control or control_client.default_path(), "/v1/resume")
    click.echo("resumed")
