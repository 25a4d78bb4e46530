# SPDX-License-Identifier: BSD-3-Clause
"""Endpoints of others: they stay, and ours are added beside them."""

import signal

from tests.side_by_side.scenario import Fault, Scenario
from tests.side_by_side.scenarios.steps import BOTH, DEL_A, ONE, A, B, restart, veth
from tests.side_by_side.stage import Stage


def subflows(*addresses: str) -> tuple[str, ...]:
    return tuple(f"{address} subflow" for address in addresses)


OTHERS = subflows(*(f"192.0.2.{i}" for i in range(1, 5)))
TEN = tuple(f"10.0.5.{number}" for number in range(10, 20))
MANUAL = "192.0.2.9 backup"


def kill(stage: Stage) -> None:
    stage.ask("status")  # when it answers, it has written down what it did
    stage.stop(signal.SIGKILL)


def take_the_next_id(stage: Stage) -> None:
    """Adds a manual endpoint with the lowest free id."""
    taken = {row["id"] for row in stage.host.endpoints.values()}
    free = min(set(range(1, 9)) - taken)
    stage.host.ip(f"mptcp endpoint add 192.0.2.9 id {free} backup")


def remove_manually(stage: Stage) -> None:
    address_id = stage.host.endpoints["10.0.1.1"]["id"]
    stage.host.ip(f"mptcp endpoint delete id {address_id}")


def advice(stage: Stage) -> tuple[str, ...]:
    """Whether the log has the fix for a full table."""
    words = "remove an endpoint first"
    return (f"log: {words}",) if words in stage.log else ()


def complaints(stage: Stage) -> tuple[str, ...]:
    """Whether the log reports existing endpoints as errors."""
    words = "too many addresses or duplicate one"
    return (f"log: {words}",) if words in stage.log else ()


def when_full(stage: Stage) -> bool:
    """The last address gets no endpoint either: waits for the message about the others."""
    if not any(address in stage.host.run("ip", "-4", "addr") for address in TEN):
        return stage.settle()
    return stage.within(lambda: stage.log.count("Numerical result out of range") >= 2)


COLLISIONS = [
    Scenario(
        name="the endpoint table half full of others' entries",
        before=[*(f"mptcp endpoint add 192.0.2.{i} subflow" for i in range(1, 5)), A],
        table=("10.0.1.1 subflow", *OTHERS),
        after=OTHERS,
    ),
    Scenario(
        name="a manual endpoint for the same address",
        faults=(Fault.OTHERS_GONE,),
        before=[A, "mptcp endpoint add 10.0.1.1 id 9 backup"],
        steps=[DEL_A],
        table=("10.0.1.1 backup",),
        after=("10.0.1.1 backup",),
        theirs={"table": ()},
        better="never removes endpoints of others",
    ),
    Scenario(
        name="a manual endpoint with the id that the next address would get",
        faults=(Fault.ID_TAKEN,),
        before=[A],
        steps=[take_the_next_id, B],
        table=(*BOTH, MANUAL),
        after=(MANUAL,),
        theirs={"table": (*ONE, MANUAL)},
        better="lets the kernel choose a free id",
    ),
    Scenario(
        name="a manual endpoint with that id, and the address is removed",
        faults=(Fault.ID_TAKEN, Fault.OTHERS_GONE),
        before=[A],
        steps=[take_the_next_id, B, "addr del 10.0.2.1/24 dev b"],
        table=(*ONE, MANUAL),
        after=(MANUAL,),
        theirs={"table": ONE},
        better="removes only its own endpoints",
    ),
    Scenario(
        name="an endpoint removed manually",
        before=[A],
        steps=[remove_manually, B],
        table=BOTH,
        theirs={"table": ("10.0.2.1 subflow",)},
        better="every usable address has an endpoint; interfaces.deny excludes one",
    ),
    Scenario(
        name="restart",
        faults=(Fault.EXIT, Fault.RESTART),
        before=[A, B],
        steps=[restart],
        table=BOTH,
        look=complaints,
        theirs={"said": ("log: too many addresses or duplicate one",)},
        better="takes over the endpoints of an earlier run",
    ),
    Scenario(
        name="restart after kill -9",
        faults=(Fault.EXIT, Fault.RESTART),
        before=[A, B],
        steps=[kill, Stage.start],
        table=BOTH,
        look=complaints,
        theirs={"said": ("log: too many addresses or duplicate one",)},
        better="takes over the endpoints of an earlier run",
    ),
    Scenario(
        name="ten addresses on one interface",
        faults=(Fault.MANY,),
        before=[veth("a")],
        steps=[f"addr add {address}/24 dev a" for address in TEN],
        barrier=when_full,
        look=advice,
        table=subflows(*TEN[:8]),
        said=("log: remove an endpoint first",),
        theirs={"said": ()},
        better="the log names the full table and the fix",
    ),
    Scenario(
        name="ten addresses on one interface, and one is removed",
        faults=(Fault.MANY,),
        before=[veth("a")],
        steps=[*(f"addr add {address}/24 dev a" for address in TEN), "addr del 10.0.5.12/24 dev a"],
        barrier=when_full,
        table=subflows(*TEN[:2], *TEN[3:9]),
        theirs={"table": subflows(*TEN[:2], *TEN[3:8])},
        better="an address without an endpoint gets the next free place",
    ),
]
