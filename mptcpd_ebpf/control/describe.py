# SPDX-License-Identifier: BSD-3-Clause
"""Decisions and commands as one line of text, for the log and the terminal."""

import re
from collections.abc import Hashable

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
    ReportPath,
    RequestSample,
    SetBackup,
    SetLimits,
    SteerNewConnections,
    WithdrawAddress,
)
from mptcpd_ebpf.core.engine import DRY_RUN
from mptcpd_ebpf.core.roles import Role


def decision(made: Decision) -> str:
    """``adaptive: destroy 10.0.1.1:4000 → 10.0.9.1:80 of 1a2b3c4d: nothing came back …``."""
    if made.refused == DRY_RUN:
        return f"dry run: {made.plugin} would {action(made.command)}: {made.command.reason}"
    text = f"{made.plugin}: {action(made.command)}: {made.command.reason}"
    after = f" after {made.waited / 1e9:.1f} s" if made.waited else ""
    if made.refused:
        return f"{text} [not done{after}: {made.refused}]"
    return f"{text} [held back, sent{after}]" if after else text


def decisions(first: Decision, count: int) -> str:
    """`count` decisions of one `kind`, with the first of them as the example."""
    text = f"{first.plugin}: {actions(first.command, count)}: {first.command.reason}"
    return f"{text} [not done: {first.refused}]" if first.refused else text


def kind(made: Decision) -> Hashable:
    """Equal for decisions that differ only in their connection and in numbers."""
    command = made.command
    texts = (_without_numbers(command.reason), _without_numbers(made.refused or ""))
    return (made.plugin, type(command), _what(command), texts)


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
        case ReportPath():
            return path_state(command)
        case RequestSample():
            return "sample"
        case ReadEndpoints():
            return "read endpoints"
        case _:
            return "wait"


def path_state(report: ReportPath) -> str:
    """``fibre (10.0.1.2 → 10.0.9.1) is away, probe 3 of 10``."""
    path = f"{report.local_ip} → {report.remote_ip}"
    name = f"{report.interface} ({path})" if report.interface else path
    if report.state is None:
        return f"{name} is not probed any more after {report.lasted / 1e9:.1f} s"
    if report.state is Role.ACTIVE:
        return f"{name} is back after {report.lasted / 1e9:.1f} s"
    if report.routine:
        probes = f"{report.probes_answered} of {report.probes_needed} probes answered"
        return f"{name} is {report.state}, {probes}"
    return f"{name} is {report.state}"


def actions(command: AnyCommand, count: int) -> str:
    """What `count` commands of one kind do; `command` is the first of them."""
    token = getattr(command, "token", None)
    first = f" (first: {token:08x})" if token is not None else ""
    return f"{_what(command).format(count=count)}{first}"


def _what(command: AnyCommand) -> str:
    """What commands of one kind do, with `{count}` for their number."""
    match command:
        case CreateSubflow():
            kind = "backup subflows" if command.backup else "subflows"
            return f"create {{count}} more {kind} {command.local_ip} → {command.remote}"
        case DestroySubflow():
            return f"destroy {{count}} more subflows {command.local.ip} → {command.remote.ip}"
        case SetBackup():
            verb = "demote" if command.backup else "restore"
            return f"{verb} {{count}} more subflows {command.local.ip} → {command.remote.ip}"
        case AnnounceAddress():
            return f"announce {command.ip} to {{count}} more connections"
        case WithdrawAddress():
            return f"withdraw address id {command.address_id} of {{count}} more connections"
        case _:
            return f"{action(command)}, {{count}} more times"


def _without_numbers(text: str) -> str:
    return re.sub(r"\d[\d.]*", "#", text)


def _of(token: int) -> str:
    return f" of {token:08x}"


def _flags(name: str | None) -> str:
    return name.lower().replace("|", ", ") if name else "no flags"
