# SPDX-License-Identifier: BSD-3-Clause
"""Netlink and the probes, each in its own order: every interleaving ends in the same model."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.measurement import Owner
from mptcpd_ebpf.core.model import SubflowKey
from mptcpd_ebpf.core.pairing import GRACE
from tests.core.scenario import (
    FIBRE,
    RADIO,
    SATELLITE,
    START,
    TCP_CLOSE,
    TCP_ESTABLISHED,
    Listener,
    alarm,
    created,
    established,
    gone,
    joined,
    left,
    measured,
    picture,
)


class Life(NamedTuple):
    """The events of netlink and of the probes about one connection, each in its order."""

    netlink: list[ev.Event]
    probes: list[ev.Event]
    subflows: int
    """How many there were, joins that failed included."""


@st.composite
def lives(draw: st.DrawFn) -> Life:
    """A connection: joins, failed joins, reused addresses, losses of either source's final
    record."""
    netlink: list[ev.Event] = [created(), established()]
    probes: list[ev.Event] = []
    clock = START
    with_cookies = draw(st.booleans())
    cookie = 0

    def measure(key: SubflowKey, **more: Any) -> ev.Event:
        nonlocal clock
        clock += 1
        numbers: dict[str, Any] = {
            "srtt_us": draw(st.integers(1, 9)),
            "stalled_us": clock - START,
            "connection_bytes_acked": clock - START,
            "owner": Owner(pid=77),
            "cookie": cookie if with_cookies else None,
        }
        if more.get("closed"):
            return ev.SubflowEnded(measurement=measured(key, clock, **numbers, **more))
        if draw(st.booleans()):
            return alarm(measured(key, clock, **numbers))
        found = measured(key, clock, state=TCP_ESTABLISHED, **numbers)
        return ev.Sampled(measurements=[found])

    def live_and_die(key: SubflowKey) -> None:
        nonlocal cookie
        cookie += 1
        if draw(st.integers(0, 3)):
            netlink.append(joined(key, local_id=cookie))
        probes.extend(measure(key) for _ in range(draw(st.integers(0, 2))))
        probes.append(measure(key, closed=True, state=TCP_CLOSE))
        netlink.append(left(key, error=cookie))

    for key in draw(st.lists(st.sampled_from([RADIO, SATELLITE]), max_size=4)):
        live_and_die(key)
    alive = draw(st.lists(st.sampled_from([RADIO, SATELLITE]), unique=True))
    for key in alive:
        cookie += 1
        netlink.append(joined(key, local_id=cookie))
        probes.extend(measure(key) for _ in range(draw(st.integers(0, 2))))
    if draw(st.booleans()):
        netlink.append(gone())
        probes += [measure(key, closed=True) for key in [*alive, FIBRE] if draw(st.booleans())]
    return Life(netlink, probes, 1 + cookie)


def end_of(events: Sequence[ev.Event]) -> tuple[Any, Counter[str]]:
    net = Listener(*events)
    net.wait(GRACE)
    net.wait(GRACE)
    return picture(net.tracker), Counter(repr(final) for final in net.finals)


@given(lives(), st.data())
def test_every_interleaving_ends_in_the_same_model_and_the_same_finals(
    life: Life, data: st.DataObject
) -> None:
    netlink, probes, _ = life
    turns = data.draw(st.permutations([0] * len(netlink) + [1] * len(probes)))
    sources = (iter(netlink), iter(probes))
    mixed = [next(sources[turn]) for turn in turns]
    expected = end_of([*netlink, *probes])
    assert end_of(mixed) == expected
    assert end_of([*probes, *netlink]) == expected


@given(lives())
def test_every_subflow_that_closed_is_final_once(life: Life) -> None:
    model, finals = end_of([*life.netlink, *life.probes])
    alive = sum(len(c["subflows"]) for c in model["connections"].values())
    assert sum(finals.values()) + alive == life.subflows
