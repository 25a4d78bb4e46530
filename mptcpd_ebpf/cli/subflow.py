# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf subflow``: subflows of one connection in userspace mode, by hand."""

import click

from mptcpd_ebpf.cli import Group, _by_hand
from mptcpd_ebpf.control import dispatch


@click.group(cls=Group)
def command() -> None:
    """Open, close or demote a subflow of one connection.

    TOKEN, LOCAL:PORT and REMOTE:PORT are written as 'ls' shows them; IPv6 as
    [address]:port.  The connection must have been made while net.mptcp.path_manager was
    userspace: those under the in-kernel path manager follow 'endpoint' and 'limits'.
    """


@command.command()
@_by_hand.token
@_by_hand.our_address
@_by_hand.remote
@click.option(
    "--id", "local_id", type=_by_hand.address_ids, help="ADDRESS's id; else one is found."
)
@click.option("--remote-id", type=_by_hand.address_ids, help="The id of the peer's address.")
@click.option("--backup", is_flag=True, help="Let it carry data only while no other can.")
@_by_hand.interface
@_by_hand.ordering
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
    _by_hand.finish(done, as_json)


@command.command("del")
@_by_hand.token
@_by_hand.local
@_by_hand.remote
@_by_hand.ordering
def delete(
    token: str,
    local: str,
    remote: str,
    reason: str | None,
    as_json: bool,
    control: str | None,
    direct: bool,
) -> None:
    """Close a subflow; what it has not delivered is sent again on the others.

    A daemon keeps you from closing the last one that is usable.
    """
    done = dispatch.carry_out(
        dispatch.control_path(control, direct),
        command="DestroySubflow",
        token=token,
        local=local,
        remote=remote,
        reason=reason,
    )
    _by_hand.finish(done, as_json)


@command.command()
@_by_hand.token
@_by_hand.local
@_by_hand.remote
@click.option("--clear", is_flag=True, help="Let it carry data like the others again.")
@_by_hand.ordering
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
    _by_hand.finish(done, as_json)
