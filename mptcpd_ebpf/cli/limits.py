# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf limits``: what the in-kernel path manager allows per connection."""

import json

import click

from mptcpd_ebpf.cli import _operator, _options
from mptcpd_ebpf.control import dispatch

_limit = _operator.WholeNumber(0, 2**32 - 1)


@click.command()
@click.option("--subflows", type=_limit, help="Subflows beside the initial one.")
@click.option("--add-addr-accepted", type=_limit, help="Announced addresses that are joined.")
@_operator.reason
@_options.as_json
@_operator.reaching
def command(
    subflows: int | None,
    add_addr_accepted: int | None,
    reason: str | None,
    as_json: bool,
    control: str | None,
    direct: bool,
) -> None:
    """Show the limits of the in-kernel path manager, or set those that are given.

    They do not apply to connections in userspace mode.
    """
    path = dispatch.control_path(control, direct)
    found = dispatch.limits(path)
    if subflows is not None or add_addr_accepted is not None:
        done = dispatch.carry_out(
            path,
            command="SetLimits",
            subflows=found["subflows"] if subflows is None else subflows,
            add_addr_accepted=(
                found["add_addr_accepted"] if add_addr_accepted is None else add_addr_accepted
            ),
            reason=reason,
        )
        _operator.finish(done, as_json)
    elif as_json:
        click.echo(json.dumps(found))
    else:
        click.echo(f"subflows           {found['subflows']}")
        click.echo(f"add-addr-accepted  {found['add_addr_accepted']}")
