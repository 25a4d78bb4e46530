# SPDX-License-Identifier: BSD-3-Clause
"""Connections of the in-kernel path manager: what is said to the peer?"""

from tests.side_by_side.scenario import Fault, Scenario
from tests.side_by_side.scenarios.steps import carrier, connect, joined, restart, sysctl
from tests.side_by_side.stage import Stage

FIRST, SECOND = "10.1.1.2 subflow", "10.2.1.2 subflow"
BOTH = (FIRST, SECOND)
JOIN = "MP_JOIN out path1 id 2"
GONE = ("FIN in path1", JOIN, "RM_ADDR out id 2")
"""The peer closes the subflow of an address that is withdrawn."""

KEEP_ROUTES = "addr add 10.98.0.1/32 dev path1 scope host"
"""Routes go with an interface's last address; this one is never used."""
DEL_SECOND = "addr del 10.2.1.2/24 dev path1"
ADD_SECOND = "addr add 10.2.1.2/24 dev path1"


def peer_announces(stage: Stage) -> None:
    assert stage.lab is not None
    stage.lab.server.batch("ip", ["mptcp endpoint add 10.2.2.2 signal"])


def keeping(stage: Stage) -> None:
    """mptcpd keeps its endpoints always."""
    if stage.name == "ours":
        stage.arguments.append("--on-exit=keep")


LIVE = [
    Scenario(
        name="a connection over two interfaces",
        where="client",
        steps=[connect],
        table=BOTH,
        wire=(JOIN,),
        after=(FIRST,),
    ),
    Scenario(
        name="an address comes while a connection lives",
        where="client",
        before=[KEEP_ROUTES, DEL_SECOND],
        steps=[connect, ADD_SECOND],
        table=BOTH,
        wire=(JOIN,),
        after=(FIRST,),
    ),
    Scenario(
        name="an address goes while a connection lives",
        where="client",
        steps=[connect, joined, DEL_SECOND],
        table=(FIRST,),
        wire=GONE,
        after=(FIRST,),
    ),
    Scenario(
        name="the address of the initial subflow goes",
        where="client",
        steps=[connect, joined, "addr del 10.1.1.2/24 dev path0"],
        table=(SECOND,),
        wire=("FIN in path0", JOIN, "RM_ADDR out id 0"),
        after=(SECOND,),
    ),
    Scenario(
        name="carrier lost while a connection lives",
        faults=(Fault.CARRIER,),
        where="client",
        steps=[connect, joined, carrier],
        table=(FIRST,),
        limits=(4, 4),
        wire=(JOIN, "RM_ADDR out id 2"),
        after=(FIRST,),
        theirs={"table": BOTH, "limits": (5, 5), "wire": (JOIN,)},
        better="the peer hears at once that the path is gone, by another one",
    ),
    Scenario(
        name="flags subflow and backup, a connection",
        where="client",
        arguments=("--addr-flags=subflow,backup",),
        steps=[connect],
        table=("10.1.1.2 subflow backup", "10.2.1.2 subflow backup"),
        wire=(f"{JOIN} backup", "MP_PRIO out path0 backup"),
        after=("10.1.1.2 subflow backup",),
    ),
    Scenario(
        name="flag signal on the client",
        where="client",
        arguments=("--addr-flags=signal",),
        steps=[connect],
        table=("10.1.1.2 signal", "10.2.1.2 signal"),
        wire=("ADD_ADDR out id 2 10.2.1.2", "MP_JOIN in path1 id 1", "RST out path1"),
        after=("10.1.1.2 signal",),
    ),
    Scenario(
        name="flag signal on the server",
        where="server",
        arguments=("--addr-flags=signal",),
        steps=[connect],
        table=("10.1.2.2 signal", "10.2.2.2 signal"),
        wire=("ADD_ADDR out id 2 10.2.2.2", "MP_JOIN in path1 id 1"),
        after=("10.1.2.2 signal",),
    ),
    Scenario(
        name="the peer announces an address",
        where="client",
        before=[peer_announces],
        steps=[connect],
        table=BOTH,
        wire=("ADD_ADDR in id 1 10.2.2.2", JOIN, JOIN),
        after=(FIRST,),
    ),
    Scenario(
        name="path manager userspace at start",
        faults=(Fault.USERSPACE,),
        where="client",
        before=[sysctl("net.mptcp.pm_type=1")],
        steps=[connect],
        table=BOTH,
        wire=(JOIN,),
        after=(FIRST,),
        theirs={"wire": (), "path_manager": "userspace"},
        better="the path manager that uses the table is chosen, and put back at the end",
    ),
    Scenario(
        name="a restart while a connection lives",
        where="client",
        steps=[connect, joined, restart],
        table=BOTH,
        wire=("FIN out path1", JOIN, "MP_JOIN out path1 id 3", "RM_ADDR out id 2"),
        after=(FIRST,),
        theirs={"wire": (JOIN,)},
        better="what we made goes with us, and is made again; `on_exit: keep` leaves it",
    ),
    Scenario(
        name="a restart while a connection lives, on_exit: keep",
        faults=(Fault.UNKNOWN_LIVE,),
        where="client",
        before=[keeping],
        steps=[connect, joined, restart],
        table=BOTH,
        wire=(JOIN,),
        after=BOTH,
        put_back=False,
    ),
    Scenario(
        name="the daemon ends while a connection lives",
        faults=(Fault.EXIT,),
        where="client",
        steps=[connect, joined, Stage.stop],
        table=(FIRST,),
        limits=(2, 0),
        wire=("FIN out path1", JOIN, "RM_ADDR out id 2"),
        after=(FIRST,),
        theirs={"table": BOTH, "limits": (4, 4), "wire": (JOIN,)},
        better="what we made goes with us, but never a connection's last subflow; "
        "`on_exit: keep` leaves all",
    ),
]
