# SPDX-License-Identifier: BSD-3-Clause
"""A missing subflow is joined once, retried after growing pauses, and never in a loop."""

import errno
from collections.abc import Iterable
from itertools import pairwise

import pytest

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.commands import Command, CreateSubflow, DestroySubflow
from mptcpd_ebpf.core.engine import Outcome
from mptcpd_ebpf.core.joining_plugin import JoiningPlugin
from mptcpd_ebpf.core.model import MS, SECOND, Connection
from mptcpd_ebpf.core.plugin import Context
from mptcpd_ebpf.core.reconciler import ANSWER_WITHIN, ROUTE_WITHIN, SHORT_LIFE, Want
from mptcpd_ebpf.core.serving import Rule
from tests.core.scenario import (
    FIBRE,
    RADIO,
    SATELLITE,
    SERVER,
    START,
    TCP_SYN_SENT,
    TOKEN,
    StartedEngine,
    created,
    established,
    gone,
    joined,
    left,
    leftovers,
    measured,
    truth,
)


class Two(JoiningPlugin):
    """Requests one subflow from the radio, or `number`."""

    name = "two"
    number = 1

    def wants(self, ctx: Context, connection: Connection) -> Iterable[Want]:
        if any(address.ip == RADIO[0].ip for address in ctx.world.usable_addresses()):
            yield Want(RADIO[0].ip, SERVER, "it is missing", number=self.number)


class Changed(Two):
    """The same from a file that was edited."""


class Scene:
    """An engine with that plugin, a clock, and the commands to the kernel."""

    def __init__(self, number: int = 1) -> None:
        self.plugin = Two()
        self.plugin.number = number
        self.engine = StartedEngine(self.plugin, default_plugin="two")
        self.now = START
        self.asked: list[Command] = []
        self.tell(
            ev.LinkChanged(if_index=3, name="radio", up=True, running=True),
            ev.LocalAddressChanged(if_index=3, ip=RADIO[0].ip, prefix_len=24),
            ev.DefaultRouteAdded(if_index=3, ipv6=False),
            created(),
            established(),
        )

    def tell(self, *events: ev.Event) -> None:
        for event in events:
            self._take(self.engine.handle(event, self.now))

    def _take(self, outcome: Outcome) -> None:
        assert not outcome.faults
        for decision in outcome.decisions:
            self.asked.append(decision.command)
            if isinstance(decision.command, CreateSubflow | DestroySubflow):
                self.tell(ev.CommandAnswered(decision_id=decision.id, errno=self.errno))

    errno = 0
    edited = False

    def reload(self) -> None:
        """The plugin's file was edited: it is created again from the model."""
        number, self.plugin = self.plugin.number, Two() if self.edited else Changed()
        self.edited = not self.edited
        self.plugin.number = number
        self._take(self.engine.configure(self.plugin, default_plugin="two", now=self.now))

    def wait(self, nanoseconds: int) -> None:
        until = self.now + nanoseconds
        while (deadline := self.engine.deadline) is not None and deadline <= until:
            self.now = max(self.now, deadline)
            self.tell(ev.Tick())
        self.now = until

    @property
    def joins(self) -> int:
        return sum(isinstance(command, CreateSubflow) for command in self.asked)


def test_a_missing_subflow_is_joined_once() -> None:
    scene = Scene()
    assert scene.joins == 1
    scene.tell(ev.LinkChanged(if_index=4, name="other", up=True, running=True))
    scene.tell(ev.LocalAddressChanged(if_index=4, ip="10.0.7.1", prefix_len=24))
    assert scene.joins == 1, "one is under way"
    scene.tell(joined())
    scene.wait(60 * SECOND)
    assert scene.joins == 1, "it is there"


def test_as_many_joins_as_requested() -> None:
    scene = Scene(number=3)
    assert scene.joins == 3
    scene.tell(joined())
    scene.wait(100 * MS)
    assert scene.joins == 3


def test_before_the_connection_is_established_nothing_is_joined() -> None:
    scene = Scene()
    scene.asked.clear()
    scene.tell(gone(), created())
    assert scene.joins == 0


@pytest.mark.parametrize("refused", [True, False], ids=["refused", "reset"])
def test_pauses_double_with_each_failure_and_have_an_end(refused: bool) -> None:
    scene = Scene()
    scene.errno = 101 if refused else 0
    if refused:
        scene.tell(left(error=104))
    tries = []
    for _ in range(12):
        if not refused:
            scene.tell(left(error=104))
        before = scene.joins
        since = scene.now
        while scene.joins == before:
            scene.wait(50 * MS)
        tries.append(scene.now - since)
    for earlier, later in pairwise(tries[:7]):
        assert 1.4 * earlier < later < 2.9 * earlier
    assert all(pause <= 61 * SECOND for pause in tries)
    assert tries[-1] > 40 * SECOND


def test_a_subflow_that_was_established_is_replaced_soon() -> None:
    scene = Scene()
    scene.tell(left(error=104), left(error=104))
    scene.wait(SECOND)
    scene.tell(joined())
    scene.wait(SHORT_LIFE)
    before = scene.joins
    scene.tell(left(error=110))
    scene.wait(600 * MS)
    assert scene.joins == before + 1


def test_an_unanswered_join_is_abandoned_and_retried() -> None:
    scene = Scene()
    opening = measured(RADIO, scene.now, state=TCP_SYN_SENT)
    scene.wait(ANSWER_WITHIN)
    scene.tell(ev.Sampled(measurements=[measured(), opening]))
    (destroyed,) = [c for c in scene.asked if isinstance(c, DestroySubflow)]
    assert (destroyed.local, destroyed.remote) == RADIO
    scene.tell(left())
    scene.wait(SECOND)
    assert scene.joins == 2


@pytest.mark.parametrize("number", [1, 3])
def test_a_pending_join_survives_a_reload(number: int) -> None:
    scene = Scene(number)
    for _ in range(3):
        scene.reload()
    assert scene.joins == number, "nothing twice"
    for port in range(number):
        scene.tell(joined((SockAddr(RADIO[0].ip, 5000 + port), SERVER)))
    scene.wait(60 * SECOND)
    assert scene.joins == number


def test_an_unanswered_join_from_before_a_reload_is_retried() -> None:
    scene = Scene()
    opening = measured(RADIO, scene.now, state=TCP_SYN_SENT)
    scene.reload()
    scene.wait(ANSWER_WITHIN)
    scene.tell(ev.Sampled(measurements=[measured(), opening]))
    assert any(isinstance(command, DestroySubflow) for command in scene.asked)
    scene.tell(left())
    scene.reload()
    assert scene.joins == 2, "what failed is not under way"


def test_the_end_of_another_subflow_is_not_that_of_the_join_beside_it() -> None:
    scene = Scene()
    scene.tell(joined())
    scene.plugin.number = 2
    scene.reload()
    assert scene.joins == 2, "one stands, another is under way beside it"
    scene.tell(left(error=110))
    scene.wait(SECOND)
    assert scene.joins == 3, "in the place of the one that ended; the other is awaited still"


def test_what_we_destroyed_is_no_failure() -> None:
    scene = Scene()
    scene.tell(joined())
    scene.tell(ev.LinkChanged(if_index=3, name="radio", up=True, running=False))
    assert any(isinstance(command, DestroySubflow) for command in scene.asked)
    before = scene.joins
    scene.tell(left())
    scene.tell(ev.LinkChanged(if_index=3, name="radio", up=True, running=True))
    assert scene.joins == before + 1


def test_a_closed_connection_leaves_nothing_behind() -> None:
    scene = Scene(number=2)
    scene.tell(joined(), left(error=104), gone())
    assert not {name for name in leftovers(scene.plugin.reconciler) if "_ids" not in name}


def test_a_connection_that_is_not_established_after_all_waits_until_it_is() -> None:
    """A subflow that existed at the start and has carried no data."""
    scene = Scene()
    scene.errno = errno.ENOTCONN
    found = truth(
        measured(initial=True, token=7),
        connections=[ev.LiveConnection(token=7, local=FIBRE[0], remote=FIBRE[1])],
        links=[ev.LinkChanged(if_index=3, name="radio", up=True, running=True)],
        addresses=[ev.LocalAddressChanged(if_index=3, ip=RADIO[0].ip, prefix_len=24)],
    )
    scene.tell(found)
    scene.wait(1000 * SECOND)
    assert scene.joins == 2
    scene.errno = 0
    scene.tell(established(7))
    assert scene.joins == 3


# --- manual commands

DESTROY = DestroySubflow(token=TOKEN, local=RADIO[0], remote=RADIO[1], reason="by hand")
CREATE = CreateSubflow(
    token=TOKEN, local_ip=RADIO[0].ip, local_id=1, remote=SERVER, reason="by hand"
)


@pytest.mark.parametrize("occasion", ["the address comes back", "a reload", "he makes it"])
def test_a_manually_destroyed_subflow_is_not_replaced_until(occasion: str) -> None:
    scene = Scene()
    scene.tell(joined(local_id=1, remote_id=0), ev.CommandAsked(command=DESTROY), left())
    scene.wait(1000 * SECOND)
    scene.tell(ev.DefaultRouteAdded(if_index=3, ipv6=False))
    assert scene.joins == 1
    if occasion == "the address comes back":
        scene.tell(ev.LocalAddressRemoved(if_index=3, ip=RADIO[0].ip))
        scene.tell(ev.LocalAddressChanged(if_index=3, ip=RADIO[0].ip, prefix_len=24))
    elif occasion == "a reload":
        scene.engine.configure(Two(), default_plugin="two", now=scene.now)
        scene.tell(ev.DefaultRouteRemoved(if_index=3, ipv6=False))
        scene.wait(ANSWER_WITHIN + SECOND)
    else:
        scene.tell(ev.CommandAsked(command=CREATE), joined(local_id=1, remote_id=0))
        assert scene.joins == 2, "his own"
        scene.wait(SHORT_LIFE)
        scene.tell(left(error=104))
        scene.wait(SECOND)
        assert scene.joins == 3
        return
    assert scene.joins == 2


def test_one_fewer_is_joined_for_each_manually_destroyed_subflow() -> None:
    scene = Scene(number=2)
    other = (RADIO[0]._replace(port=40_009), RADIO[1])
    scene.tell(joined(local_id=1, remote_id=0), joined(other, local_id=1, remote_id=0))
    scene.tell(ev.CommandAsked(command=DESTROY), left())
    scene.wait(SHORT_LIFE)
    assert scene.joins == 2
    scene.tell(left(other, error=104))
    scene.wait(SECOND)
    assert scene.joins == 3


def test_nothing_is_kept_of_connections_of_others() -> None:
    scene = Scene()
    rules = [Rule(plugin=None, local=SATELLITE[0].ip)]
    scene.engine.configure(scene.plugin, rules=rules, default_plugin="two", now=scene.now)
    destroy = DestroySubflow(token=7, local=RADIO[0], remote=RADIO[1], reason="manual")
    scene.tell(created(7, SATELLITE), established(7, SATELLITE), joined(token=7))
    scene.tell(ev.CommandAsked(command=destroy))
    scene.tell(left(token=7), gone(7), gone())
    assert not {name for name in leftovers(scene.plugin.reconciler) if "_ids" not in name}


# --- routes


def without_route() -> Scene:
    """An established connection, and a second address that has just come without a route."""
    scene = Scene()
    scene.tell(joined(), ev.LocalAddressRemoved(if_index=3, ip=RADIO[0].ip), left())
    scene.tell(ev.DefaultRouteRemoved(if_index=3, ipv6=False))
    scene.tell(ev.LocalAddressChanged(if_index=3, ip=RADIO[0].ip, prefix_len=24))
    return scene


def test_a_new_address_waits_for_its_route() -> None:
    scene = without_route()
    before = scene.joins
    scene.wait(ROUTE_WITHIN // 2)
    assert scene.joins == before
    scene.tell(ev.DefaultRouteAdded(if_index=3, ipv6=False))
    assert scene.joins == before + 1


def test_without_a_route_it_is_joined_after_a_while_and_again_when_the_route_comes() -> None:
    scene = without_route()
    before = scene.joins
    scene.wait(ROUTE_WITHIN + SECOND)
    assert scene.joins == before + 1
    scene.tell(ev.DefaultRouteAdded(if_index=3, ipv6=False))
    assert scene.joins == before + 2, "the first may have left by another interface"
    scene.tell(ev.DefaultRouteAdded(if_index=3, ipv6=False, table=100))
    assert scene.joins == before + 2
