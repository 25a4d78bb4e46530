# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf disable``: takes back what ``enable`` did."""

from pathlib import Path

import click

from mptcpd_ebpf.cli import _unit
from mptcpd_ebpf.mptcpize import dropin


@click.command()
@_unit.argument
@_unit.root_option
def command(unit: str, root: Path) -> None:
    """Let the systemd service UNIT use TCP again.

    Removes the drop-in file that 'enable' wrote, and nothing else.
    """
    _unit.finish(dropin.disable(root, unit), root, "disabled")
