# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf withdraw``: withdraw an address that was announced to the peer of one
connection."""

import click

from mptcpd_ebpf.cli import _operator
from mptcpd_ebpf.control import dispatch


@click.command()
@_operator.token
@click.argument("address_id", type=_operator.address_ids, metavar="ID")
@_operator.ordering
def command(
    token: str,
    address_id: int,
    reason: str | None,
    as_json: bool,
    control: str | None,
    direct: bool,
) -> None:
    """Withdraw the address with this ID (REMOVE_ADDR); the subflows that use it are closed.

    The connection must be in userspace mode; its TOKEN is what 'ls' shows.  A daemon refuses to
    close its last usable subflow.
    """
    done = dispatch.carry_out(
        dispatch.control_path(control, direct),
        command="WithdrawAddress",
        token=token,
        address_id=address_id,
        reason=reason,
    )
    _operator.finish(done, as_json)
