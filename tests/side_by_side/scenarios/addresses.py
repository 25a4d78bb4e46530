# SPDX-License-Identifier: BSD-3-Clause
"""Addresses that are added and removed, and their endpoints."""

import time

from tests.side_by_side.scenario import Fault, Scenario
from tests.side_by_side.scenarios.steps import ADD_A, BOTH, DEL_A, ONE, A, B, sysctl, veth
from tests.side_by_side.stage import Stage

CHECK_ROUTE = ("--notify-flags=existing,skip_loopback,check_route",)
ROUTE = "route add default via 10.0.1.254 dev a"
LAST_ROUTE = ("addr add 10.98.0.1/32 dev z scope host", "route add default dev z metric 99")
"""Makes the last address usable; routes are removed with an interface's last address."""


def later(_: Stage) -> None:
    """The pause is the scenario: mptcpd checks the route for 30 ms and never again."""
    time.sleep(0.3)


ADDRESSES = [
    Scenario(name="nothing to use"),
    Scenario(name="an address that exists at start", before=[A], table=ONE),
    Scenario(name="two interfaces that exist at start", before=[A, B], table=BOTH),
    Scenario(
        name="IPv4 and IPv6",
        before=[veth("a", "10.0.1.1/24", "fd00:1::1/64")],
        table=("10.0.1.1 subflow", "fd00:1::1 subflow"),
    ),
    Scenario(name="an address is added", before=[veth("a")], steps=[ADD_A], table=ONE),
    Scenario(
        name="an address is removed", before=[A, B], steps=[DEL_A], table=("10.0.2.1 subflow",)
    ),
    Scenario(
        name="an address is removed and added again", before=[A], steps=[DEL_A, ADD_A], table=ONE
    ),
    Scenario(
        name="two addresses on one interface",
        before=[A],
        steps=["addr add 10.0.3.1/24 dev a"],
        table=("10.0.1.1 subflow", "10.0.3.1 subflow"),
    ),
    Scenario(
        name="a link-local IPv6 address",
        arguments=("--notify-flags=existing,skip_link_local",),
        before=[veth("a", "fe80::1/64")],
    ),
    Scenario(name="an address on lo", before=["link set lo up", "addr add 10.0.9.9/32 dev lo"]),
    Scenario(
        name="a point-to-point address",
        faults=(Fault.PEER,),
        before=[veth("a")],
        steps=["addr add 10.0.1.1 peer 10.0.1.2/32 dev a"],
        table=ONE,
        theirs={"table": ("10.0.1.2 subflow",)},
        better="uses the local address, never the peer's",
    ),
    Scenario(
        name="a tentative IPv6 address",
        faults=(Fault.TENTATIVE,),
        before=[veth("a"), sysctl("net.ipv6.conf.a.dad_transmits=100")],
        steps=["addr add fd00:1::1/64 dev a"],
        limits=(3, 3),
        theirs={"limits": (4, 4), "table": ("fd00:1::1 subflow",)},
        better="uses an address after duplicate address detection",
    ),
    Scenario(
        name="169.254/16 with global scope",
        faults=(Fault.LINK_LOCAL,),
        before=[veth("a", "169.254.7.7/16")],
        limits=(3, 3),
        theirs={"limits": (4, 4), "table": ("169.254.7.7 subflow",)},
        better="skip_link_local tests the address, not its configured scope",
    ),
    Scenario(
        name="an address configured before its interface came up",
        faults=(Fault.EARLY,),
        before=[veth("a", up=False)],
        steps=[ADD_A, "link set dev a up"],
        table=ONE,
        limits=(4, 4),
        theirs={"limits": (3, 3), "table": ()},
        better="uses the address when its interface comes up",
    ),
    Scenario(
        name="without existing addresses",
        arguments=("--notify-flags=skip_link_local,skip_loopback",),
        before=[A, veth("b")],
        steps=["addr add 10.0.2.1/24 dev b"],
        table=("10.0.2.1 subflow",),
    ),
    Scenario(
        name="check_route, the route exists",
        arguments=CHECK_ROUTE,
        before=[A, B, *LAST_ROUTE, ROUTE],
        table=ONE,
    ),
    Scenario(
        name="check_route, the route is added after the address",
        faults=(Fault.LATE_ROUTE,),
        arguments=CHECK_ROUTE,
        before=[A, B, *LAST_ROUTE],
        steps=[later, ROUTE],
        table=ONE,
        limits=(4, 4),
        theirs={"limits": (3, 3), "table": ()},
        better="uses the address when the route is added",
    ),
    Scenario(
        name="check_route, the route is removed",
        faults=(Fault.ROUTELESS,),
        arguments=CHECK_ROUTE,
        before=[A, B, *LAST_ROUTE, ROUTE],
        steps=["route del default via 10.0.1.254"],
        limits=(3, 3),
        theirs={"limits": (4, 4), "table": ONE},
        better="stops using the address when its route is removed",
    ),
]
