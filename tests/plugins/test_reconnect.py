# SPDX-License-Identifier: BSD-3-Clause
"""`reconnect`: a silent subflow is replaced by a successor, and the successor is kept."""

import pytest

from mptcpd_ebpf.config.plugin_loader import load
from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.commands import Command, CreateSubflow, DestroySubflow
from mptcpd_ebpf.core.measurement import AlarmKind
from mptcpd_ebpf.core.model import SECOND
from tests.core.scenario import (
    FIBRE,
    RADIO,
    SERVER,
    START,
    StartedEngine,
    alarm,
    connect,
    joined,
    left,
    measured,
)

SUCCESSOR = (SockAddr(RADIO[0].ip, 40012), SERVER)


class Scene:
    """A connection over fibre and radio; the radio subflow is silent and was abandoned."""

    def __init__(self) -> None:
        plugin = load("reconnect")
        self.engine = StartedEngine(plugin(plugin.Options()), default_plugin="reconnect")
        self.now = START
        for number, key in enumerate((FIBRE, RADIO), start=1):
            link = ev.LinkChanged(if_index=number, name=f"if{number}", up=True, running=True)
            self.engine.handle(link, START)
            address = ev.LocalAddressChanged(if_index=number, ip=key[0].ip, prefix_len=24)
            self.engine.handle(address, START)
            self.engine.handle(ev.DefaultRouteAdded(if_index=number, ipv6=False), START)
        connect(self.engine, RADIO)
        silent = measured(RADIO, self.now, timeouts=2)
        (trial,) = self.tell(alarm(silent, AlarmKind.TIMEOUTS))
        assert isinstance(trial, CreateSubflow)
        (end,) = self.tell(joined(SUCCESSOR))
        assert isinstance(end, DestroySubflow)
        assert (end.local, end.remote) == RADIO
        assert self.tell(left(RADIO)) == []

    def tell(self, event: ev.Event) -> list[Command]:
        outcome = self.engine.handle(event, self.now)
        assert not outcome.faults
        return [decision.command for decision in outcome.decisions]

    def wait(self, nanoseconds: int) -> list[Command]:
        self.now += nanoseconds
        return self.tell(ev.Tick())


@pytest.mark.parametrize("reason", [None, 3])
def test_a_successor_that_the_peer_took_back_is_tried_again(reason: int | None) -> None:
    """Even if it calls it prohibited: at its limit, it may have room now."""
    scene = Scene()
    assert scene.tell(left(SUCCESSOR, reset_reason=reason)) == []
    for port in range(40020, 40023):
        (again,) = scene.wait(10 * SECOND)
        assert isinstance(again, CreateSubflow)
        assert again.local_ip == RADIO[0].ip
        key = (SockAddr(RADIO[0].ip, port), SERVER)
        assert scene.tell(joined(key)) == []
        assert scene.tell(left(key, reset_reason=reason)) == []


def test_a_successor_that_lived_and_was_closed_in_order_is_not_lost() -> None:
    scene = Scene()
    assert scene.wait(60 * SECOND) == []
    assert scene.tell(left(SUCCESSOR)) == []
    assert scene.wait(60 * SECOND) == []


def test_what_the_peer_prohibits_later_is_left_alone() -> None:
    scene = Scene()
    assert scene.wait(60 * SECOND) == []
    assert scene.tell(left(SUCCESSOR, reset_reason=3)) == []
    assert scene.wait(60 * SECOND) == []
