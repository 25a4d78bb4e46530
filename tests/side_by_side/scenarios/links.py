# SPDX-License-Identifier: BSD-3-Clause
"""Interfaces that are added, removed and changed, and the endpoints of their addresses."""

from tests.side_by_side.scenario import Fault, Scenario
from tests.side_by_side.scenarios.steps import BOTH, DEL_A, A, B

LINKS = [
    Scenario(name="an interface is added", before=[A], steps=[B], table=BOTH),
    Scenario(
        name="carrier lost",
        faults=(Fault.CARRIER,),
        before=[A, B],
        steps=["link set dev a-far down"],
        table=("10.0.2.1 subflow",),
        limits=(4, 4),
        theirs={"limits": (5, 5), "table": BOTH},
        better="removes the endpoint without carrier, and adds it when the carrier returns",
    ),
    Scenario(
        name="carrier lost and back",
        before=[A, B],
        steps=["link set dev a-far down", "link set dev a-far up"],
        table=BOTH,
    ),
    Scenario(
        name="interface removed",
        faults=(Fault.DELETED,),
        before=[A, B],
        steps=["link del dev a"],
        table=("10.0.2.1 subflow",),
        limits=(4, 4),
        theirs={"limits": (5, 5), "table": BOTH},
        better="removes the endpoint with its interface",
    ),
    Scenario(
        name="interface down, its address removed",
        faults=(Fault.DOWN,),
        before=[A, B],
        steps=["link set dev a down", DEL_A],
        table=("10.0.2.1 subflow",),
        limits=(4, 4),
        theirs={"limits": (5, 5), "table": BOTH},
        better="removes the endpoint with its address, regardless of the interface",
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
]
