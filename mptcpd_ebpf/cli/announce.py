# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf announce``: tell the peer of one connection an address of ours."""

import click

from mptcpd_ebpf.cli import _by_hand
from mptcpd_ebpf.control import dispatch
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure

ANY = "any"


def _port(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """The port; 0 for any."""
    if value is None or value == ANY:
        return None if value is None else 0
    port: int = _by_hand.ports(value, parameter, context)
    return port


@click.command()
@_by_hand.token
@_by_hand.our_address
@click.option("--id", "address_id", type=_by_hand.address_ids, help="Its id; else one is found.")
@click.option(
    "--port",
    callback=_port,
    metavar="PORT|any",
    help="Another port than the connection's; 'any' is one that the kernel chooses.",
)
@click.option(
    "--no-listener",
    is_flag=True,
    help="With --port: an MPTCP socket listens there already, the daemon opens none.",
)
@_by_hand.interface
@_by_hand.ordering
def command(
    token: str,
    ip: str,
    address_id: int | None,
    port: int | None,
    no_listener: bool,
    interface: str | None,
    reason: str | None,
    as_json: bool,
    control: str | None,
    direct: bool,
) -> None:
    """Announce an ADDRESS of ours to the peer (ADD_ADDR), who may open a subflow to it.

    The connection must be in userspace mode; its TOKEN is what 'ls' shows.

    Where --port names another port, something must listen there, or the peer's attempts are
    refused.  The daemon does, until the address is withdrawn or the connection ends;
    without a daemon it must be another socket, --no-listener says that there is one.
    """
    path = dispatch.control_path(control, direct)
    listen = port is not None and not no_listener
    if no_listener and not port:
        raise click.UsageError("--no-listener needs a --port that something listens at")
    if listen and path is None:
        raise Failure(
            "there is no daemon that could listen at the announced port: start one, or give "
            "--no-listener if an MPTCP socket listens there already",
            ExitCode.NO_DAEMON,
        )
    done = dispatch.carry_out(
        path,
        command="AnnounceAddress",
        token=token,
        ip=ip,
        address_id=address_id,
        port=port,
        listen=listen,
        interface=interface,
        reason=reason,
    )
    _by_hand.finish(done, as_json)
