# SPDX-License-Identifier: BSD-3-Clause
"""The links and addresses that a path's faults leave: faults are independent of each other."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcpd_ebpf.lab import LabError
from mptcpd_ebpf.lab.interfaces import Faults, state_under

CHANGES: list[tuple[Callable[[Faults], Faults], Callable[[Faults], Faults]]] = [
    (lambda f: f.carrier("client", on=False), lambda f: f.carrier("client", on=True)),
    (lambda f: f.carrier("server", on=False), lambda f: f.carrier("server", on=True)),
    (lambda f: f.address("client", there=False), lambda f: f.address("client", there=True)),
    (lambda f: f.address("server", there=False), lambda f: f.address("server", there=True)),
    (lambda f: f.interface(there=False), lambda f: f.interface(there=True)),
    (lambda f: f.router(on=False), lambda f: f.router(on=True)),
]
"""Each fault and its opposite."""

STEPS = st.lists(st.tuples(st.sampled_from(range(len(CHANGES))), st.booleans()))


@given(STEPS, st.booleans())
def test_only_the_last_change_of_each_fault_counts(
    steps: list[tuple[int, bool]], bottleneck: bool
) -> None:
    faults = Faults()
    last: dict[int, bool] = {}
    for number, happens in steps:
        faults = CHANGES[number][0 if happens else 1](faults)
        last[number] = happens
    in_order = Faults()
    for number, happens in sorted(last.items()):
        in_order = CHANGES[number][0 if happens else 1](in_order)
    assert faults == in_order
    client_off, server_off, client_gone, server_gone, removed, router_off = (
        last.get(number, False) for number in range(len(CHANGES))
    )
    state = state_under(faults, bottleneck=bottleneck)
    assert state.interface is not removed
    assert state.near is not (removed or router_off or client_off)
    assert state.last is not (server_off or (router_off and not bottleneck))
    assert state.far is not (router_off or (server_off and not bottleneck))
    assert ("client" in state.addresses) is not (removed or client_gone)
    assert ("server" in state.addresses) is not server_gone


def test_an_end_is_client_or_server() -> None:
    with pytest.raises(LabError, match="end 'router' is neither client nor server"):
        Faults().carrier("router", on=False)  # type: ignore[arg-type]
