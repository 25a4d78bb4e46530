# SPDX-License-Identifier: BSD-3-Clause
"""Every command has a text of its own that names its connection, address or endpoint."""

from typing import Any, get_args

import pytest
from msgspec.structs import replace

from mptcpd_ebpf.control import describe
from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.commands import (
    AddEndpoint,
    AnnounceAddress,
    AnyCommand,
    Cause,
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
    WakeAt,
    WithdrawAddress,
)
from mptcpd_ebpf.core.endpoints import EndpointFlag
from mptcpd_ebpf.core.engine import DRY_RUN
from mptcpd_ebpf.core.roles import Role

TOKEN = 0x1A2B3C4D
NEAR, FAR = SockAddr("10.0.1.2", 4000), SockAddr("2001:db8::1", 80)
SUBFLOW: dict[str, Any] = {"token": TOKEN, "local": NEAR, "remote": FAR, "reason": "why"}
JOIN: dict[str, Any] = {"token": TOKEN, "local_ip": "10.0.1.2", "local_id": 3, "remote": FAR}
BOTH = EndpointFlag.SUBFLOW | EndpointFlag.BACKUP

PATH: dict[str, Any] = {"local_ip": "10.0.1.2", "remote_ip": "10.0.9.1", "reason": "silent"}

TEXTS: list[tuple[AnyCommand, str]] = [
    (CreateSubflow(**JOIN, reason=""), "create subflow 10.0.1.2 → [2001:db8::1]:80 of 1a2b3c4d"),
    (
        CreateSubflow(**JOIN, backup=True, reason=""),
        "create backup subflow 10.0.1.2 → [2001:db8::1]:80 of 1a2b3c4d",
    ),
    (DestroySubflow(**SUBFLOW), "destroy 10.0.1.2:4000 → [2001:db8::1]:80 of 1a2b3c4d"),
    (SetBackup(**SUBFLOW, backup=True), "demote 10.0.1.2:4000 → [2001:db8::1]:80 of 1a2b3c4d"),
    (SetBackup(**SUBFLOW, backup=False), "restore 10.0.1.2:4000 → [2001:db8::1]:80 of 1a2b3c4d"),
    (
        AnnounceAddress(token=TOKEN, ip="10.0.2.2", address_id=4, reason=""),
        "announce 10.0.2.2 as id 4 of 1a2b3c4d",
    ),
    (
        WithdrawAddress(token=TOKEN, address_id=4, reason=""),
        "withdraw address id 4 of 1a2b3c4d",
    ),
    (AddEndpoint(ip="10.0.2.2", flags=BOTH, reason=""), "add endpoint 10.0.2.2 (subflow, backup)"),
    (RemoveEndpoint(address_id=4, ip="10.0.2.2", reason=""), "remove endpoint 4 10.0.2.2"),
    (RemoveEndpoint(address_id=4, reason=""), "remove endpoint 4"),
    (
        ChangeEndpoint(address_id=4, ip="10.0.2.2", flags=EndpointFlag(0), reason=""),
        "change endpoint 4 to no flags",
    ),
    (FlushEndpoints(reason=""), "flush endpoints"),
    (
        SetLimits(subflows=3, add_addr_accepted=2, reason=""),
        "set limits to 3 subflows, 2 accepted addresses",
    ),
    (
        ReportPath(**PATH, state=Role.AWAY, interface="fibre", probes_needed=10),
        "fibre (10.0.1.2 → 10.0.9.1) is away",
    ),
    (
        ReportPath(**PATH, state=Role.AWAY, probes_answered=3, probes_needed=10, routine=True),
        "10.0.1.2 → 10.0.9.1 is away, 3 of 10 probes answered",
    ),
    (
        ReportPath(**PATH, state=Role.ACTIVE, interface="fibre", lasted=47_700_000_000),
        "fibre (10.0.1.2 → 10.0.9.1) is back after 47.7 s",
    ),
    (
        ReportPath(**PATH, state=None, lasted=47_700_000_000),
        "10.0.1.2 → 10.0.9.1 is not probed any more after 47.7 s",
    ),
    (RequestSample(reason=""), "sample"),
    (ReadEndpoints(reason=""), "read endpoints"),
    (
        SteerNewConnections(ipv6=False, local_ip="10.0.2.2", interface="lte", reason=""),
        "start new IPv4 connections on lte (10.0.2.2)",
    ),
    (
        SteerNewConnections(ipv6=True, reason=""),
        "start new IPv6 connections on the default route",
    ),
    (
        ProbePath(local_ip="10.0.1.2", remote=FAR, within=1, reason=""),
        "probe 10.0.1.2 → [2001:db8::1]:80 (small)",
    ),
    (
        ProbePath(local_ip="10.0.1.2", remote=FAR, within=1, full_size=True, reason=""),
        "probe 10.0.1.2 → [2001:db8::1]:80 (full-size)",
    ),
    (WakeAt(at=1, reason=""), "wait"),
]


@pytest.mark.parametrize(("command", "text"), TEXTS)
def test_the_text_of_a_command(command: AnyCommand, text: str) -> None:
    assert describe.action(command) == text


def test_every_command_has_a_text() -> None:
    assert {type(command) for command, _ in TEXTS} == set(get_args(AnyCommand))


def test_the_text_of_a_decision_has_author_reason_and_refusal() -> None:
    cause = Cause(seq=1, event="AlarmRaised", rule="alarm")
    made = Decision(id=1, at=0, plugin="adaptive", cause=cause, command=DestroySubflow(**SUBFLOW))
    text = "adaptive: destroy 10.0.1.2:4000 → [2001:db8::1]:80 of 1a2b3c4d: why"
    assert describe.decision(made) == text
    refused = replace(made, refused="the last one")
    assert describe.decision(refused) == f"{text} [not done: the last one]"
    rehearsed = replace(made, refused=DRY_RUN)
    assert describe.decision(rehearsed) == (
        "dry run: adaptive would destroy 10.0.1.2:4000 → [2001:db8::1]:80 of 1a2b3c4d: why"
    )
    late = replace(made, waited=1_500_000_000)
    assert describe.decision(late) == f"{text} [held back, sent after 1.5 s]"
    void = replace(late, refused="the subflow is gone")
    assert describe.decision(void) == f"{text} [not done after 1.5 s: the subflow is gone]"


def test_commands_that_wait_have_a_text() -> None:
    held = HeldBack(plugin="p", path="wan0 (a → b)", count=247, waiting=300, per_second=10)
    assert describe.held_back(held) == (
        "p: 247 commands on wan0 (a → b) held back: more than 10 a second for which no "
        "measurement calls; 300 wait and are retried"
    )
