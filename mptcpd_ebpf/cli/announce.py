# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf announce``: tell the peer of one connection an address of ours."""

import click

from mptcpd_ebpf import daemon_or_kernel
from mptcpd_ebpf.cli import _by_hand


@click.command()
@_by_hand.token
@_by_hand.our_address
@click.option("--id", "address_id", type=_by_hand.address_ids, help="Its id; else one is found.")
@click.option("--port", type=_by_hand.ports, help="Another port than the connection's.")
@_by_hand.interface
@_by_hand.ordering
def command(
    token: str,
    ip: str,
    address_id: int | None,
    port: int | None,
    interface: str | None,
    reason: str | None,
    as_json: bool,
    control: str | None,
    direct: bool,
) -> None:
    """Announce an ADDRESS of ours to the peer (ADD_ADDR), who may open a subflow to it.

    The connection must be in userspace mode; its TOKEN is what 'ls' shows.  With --port
    an MPTCP socket must listen there, or the peer's attempts are refused.
    """
    done = daemon_or_kernel.carry_out(
        daemon_or_kernel.control_path(control, direct),
        command="AnnounceAddress",
        token=token,
        ip=ip,
        address_id=address_id,
        port=port,
        interface=interface,
        reason=reason,
    )
    _by_hand.finish(done, as_json)
