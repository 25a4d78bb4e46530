# SPDX-License-Identifier: BSD-3-Clause
"""The scenarios: what is there before the daemon starts, what happens then, what must come of it.

`table` is what ours must end with.  Where mptcpd ends with something else, `theirs` says
with what and `better` why ours is meant to differ; any other difference is a failure.
"""

from collections.abc import Callable, Sequence

from msgspec import Struct

from tests.side_by_side.managers import Stage

Step = str | Callable[[Stage], None]


class Scenario(Struct, frozen=True, kw_only=True):
    name: str
    arguments: tuple[str, ...] = ()
    before: Sequence[Step] = ()
    steps: Sequence[Step] = ()
    table: tuple[str, ...] = ()
    theirs: tuple[str, ...] | None = None
    """None: the same."""
    deaf: bool = False
    """mptcpd hears nothing any more."""
    path_manager: str | None = None
    """mptcpd's, where it is not ``kernel`` as ours."""
    better: str = ""


def veth(name: str, *addresses: str, up: bool = True) -> Step:
    return lambda stage: stage.host.veth(name, *addresses, up=up)


def sysctl(setting: str) -> Step:
    def set_it(stage: Stage) -> None:
        stage.host.run("sysctl", "-qw", setting)

    return set_it


def restart(stage: Stage) -> None:
    stage.restart()


A = veth("a", "10.0.1.1/24")
B = veth("b", "10.0.2.1/24")
ONE = ("10.0.1.1 subflow",)
BOTH = ("10.0.1.1 subflow", "10.0.2.1 subflow")
ADD_A = "addr add 10.0.1.1/24 dev a"
DEL_A = "addr del 10.0.1.1/24 dev a"

SCENARIOS = [
    Scenario(name="nothing to use"),
    Scenario(name="an address that was there", before=[A], table=ONE),
    Scenario(name="two interfaces that were there", before=[A, B], table=BOTH),
    Scenario(
        name="IPv4 and IPv6",
        before=[veth("a", "10.0.1.1/24", "fd00:1::1/64")],
        table=("10.0.1.1 subflow", "fd00:1::1 subflow"),
    ),
    Scenario(name="an address comes", before=[veth("a")], steps=[ADD_A], table=ONE),
    Scenario(name="an address goes", before=[A, B], steps=[DEL_A], table=("10.0.2.1 subflow",)),
    Scenario(name="an address goes and comes back", before=[A], steps=[DEL_A, ADD_A], table=ONE),
    Scenario(
        name="two addresses on one interface",
        before=[A],
        steps=["addr add 10.0.3.1/24 dev a"],
        table=("10.0.1.1 subflow", "10.0.3.1 subflow"),
    ),
    Scenario(name="an interface comes", before=[A], steps=[B], table=BOTH),
    Scenario(
        name="flag signal",
        arguments=("--addr-flags=signal",),
        before=[A],
        table=("10.0.1.1 signal",),
    ),
    Scenario(
        name="flags subflow and backup",
        arguments=("--addr-flags=subflow,backup",),
        before=[A],
        table=("10.0.1.1 subflow backup",),
    ),
    Scenario(
        name="flags subflow and fullmesh",
        arguments=("--addr-flags=subflow,fullmesh",),
        before=[A],
        table=("10.0.1.1 subflow fullmesh",),
    ),
    Scenario(
        name="flags subflow and signal",
        arguments=("--addr-flags=subflow,signal",),
        before=[A],
        table=("10.0.1.1 subflow signal",),
    ),
    Scenario(
        name="the last of two options counts",
        arguments=("--addr-flags=signal", "--addr-flags=subflow"),
        before=[A],
        table=ONE,
    ),
    Scenario(
        name="existing addresses left out",
        arguments=("--notify-flags=skip_link_local,skip_loopback",),
        before=[A, veth("b")],
        steps=["addr add 10.0.2.1/24 dev b"],
        table=("10.0.2.1 subflow",),
    ),
    Scenario(
        name="a link-local IPv6 address",
        arguments=("--notify-flags=existing,skip_link_local",),
        before=[veth("a", "fe80::1/64")],
    ),
    Scenario(name="an address on lo", before=["link set lo up", "addr add 10.0.9.9/32 dev lo"]),
    Scenario(
        name="the endpoint table full of others' entries",
        before=[*(f"mptcp endpoint add 192.0.2.{i} subflow" for i in range(1, 5)), A],
        table=("10.0.1.1 subflow", *(f"192.0.2.{i} subflow" for i in range(1, 5))),
    ),
    Scenario(
        name="carrier lost",
        before=[A, B],
        steps=["link set dev a-far down"],
        table=("10.0.2.1 subflow",),
        theirs=BOTH,
        better="an address without carrier carries nothing: its endpoint goes, and returns with it",
    ),
    Scenario(
        name="carrier lost and back",
        before=[A, B],
        steps=["link set dev a-far down", "link set dev a-far up"],
        table=BOTH,
    ),
    Scenario(
        name="interface removed",
        before=[A, B],
        steps=["link del dev a"],
        table=("10.0.2.1 subflow",),
        theirs=BOTH,
        better="the endpoint of an interface that is gone goes with it",
    ),
    Scenario(
        name="interface down, its address removed",
        before=[A, B],
        steps=["link set dev a down", DEL_A],
        table=("10.0.2.1 subflow",),
        theirs=BOTH,
        better="a removed address has no endpoint, whatever its interface does",
    ),
    Scenario(
        name="interface down and up",
        before=[A, B],
        steps=["link set dev a down", "link set dev a up"],
        table=BOTH,
    ),
    Scenario(
        name="interface renamed",
        before=[A, B],
        steps=["link set dev a down", "link set dev a name c", "link set dev c up"],
        table=BOTH,
    ),
    Scenario(name="restart", before=[A, B], steps=[restart], table=BOTH),
    Scenario(
        name="an address configured before its interface came up",
        before=[veth("a", up=False)],
        steps=[ADD_A, "link set dev a up"],
        table=ONE,
        theirs=(),
        better="the address counts when its interface comes up",
    ),
    Scenario(
        name="a point-to-point address",
        before=[veth("a")],
        steps=["addr add 10.0.1.1 peer 10.0.1.2/32 dev a"],
        table=ONE,
        theirs=("10.0.1.2 subflow",),
        better="ours is the local address, never the peer's",
    ),
    Scenario(
        name="a tentative IPv6 address",
        before=[veth("a"), sysctl("net.ipv6.conf.a.dad_transmits=100")],
        steps=["addr add fd00:1::1/64 dev a"],
        theirs=("fd00:1::1 subflow",),
        better="an address waits until duplicate address detection has passed it",
    ),
    Scenario(
        name="169.254/16 with global scope",
        before=[veth("a", "169.254.7.7/16")],
        theirs=("169.254.7.7 subflow",),
        better="skip_link_local goes by the address, not by the scope somebody gave it",
    ),
    Scenario(
        name="an endpoint set by hand for the same address",
        before=[A, "mptcp endpoint add 10.0.1.1 id 9 backup"],
        steps=[DEL_A],
        table=("10.0.1.1 backup",),
        theirs=(),
        better="somebody else's endpoint is never removed",
    ),
    Scenario(
        name="path manager userspace at start",
        before=[sysctl("net.mptcp.pm_type=1"), A],
        table=ONE,
        path_manager="userspace",
        better="the path manager that uses the table is chosen, and put back at the end",
    ),
]
