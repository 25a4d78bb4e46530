# SPDX-License-Identifier: BSD-3-Clause
"""Connections of the in-kernel path manager: the signalling to the peer."""

from tests.side_by_side.scenario import Fault, Scenario
from tests.side_by_side.scenarios.steps import carrier, connect, joined, restart, sysctl
from tests.side_by_side.stage import Stage

FIRST, SECOND = "10.1.1.2 subflow", "10.2.1.2 subflow"
BOTH = (FIRST, SECOND)
JOIN = "MP_JOIN out path1 id 2"
GONE = ("FIN in path1", JOIN, "RM_ADDR out id 2")
"""The peer closes the subflow of a withdrawn address."""

KEEP_ROUTES = "addr add 10.98.0.1/32 dev path1 scope host"
"""Routes are removed with an interface's last address; this one is never used."""
DEL_SECOND = "addr del 10.2.1.2/24 dev path1"
ADD_SECOND = "addr add 10.2.1.2/24 dev path1"


def peer_announces(stage: Stage) -> None:
    assert stage.lab is not None
    stage.lab.server.batch("ip", ["mptcp endpoint add 10.2.2.2 signal"])


def keeping(stage: Stage) -> None:
    """mptcpd always keeps its endpoints."""
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
        name="an address is added during a connection",
        where="client",
        before=[KEEP_ROUTES, DEL_SECOND],
        steps=[connect, ADD_SECOND],
        table=BOTH,
        wire=(JOIN,),
        after=(FIRST,),
    ),
    Scenario(
        name="an address is removed during a connection",
        where="client",
        steps=[connect, joined, DEL_SECOND],
        table=(FIRST,),
        wire=GONE,
        after=(FIRST,),
    ),
    Scenario(
        name="the address of the initial subflow is removed",
        where="client",
        steps=[connect, joined, "addr del 10.1.1.2/24 dev path0"],
        table=(SECOND,),
        wire=("FIN in path0", JOIN, "RM_ADDR out id 0"),
        after=(SECOND,),
    ),
    Scenario(
        name="carrier lost during a connection",
        faults=(Fault.CARRIER,),
        where="client",
        steps=[connect, joined, carrier],
        table=(FIRST,),
        limits=(4, 4),
        wire=(JOIN, "RM_ADDR out id 2"),
        after=(FIRST,),
        theirs={"table": BOTH, "limits": (5, 5), "wire": (JOIN,)},
        better="tells the peer over another path that this one is gone",
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
        better="sets the path manager that uses the table, and restores it at exit",
    ),
    Scenario(
        name="a restart during a connection",
        where="client",
        steps=[connect, joined, restart],
        table=BOTH,
        wire=("FIN out path1", JOIN, "MP_JOIN out path1 id 3", "RM_ADDR out id 2"),
        after=(FIRST,),
        theirs={"wire": (JOIN,)},
        better="removes its endpoints at exit and adds them again; `on_exit: keep` keeps them",
    ),
    Scenario(
        name="a restart during a connection, on_exit: keep",
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
        name="the daemon ends during a connection",
        faults=(Fault.EXIT,),
        where="client",
        steps=[connect, joined, Stage.stop],
        table=(FIRST,),
        limits=(2, 0),
        wire=("FIN out path1", JOIN, "RM_ADDR out id 2"),
        after=(FIRST,),
        theirs={"table": BOTH, "limits": (4, 4), "wire": (JOIN,)},
        better="removes its endpoints, but not that of a connection's last subflow; "
        "`on_exit: keep` keeps all",
    ),
]
