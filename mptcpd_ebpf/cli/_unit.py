# SPDX-License-Identifier: BSD-3-Clause
"""What ``enable`` and ``disable`` share: the argument, the root, and systemd's reload."""

import subprocess
from pathlib import Path

import click

from mptcpd_ebpf.mptcpize.dropin import Outcome
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure

argument = click.argument("unit", metavar="UNIT")

root_option = click.option(
    "--root",
    metavar="DIR",
    default="/",
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
    help="Change the system image below DIR instead of the running system.",
)

_SYSTEMD_RUNS = Path("/run/systemd/system")
"""There while systemd is the init system (sd_booted(3))."""


def finish(outcome: Outcome, root: Path, done: str) -> None:
    """Says what was done, and makes a running systemd read it.

    Raises `Failure` if systemd runs and does not reload.
    """
    for warning in outcome.warnings:
        click.echo(f"mptcpd-ebpf: warning: {outcome.name}: {warning}", err=True)
    if not outcome.changed:
        click.echo(f"{outcome.name}: was {done} already ({outcome.path})")
        return
    click.echo(f"{outcome.name}: {done} ({outcome.path})")
    if root != Path("/"):
        return
    if not _SYSTEMD_RUNS.is_dir():
        click.echo("systemd does not run here; it reads the change when it starts")
        return
    reload = subprocess.run(["systemctl", "daemon-reload"], capture_output=True, text=True)
    if reload.returncode:
        raise Failure(
            f"systemctl daemon-reload: {reload.stderr.strip()}; run it yourself",
            ExitCode.CHECK_FAILED,
        )
    click.echo(f"takes effect with 'systemctl restart {outcome.name}'")
