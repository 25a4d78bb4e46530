# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf announce``: announce an address of ours to the peer of one connection."""

import click

from mptcpd_ebpf.cli import _operator
from mptcpd_ebpf.control import dispatch
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure

ANY = "any"


def _port(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """The port; 0 for any."""
    if value is None or value == ANY:
        return None if value is None else 0
    port: int = _operator.ports(value, parameter, context)
    return port


@click.command()
@_operator.token
@_operator.our_address
@click.option("--id", "address_id", type=_operator.address_ids, help="Its id; else one is found.")
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
@_operator.interface
@_operator.ordering
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
    """Announce an ADDRESS of ours to the peer (ADD_ADDR), which may then join it.

    The connection must be in userspace mode; its TOKEN is what 'ls' shows.

    With --port, an MPTCP socket must listen there, or the peer's joins are refused. The daemon
    opens one until the address is withdrawn or the connection is closed. Without a daemon another
    program must; --no-listener says that one does.
    """
    path = dispatch.control_path(control, direct)
    listen = port is not None and not no_listener
    if no_listener and not port:
        raise click.UsageError("--no-listener needs a --port on which a socket listens")
    if listen and path is None:
        raise Failure(
            "no daemon runs that could listen on the announced port: start one, or give "
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
    _operator.finish(done, as_json)
