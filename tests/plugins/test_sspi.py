# SPDX-License-Identifier: BSD-3-Clause
"""sspi on a server: an announcement that the kernel refused was none."""

import errno

from mptcpd_ebpf.config.plugin_loader import load
from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.commands import AnnounceAddress, DestroySubflow, WithdrawAddress
from mptcpd_ebpf.core.engine import Engine, Outcome
from tests.core.scenario import FIBRE, RADIO, START, StartedEngine, created, established, joined


def link(number: int, *, running: bool = True) -> ev.LinkChanged:
    return ev.LinkChanged(if_index=number, name=f"wan{number}", up=True, running=running)


def kinds(outcome: Outcome) -> list[type]:
    return [type(decision.command) for decision in outcome.decisions]


def server() -> tuple[Engine, Outcome]:
    """Two interfaces, a connection on the first, and the outcome."""
    engine = StartedEngine(load("sspi")(), default_plugin="sspi")
    for number, (local, _) in enumerate((FIBRE, RADIO), start=1):
        engine.handle(link(number), START)
        engine.handle(ev.LocalAddressChanged(if_index=number, ip=local.ip, prefix_len=24), START)
    engine.handle(created(server_side=True), START)
    return engine, engine.handle(established(server_side=True), START)


def test_a_refused_announcement_is_made_again_at_the_next_occasion() -> None:
    engine, outcome = server()
    assert kinds(outcome) == [AnnounceAddress]
    number = outcome.decisions[0].id
    engine.handle(ev.CommandAnswered(decision_id=number, errno=errno.EINVAL), START)
    route = ev.DefaultRouteAdded(if_index=2, ipv6=False)
    outcome = engine.handle(route, START)
    assert kinds(outcome) == [AnnounceAddress]
    engine.handle(ev.CommandAnswered(decision_id=outcome.decisions[0].id), START)
    assert kinds(engine.handle(ev.DefaultRouteRemoved(if_index=2, ipv6=False), START)) == []
    assert kinds(engine.handle(route, START)) == []


def test_what_one_before_us_announced_is_withdrawn_too_and_first() -> None:
    """The kernel removes an address id when its subflow is destroyed."""
    engine, _ = server()
    engine.handle(joined(local_id=1, remote_id=0), START)
    for event in (ev.Paused(), ev.Resumed()):
        engine.handle(event, START)  # it starts again from the open connections
    outcome = engine.handle(link(2, running=False), START)
    assert kinds(outcome) == [WithdrawAddress, DestroySubflow]
    assert kinds(engine.handle(link(2), START)) == []  # the subflow is still there
