# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf endpoint``: the endpoint table of the in-kernel path manager."""

import json

import click

from mptcpd_ebpf.cli import Group, _operator, _options, _text
from mptcpd_ebpf.control import dispatch
from mptcpd_ebpf.control.schema import Endpoints, EndpointView
from mptcpd_ebpf.core.address import canonical
from mptcpd_ebpf.core.endpoints import EndpointFlag
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure

_FLAGS = [flag.name.lower() for flag in EndpointFlag if flag.name and flag is not flag.IMPLICIT]

_which = click.argument("which", metavar="ID|ADDRESS")


@click.group(cls=Group)
def command() -> None:
    """Show or change the addresses that the in-kernel path manager uses.

    \b
    subflow   open subflows from this address
    signal    announce it to peers
    backup    its subflows carry data only while no other subflow can
    fullmesh  with subflow: to every address of the peer
    laminar   as source for subflows to announced addresses (Linux 6.18)

    Plugins in userspace mode do not use this table.
    """


@command.command()
@_options.as_json
@_operator.reaching
def show(as_json: bool, control: str | None, direct: bool) -> None:
    """Show the endpoints."""
    found = dispatch.endpoints(dispatch.control_path(control, direct))
    if as_json:
        click.echo(json.dumps(found))
    elif not found["endpoints"]:
        click.echo("no endpoints")
    else:
        click.echo(table(found))


@command.command()
@_operator.our_address
@click.argument("flags", nargs=-1, type=click.Choice(_FLAGS), metavar="[FLAG]...")
@click.option("--id", "address_id", type=_operator.address_ids, help="Its id; else the kernel's.")
@click.option("--port", type=_operator.ports, help="With signal: announce this port, too.")
@_operator.interface
@_operator.ordering
def add(
    ip: str,
    flags: tuple[str, ...],
    address_id: int | None,
    port: int | None,
    interface: str | None,
    reason: str | None,
    as_json: bool,
    control: str | None,
    direct: bool,
) -> None:
    """Add an endpoint; without any FLAG it is a 'subflow'."""
    done = dispatch.carry_out(
        dispatch.control_path(control, direct),
        command="AddEndpoint",
        ip=ip,
        flags=list(flags) or ["subflow"],
        address_id=address_id,
        port=port,
        interface=interface,
        reason=reason,
    )
    _operator.finish(done, as_json)


@command.command("del")
@_which
@_operator.ordering
def delete(
    which: str, reason: str | None, as_json: bool, control: str | None, direct: bool
) -> None:
    """Remove an endpoint: its subflows are closed, and it is withdrawn from peers."""
    path = dispatch.control_path(control, direct)
    found = _find(path, which)
    done = dispatch.carry_out(
        path, command="RemoveEndpoint", address_id=found["id"], ip=found["ip"], reason=reason
    )
    _operator.finish(done, as_json)


_CHANGES = ["backup", "nobackup", "fullmesh", "nofullmesh"]


@command.command()
@_which
@click.argument("changes", nargs=-1, required=True, type=click.Choice(_CHANGES), metavar="FLAG...")
@_operator.ordering
def change(
    which: str,
    changes: tuple[str, ...],
    reason: str | None,
    as_json: bool,
    control: str | None,
    direct: bool,
) -> None:
    """Set or clear flags of an endpoint, and of its subflows.

    FLAG is backup, nobackup, fullmesh or nofullmesh; the others stay unchanged.
    """
    path = dispatch.control_path(control, direct)
    found = _find(path, which)
    flags = set(found["flags"])
    for flag in changes:
        if flag.startswith("no"):
            flags.discard(flag.removeprefix("no"))
        else:
            flags.add(flag)
    done = dispatch.carry_out(
        path,
        command="ChangeEndpoint",
        address_id=found["id"],
        ip=found["ip"],
        flags=sorted(flags - {"implicit"}),
        reason=reason,
    )
    _operator.finish(done, as_json)


@command.command()
@_operator.ordering
def flush(reason: str | None, as_json: bool, control: str | None, direct: bool) -> None:
    """Remove every endpoint, including those of other programs."""
    path = dispatch.control_path(control, direct)
    _operator.finish(dispatch.carry_out(path, command="FlushEndpoints", reason=reason), as_json)


def _find(path: str | None, which: str) -> EndpointView:
    """The one endpoint with this id or address.  Raises `Failure`."""
    listed = dispatch.endpoints(path)["endpoints"]
    if which.isdecimal():
        found = [each for each in listed if each["id"] == int(which)]
    else:
        try:
            address = canonical(which)
        except ValueError:
            raise click.UsageError(f"{which!r} is neither an address id nor an address") from None
        found = [each for each in listed if each["ip"] == address]
    if not found:
        raise Failure(
            f"there is no endpoint {which}; 'mptcpd-ebpf endpoint show' lists them",
            ExitCode.CHECK_FAILED,
        )
    if len(found) > 1:
        ids = ", ".join(str(each["id"]) for each in found)
        raise Failure(f"{which} has several endpoints; name one of the ids {ids}", ExitCode.USAGE)
    return found[0]


_HEADINGS = ("ID", "ADDRESS", "PORT", "IF", "FLAGS")


def table(answer: Endpoints) -> str:
    """The endpoints as text."""
    rows = [_HEADINGS]
    for each in answer["endpoints"]:
        bound = each["interface"] or (f"gone (#{each['if_index']})" if each["if_index"] else "any")
        rows.append(
            (
                str(each["id"]),
                each["ip"],
                _text.number(each["port"]),
                bound,
                ", ".join(each["flags"]) or "none",
            )
        )
    return "\n".join(_text.aligned(rows, len(_HEADINGS)))
