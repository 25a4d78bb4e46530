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
    HeldBack,
    ProbePath,
    ReadEndpoints,
    RemoveEndpoint,
    RequestSample,
    SetBackup,
    SetLimits,
    SteerNewConnections,
    WithdrawAddress,
)


def decision(made: Decision) -> str:
    """``adaptive: destroy 10.0.1.1:4000 → 10.0.9.1:80 of 1a2b3c4d: nothing came back …``."""
    text = f"{made.plugin}: {action(made.command)}: {made.command.reason}"
    after = f" after {made.waited / 1e9:.1f} s" if made.waited else ""
    if made.refused:
        return f"{text} [not done{after}: {made.refused}]"
    return f"{text} [held back, sent{after}]" if after else text


def held_back(held: HeldBack) -> str:
    """Commands that wait, in one line for one second and path."""
    return (
        f"{held.plugin}: {held.count} commands on {held.path} held back: more than "
        f"{held.per_second} a second for which no measurement calls; {held.waiting} wait and are "
        "retried"
    )


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
