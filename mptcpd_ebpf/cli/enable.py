# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf enable``: a systemd service uses MPTCP from its next start on."""

from pathlib import Path

import click

from mptcpd_ebpf.cli import _unit
from mptcpd_ebpf.mptcpize import dropin, environment


@click.command()
@_unit.argument
@_unit.root_option
def command(unit: str, root: Path) -> None:
    """Make the systemd service UNIT use MPTCP in place of TCP.

    Writes a drop-in file beside the unit and never touches the unit itself; whatever it
    sets in its environment stays.  UNIT may be an instance (foo@bar) or a template
    (foo@), and '.service' may be left out.  Doing it twice is doing it once; do it again
    when the unit's own LD_PRELOAD or GODEBUG changes, or mptcpd-ebpf has moved.

    \b
    Try it:
      mptcpd-ebpf enable nginx && systemctl restart nginx
      mptcpd-ebpf enable --root /mnt/image sshd
    """
    _unit.finish(dropin.enable(root, unit, environment.library()), root, "enabled")
