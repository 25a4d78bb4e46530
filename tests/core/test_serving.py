# SPDX-License-Identifier: BSD-3-Clause
"""The plugin of a connection: that of the first rule that matches, once its conditions are
known."""

from typing import Any

import pytest

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.commands import RequestSample
from mptcpd_ebpf.core.measurement import Owner
from mptcpd_ebpf.core.model import Connection
from mptcpd_ebpf.core.plugin import Commands, Context, Plugin
from mptcpd_ebpf.core.serving import Rule
from tests.core.scenario import (
    FIBRE,
    START,
    TOKEN,
    StartedEngine,
    created,
    established,
    measured,
    truth,
)

OWNER = Owner(pid=7, comm="backupd", uid=1000, cgroup_path="/system.slice/backup.service")


class Told(Plugin):
    """Records its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def new_connection(self, ctx: Context, connection: Connection) -> Commands:
        self.heard.append("new")
        return ()

    def connection_established(self, ctx: Context, connection: Connection) -> Commands:
        self.heard.append("established")
        return ()


class Default(Told):
    name = "default"


class Special(Told):
    name = "special"


def engine(*rules: Rule) -> tuple[StartedEngine, Default, Special]:
    default, special = Default(), Special()
    made = StartedEngine()
    made.handle(
        truth(
            connections=[],
            links=[ev.LinkChanged(if_index=2, name="eth0", up=True, running=True)],
            addresses=[ev.LocalAddressChanged(if_index=2, ip=FIBRE[0].ip, prefix_len=24)],
        ),
        START,
    )
    made.configure(default, special, rules=list(rules), default_plugin="default")
    return made, default, special


@pytest.mark.parametrize(
    ("conditions", "fits"),
    [
        ({}, True),
        ({"remote": "10.0.9.1"}, True),
        ({"remote": "10.0.9.0/24", "remote_port": 443}, True),
        ({"remote": "10.0.8.0/24"}, False),
        ({"remote": "2001:db8::/32"}, False),
        ({"remote_port": [80, 443]}, True),
        ({"remote_port": 80}, False),
        ({"local": "10.0.1.0/24"}, True),
        ({"local_port": 40001}, True),
        ({"local_port": 1}, False),
        ({"interface": "eth*"}, True),
        ({"interface": "wlan*"}, False),
        ({"server_side": False}, True),
        ({"server_side": True}, False),
        ({"remote": "10.0.9.1", "server_side": True}, False),
    ],
)
def test_a_rule_fits_if_all_it_names_holds(conditions: dict[str, Any], fits: bool) -> None:
    made, default, special = engine(Rule(plugin="special", **conditions))
    made.handle(created(), START)
    assert made.plugin_of(TOKEN) == ("special" if fits else "default")
    assert special.heard == ["new"] * fits
    assert default.heard == ["new"] * (not fits)


def test_the_first_rule_wins_and_none_leaves_it_to_the_kernel() -> None:
    made, default, special = engine(
        Rule(plugin=None, remote_port=443), Rule(plugin="special", remote="10.0.9.1")
    )
    made.handle(created(), START)
    made.handle(established(), START)
    assert made.plugin_of(TOKEN) is None
    assert default.heard == special.heard == []


@pytest.mark.parametrize(
    ("conditions", "fits"),
    [
        ({"uid": 1000}, True),
        ({"uid": 0}, False),
        ({"command": "backup*"}, True),
        ({"command": "firefox"}, False),
        ({"cgroup": "/system.slice/*"}, True),
        ({"cgroup": "/user.slice/*"}, False),
        ({"uid": 1000, "command": "firefox"}, False),
    ],
)
def test_the_owner_is_looked_up_before_rules_are_matched(
    conditions: dict[str, Any], fits: bool
) -> None:
    made, default, special = engine(Rule(plugin="special", **conditions))
    (decision,) = made.handle(created(), START).decisions
    assert isinstance(decision.command, RequestSample)
    assert decision.command.with_owners
    made.handle(established(), START)
    # A sample of another connection, without owners, changes nothing.
    made.handle(ev.Sampled(measurements=[measured()]), START)
    assert default.heard == special.heard == []
    made.handle(ev.Sampled(measurements=[measured(owner=OWNER)], with_owners=True), START)
    served, other = (special, default) if fits else (default, special)
    assert served.heard == ["new", "established"]
    assert other.heard == []


def test_an_unknown_owner_matches_no_rule() -> None:
    made, default, special = engine(Rule(plugin="special", uid=0))
    made.handle(created(), START)
    made.handle(ev.Sampled(measurements=[], with_owners=True), START)
    assert (default.heard, special.heard) == (["new"], [])


def test_a_rule_without_owner_needs_no_lookup() -> None:
    made, _, _ = engine(Rule(plugin="special", uid=0, remote_port=80))
    assert made.handle(created(), START).decisions == []
    assert made.plugin_of(TOKEN) == "default"


def test_a_connection_that_closes_undecided_is_forgotten() -> None:
    made, default, special = engine(Rule(plugin="special", uid=1000))
    made.handle(created(), START)
    made.handle(ev.ConnectionClosed(token=TOKEN), START)
    made.handle(ev.Sampled(measurements=[], with_owners=True), START)
    assert default.heard == special.heard == []


def test_open_connections_are_assigned_again_at_a_reload() -> None:
    made, default, special = engine()
    made.handle(created(), START)
    rules = [Rule(plugin="special", uid=1000)]
    outcome = made.configure(default, special, rules=rules, default_plugin="default")
    assert [
        d.command.with_owners for d in outcome.decisions if isinstance(d.command, RequestSample)
    ]
    made.handle(ev.Sampled(measurements=[measured(owner=OWNER)], with_owners=True), START)
    assert made.plugin_of(TOKEN) == "special"
