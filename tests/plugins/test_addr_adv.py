# SPDX-License-Identifier: BSD-3-Clause
"""What addr_adv asks for first: an endpoint, unless the limit has no room for it."""

import pytest

from mptcpd_ebpf.config import plugin_loader
from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.commands import SetLimits
from mptcpd_ebpf.core.endpoints import Endpoint, EndpointFlag, Limits
from mptcpd_ebpf.core.engine import Engine
from tests.core.scenario import SECOND, START, StartedEngine

WIFI = ev.LinkChanged(if_index=3, name="wifi", up=True, running=True)
OURS = Endpoint(ip="10.0.1.1", address_id=1, flags=EndpointFlag.SUBFLOW, if_index=3, ours=True)


def address(ip: str) -> ev.LocalAddressChanged:
    return ev.LocalAddressChanged(if_index=3, ip=ip, prefix_len=24)


def table(subflows: int, *endpoints: Endpoint) -> ev.EndpointsRead:
    limits = Limits(subflows=subflows, add_addr_accepted=subflows)
    return ev.EndpointsRead(endpoints=list(endpoints), limits=limits)


def asked(engine: Engine, event: ev.Event) -> list[str]:
    outcome = engine.handle(event, START)
    assert not outcome.faults
    return [type(decision.command).__name__ for decision in outcome.decisions]


@pytest.fixture
def engine() -> Engine:
    """One address and its endpoint, and the limit that goes with them."""
    engine = StartedEngine(plugin_loader.load("addr_adv", None)())
    for event in (WIFI, address("10.0.1.1")):
        engine.handle(event, START)
    engine.handle(table(2), START)
    for number in (1, 2):
        engine.handle(ev.CommandAnswered(decision_id=number, errno=0), START + SECOND)
    engine.handle(table(3, OURS), START + SECOND)
    return engine


def test_an_endpoint_does_not_wait_for_a_limit_that_has_room(engine: Engine) -> None:
    assert asked(engine, address("10.0.1.2")) == ["AddEndpoint", "SetLimits"]


def test_a_limit_that_is_short_is_raised_before_the_endpoint(engine: Engine) -> None:
    assert asked(engine, table(1, OURS)) == []  # another program lowered it
    assert asked(engine, address("10.0.1.2")) == ["SetLimits", "AddEndpoint"]


@pytest.mark.parametrize("highest", [8, 64])
def test_a_limit_goes_as_far_as_the_kernel_lets_it(engine: Engine, highest: int) -> None:
    limits = Limits(subflows=3, add_addr_accepted=3)
    engine.handle(ev.EndpointsRead(endpoints=[OURS], limits=limits, highest_limit=highest), START)
    asked_for = []
    for number in range(2, 100):
        outcome = engine.handle(address(f"10.0.1.{number}"), START)
        asked_for += [d.command for d in outcome.decisions if isinstance(d.command, SetLimits)]
    assert max(command.subflows for command in asked_for) == highest
