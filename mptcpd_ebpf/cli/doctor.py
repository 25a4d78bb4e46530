# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf doctor``: the checks of `mptcpd_ebpf.doctor`, printed as they end."""

import json
import sys

import click

from mptcpd_ebpf.cli import _options
from mptcpd_ebpf.control.schema import SCHEMA
from mptcpd_ebpf.runtime.exit_codes import ExitCode

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red", "unknown": "cyan"}


@click.command()
@_options.as_json
def command(as_json: bool) -> int:
    """Check whether this machine can do it.

    Looks at the kernel, sysctls, capabilities, paths, BTF, lockdown, the probes, and at
    other path managers that interfere.

    \b
    ok       fine
    warn     the daemon runs, with less than it could
    fail     the daemon does not start, or cannot do its work
    unknown  it cannot be seen from here

    Each line that is not ok tells the way out.  Looks at this network namespace and
    this user: run it as root, and with 'ip netns exec' for another namespace.  The
    probes are really loaded for a moment, nothing is changed.

    Exit code 1 if a check fails, 0 otherwise.
    """
    from mptcpd_ebpf import doctor  # loads the kernel's side: --help should not pay for it

    checks = []
    for check in doctor.examine():
        checks.append(check)
        if not as_json:
            colour = click.style(f"{check.status:<7}", fg=_COLOURS[check.status])
            click.echo(f"{colour}  {check.name:<14}  {check.detail}")
            if check.way_out is not None:
                click.echo(f"{'':25}→ {check.way_out}")
            sys.stdout.flush()
    if as_json:
        fields = [
            {name: getattr(check, name) for name in check.__struct_fields__} for check in checks
        ]
        click.echo(json.dumps({"schema": SCHEMA, "checks": fields}))
    failed = any(check.status is doctor.Status.FAIL for check in checks)
    return ExitCode.CHECK_FAILED if failed else ExitCode.OK
