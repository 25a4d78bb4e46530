# SPDX-License-Identifier: BSD-3-Clause
"""Decisions and commands as one line of text, for the log and the terminal."""

from mptcpd_ebpf.core.commands import (
    AddEndpoint,
    AnnounceAddress,
    AnyCommand,
    ChangeEndpoint,
    CreateSubflow,
    Decision,
    DestroySubflow,
    FlushEndpoints,
    ProbePath,
    ReadEndpoints,
    RemoveEndpoint,
    RequestSample,
    SetBackup,
    SetLimits,
    SteerNewConnections,
    WithdrawAddress,
)
from mptcpd_ebpf.core.engine import DRY_RUN


def decision(made: Decision) -> str:
    """``adaptive: destroy 10.0.1.1:4000 → 10.0.9.1:80 of 1a2b3c4d: nothing came back …``."""
    if made.refused == DRY_RUN:
        return f"dry run: {made.plugin} would {action(made.command)}: {made.command.reason}"
    text = f"{made.plugin}: {action(made.command)}: {made.command.reason}"
    return f"{text} [not done: {made.refused}]" if made.refused else text


def action(command: AnyCommand) -> str:
    """What a command does, and to which subflow, address or endpoint."""
    match command:
        case CreateSubflow():
            kind = "backup subflow" if command.backup else "subflow"
            return f"create {kind} {command.local_ip} → {command.remote}{_of(command.token)}"
        case DestroySubflow():
            return f"destroy {command.local} → {command.remote}{_of(command.token)}"
        case SetBackup():
            verb = "demote" if command.backup else "restore"
            return f"{verb} {command.local} → {command.remote}{_of(command.token)}"
        case AnnounceAddress():
            port = f" port {command.port}" if command.port else ""
            return f"announce {command.ip}{port} as id {command.address_id}{_of(command.token)}"
        case WithdrawAddress():
            return f"withdraw address id {command.address_id}{_of(command.token)}"
        case AddEndpoint():
            return f"add endpoint {command.ip} ({_flags(command.flags.name)})"
        case RemoveEndpoint():
            return f"remove endpoint {command.address_id} {command.ip}".rstrip()
        case ChangeEndpoint():
            return f"change endpoint {command.address_id} to {_flags(command.flags.name)}"
        case FlushEndpoints():
            return "flush endpoints"
        case SetLimits():
            return (
                f"set limits to {command.subflows} subflows, "
                f"{command.add_addr_accepted} accepted addresses"
            )
        case ProbePath():
            size = "full-size" if command.full_size else "small"
            return f"probe {command.local_ip} → {command.remote} ({size})"
        case SteerNewConnections(local_ip=None):
            return f"start new IPv{6 if command.ipv6 else 4} connections on the default route"
        case SteerNewConnections():
            family = 6 if command.ipv6 else 4
            where = f"{command.interface} ({command.local_ip})"
            return f"start new IPv{family} connections on {where}"
        case RequestSample():
            return "sample"
        case ReadEndpoints():
            return "read endpoints"
        case _:
            return "wait"


def _of(token: int) -> str:
    return f" of {token:08x}"


def _flags(name: str | None) -> str:
    return name.lower().replace("|", ", ") if name else "no flags"
