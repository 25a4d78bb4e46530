# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf withdraw``: take back an address that one connection's peer was told."""

import click

from mptcpd_ebpf.cli import _by_hand
from mptcpd_ebpf.control import dispatch


@click.command()
@_by_hand.token
@click.argument("address_id", type=_by_hand.address_ids, metavar="ID")
@_by_hand.ordering
def command(
    token: str,
    address_id: int,
    reason: str | None,
    as_json: bool,
    control: str | None,
    direct: bool,
) -> None:
    """Withdraw the address with this ID (REMOVE_ADDR); the subflows that use it are closed.

    The connection must be in userspace mode; its TOKEN is what 'ls' shows.  A daemon keeps
    you from taking its last usable subflow.
    """
    done = dispatch.carry_out(
        dispatch.control_path(control, direct),
        command="WithdrawAddress",
        token=token,
        address_id=address_id,
        reason=reason,
    )
    _by_hand.finish(done, as_json)
