# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf subflow``: subflows of one connection in userspace mode."""

import click

from mptcpd_ebpf.cli import Group, _operator
from mptcpd_ebpf.control import dispatch


@click.group(cls=Group)
def command() -> None:
    """Open, close or demote a subflow of one connection.

    TOKEN, LOCAL:PORT and REMOTE:PORT are written as 'ls' shows them; IPv6 as
    [address]:port.  The connection must have been created while net.mptcp.path_manager was
    userspace; connections of the in-kernel path manager follow 'endpoint' and 'limits'.
    """


@command.command()
@_operator.token
@_operator.our_address
@_operator.remote
@click.option(
    "--id", "local_id", type=_operator.address_ids, help="ADDRESS's id. [default: one that is free]"
)
@click.option("--remote-id", type=_operator.address_ids, help="The id of the peer's address.")
@click.option("--backup", is_flag=True, help="It carries data only while no other subflow can.")
@_operator.interface
@_operator.ordering
def add(
    token: str,
    ip: str,
    remote: str,
    local_id: int | None,
    remote_id: int | None,
    backup: bool,
    interface: str | None,
    reason: str | None,
    as_json: bool,
    control: str | None,
    direct: bool,
) -> None:
    """Open a subflow from our ADDRESS to the peer's REMOTE:PORT.

    The kernel answers before the handshake: 'monitor' shows whether the peer agreed.
    """
    done = dispatch.carry_out(
        dispatch.control_path(control, direct),
        command="CreateSubflow",
        token=token,
        local_ip=ip,
        local_id=local_id,
        remote=remote,
        remote_id=remote_id,
        backup=backup,
        interface=interface,
        reason=reason,
    )
    _operator.finish(done, as_json)


@command.command("del")
@_operator.token
@_operator.local
@_operator.remote
@_operator.ordering
def delete(
    token: str,
    local: str,
    remote: str,
    reason: str | None,
    as_json: bool,
    control: str | None,
    direct: bool,
) -> None:
    """Close a subflow; its unacknowledged data is sent again on the others.

    A daemon refuses to close the last usable one.
    """
    done = dispatch.carry_out(
        dispatch.control_path(control, direct),
        command="DestroySubflow",
        token=token,
        local=local,
        remote=remote,
        reason=reason,
    )
    _operator.finish(done, as_json)


@command.command()
@_operator.token
@_operator.local
@_operator.remote
@click.option("--clear", is_flag=True, help="Let it carry data like the others again.")
@_operator.ordering
def backup(
    token: str,
    local: str,
    remote: str,
    clear: bool,
    reason: str | None,
    as_json: bool,
    control: str | None,
    direct: bool,
) -> None:
    """Mark a subflow as backup, for us and (MP_PRIO) for the peer."""
    done = dispatch.carry_out(
        dispatch.control_path(control, direct),
        command="SetBackup",
        token=token,
        local=local,
        remote=remote,
        backup=not clear,
        reason=reason,
    )
    _operator.finish(done, as_json)
