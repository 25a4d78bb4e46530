# SPDX-License-Identifier: BSD-3-Clause
"""A resynchronisation is applied as a difference, regardless of the earlier events."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.measurement import Measurement
from mptcpd_ebpf.core.model import State
from mptcpd_ebpf.core.pairing import GRACE
from mptcpd_ebpf.core.tracker import Tracker
from tests.core.scenario import (
    FIBRE,
    RADIO,
    START,
    TCP_CLOSE,
    TCP_ESTABLISHED,
    TCP_SYN_SENT,
    TOKEN,
    Listener,
    created,
    ended,
    established,
    joined,
    left,
    leftovers,
    measured,
    truth,
)
from tests.core.storms import EVENTS, LOCALS


def live(key: Any = FIBRE, at: int = START, **more: Any) -> Measurement:
    return measured(key, at, **({"state": TCP_ESTABLISHED} | more))


def test_into_an_empty_model() -> None:
    net = Listener()
    told = net.tell(truth(live(initial=True, local_id=0), live(RADIO, local_id=4, backup=True)))
    assert told == ["new_connection", "connection_established"]
    assert net.connection.state is State.ESTABLISHED
    assert net.connection.local_ids == {"10.0.2.2": 4}
    assert (net.subflow(FIBRE).initial, net.subflow(RADIO).backup) == (True, True)


def test_a_known_state_gives_no_notice() -> None:
    net = Listener(created(), established(), joined())
    assert net.tell(truth(live(), live(RADIO))) == []


def test_it_reports_what_was_added_and_removed() -> None:
    net = Listener(created(), established(), joined())
    other = ev.LiveConnection(token=7, local=RADIO[0], remote=RADIO[1])
    first = ev.LiveConnection(token=TOKEN, local=FIBRE[0], remote=FIBRE[1])
    told = net.tell(truth(live(), live(RADIO, token=7), connections=[first, other]))
    assert told == ["subflow_closed", "new_connection", "connection_established"]
    # Netlink's event about a closed subflow can still be pending.
    assert net.tell(left()) == []


def test_a_lost_join_is_reported() -> None:
    net = Listener(created(), established())
    assert net.tell(truth(live(), live(RADIO))) == ["new_subflow"]


def test_a_lost_establishment_is_reported() -> None:
    net = Listener(created())
    assert net.tell(truth(live())) == ["connection_established"]
    assert net.tell(established()) == []


def test_a_join_whose_success_was_lost_is_established() -> None:
    net = Listener(created(), established())
    net.tell(ev.Sampled(measurements=[live(RADIO, state=TCP_SYN_SENT)]))
    assert net.tell(truth(live(), live(RADIO, START + 1))) == ["new_subflow"]
    assert net.subflow(RADIO).usable
    # …and no longer one that a sample may find missing.
    net.tell(ev.Sampled(measurements=[]))
    assert net.subflow(RADIO).usable


def test_a_join_under_way_is_found_opening() -> None:
    net = Listener(created(), established())
    assert net.tell(truth(live(), live(RADIO, state=TCP_SYN_SENT))) == []
    assert net.subflow(RADIO).state is State.OPENING
    assert net.tell(joined()) == ["new_subflow"]


def test_a_token_that_another_connection_has_now() -> None:
    net = Listener(created(), established())
    now = [ev.LiveConnection(token=TOKEN, local=RADIO[0], remote=RADIO[1])]
    assert net.tell(truth(live(RADIO), connections=now)) == [
        "subflow_closed",
        "connection_closed",
        "new_connection",
        "connection_established",
    ]


def test_closed_sockets_are_not_live() -> None:
    net = Listener(created(), established(), joined())
    told = net.tell(truth(live(), live(RADIO, state=TCP_CLOSE, closed=True)))
    assert told == ["subflow_closed"]


def test_a_subflow_that_was_replaced_during_the_loss_is_a_new_one() -> None:
    net = Listener(created(), established(), joined())
    net.tell(ended(at=START + 1))
    assert net.tell(truth(live(), live(RADIO, START + 2))) == [
        "subflow_closed",
        "SubflowFinal",
        "new_subflow",
    ]
    assert net.subflow(RADIO).usable


def test_an_open_subflow_has_no_error() -> None:
    net = Listener(created(), established(), joined(error=104))
    assert net.tell(truth(live(), live(RADIO))) == []
    assert net.subflow(RADIO).usable


@pytest.mark.parametrize("at", [START + 1, START + 2])
def test_a_final_record_newer_than_the_reading_is_kept(at: int) -> None:
    net = Listener(created(), established(), joined())
    net.tell(ended(at=at))
    assert net.tell(truth(live(), live(RADIO, START + 1))) == []
    assert not net.subflow(RADIO).usable
    assert net.wait(GRACE) == ["subflow_closed", "SubflowFinal"]


@given(st.lists(EVENTS, max_size=60), st.lists(LOCALS, unique=True))
def test_from_any_state_it_ends_as_from_none(events: list[ev.Event], present: list[Any]) -> None:
    """Existence, state and network; values that need earlier events may differ."""
    now = START + 1_000_000
    last = truth(
        *[live((local, FIBRE[1]), now, token=1, local_id=1) for local in present],
        connections=[ev.LiveConnection(token=1, local=FIBRE[0], remote=FIBRE[1])],
        links=[ev.LinkChanged(if_index=2, name="wan0", up=True, running=True)],
    )
    stormy, calm = Tracker(), Tracker()
    for event in events:
        stormy.apply(event, START)
        stormy.expire(START)
    for tracker in (stormy, calm):
        tracker.apply(last, now)
        tracker.expire(now + 3 * GRACE)
    assert _existence(stormy) == _existence(calm)
    assert {name: n for name, n in leftovers(stormy).items() if "world" not in name} in (
        {},
        {"_buried": 1},
    )


def _existence(tracker: Tracker) -> Any:
    world = tracker.world
    return (
        {
            token: (c.local, c.remote, c.state, {k: s.state for k, s in c.subflows.items()}.items())
            for token, c in world.connections.items()
        },
        world.links,
        world.addresses,
        world.routes,
    )
