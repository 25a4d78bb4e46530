# SPDX-License-Identifier: BSD-3-Clause
"""One subflow per interface, with the userspace path manager."""

from mptcpd_ebpf.kernel.pm_events import PmEvents
from mptcpd_ebpf.lab.wire import FIN, RST
from tests.side_by_side.scenario import Fault, Scenario
from tests.side_by_side.scenarios.steps import connect, restart
from tests.side_by_side.stage import Connection, Stage

ARGUMENTS = ("--path-manager=sspi", "--load-plugins=sspi")
FIRST, SECOND = "10.1.1.2", "10.2.1.2"
CREATES = "MP_JOIN out path1 id 1"
SECOND_JOIN = "MP_JOIN out path0 id 9"
CLOSED = ("FIN out path0", SECOND_JOIN)
ONE_EACH = ("1 on path0", "1 on path1")
FREE = "creates a subflow on each interface that has none"


def closes_second(stage: Stage) -> bool:
    """Waits until the second subflow of a connection made for this is closed."""
    stage.await_readiness()
    made: list[Connection] = []

    def join() -> None:
        made.append(stage.connect(hidden=True))
        made[-1].join(FIRST, 99)

    return stage.attempt(join, lambda: _second_is_closed(stage, made[-1]), lambda: None)


def _second_is_closed(stage: Stage, made: Connection) -> bool:
    """Whether a subflow other than the initial one was closed on the wire."""
    assert stage.wire is not None
    first = made.client.getsockname()[1]
    for segment in stage.wire.matching():
        ports = [end.port for end in segment.flow]
        if segment.flags & (FIN | RST) and made.remote.port in ports and first not in ports:
            return True
    return False


def passing_connection(stage: Stage) -> None:
    """A connection that is closed immediately."""
    made = stage.connect(hidden=True)
    made.close()


def second_subflow(stage: Stage) -> None:
    """A second subflow of the connection, on the interface of its first."""
    (made,) = stage.connections
    made.join(FIRST, 9)


def subflows(stage: Stage) -> tuple[str, ...]:
    """Number of the connection's subflows by the client's interface."""
    (made,) = stage.connections
    made.exchange()
    found = made.subflows()
    return tuple(
        f"{found.count(ip)} on {name}" for ip, name in ((FIRST, "path0"), (SECOND, "path1"))
    )


def userspace(stage: Stage) -> None:
    """Also at the client, which creates subflows if the daemon runs on the server."""
    assert stage.lab is not None
    for host in (stage.lab.client, stage.lab.server):
        host.sysctl("mptcp.pm_type", 1)
    if stage.near is stage.lab.server:
        with stage.lab.client.entered():
            stage.stack.enter_context(PmEvents.open())


SSPI = [
    Scenario(
        name="sspi, a connection from a host with two interfaces",
        faults=(Fault.IDLE,),
        where="client",
        arguments=ARGUMENTS,
        before=[userspace],
        steps=[connect],
        barrier=closes_second,
        look=subflows,
        path_manager="userspace",
        wire=(CREATES,),
        said=ONE_EACH,
        theirs={"wire": (), "said": ("1 on path0", "0 on path1")},
        better=FREE,
    ),
    Scenario(
        name="sspi, a second subflow on an interface",
        faults=(Fault.IDLE,),
        where="client",
        arguments=ARGUMENTS,
        before=[userspace],
        steps=[connect, second_subflow],
        barrier=closes_second,
        look=subflows,
        path_manager="userspace",
        wire=(*CLOSED, CREATES),
        said=ONE_EACH,
        theirs={"wire": CLOSED, "said": ("1 on path0", "0 on path1")},
        better=FREE,
    ),
    Scenario(
        name="sspi, another connection closes, then a second subflow",
        faults=(Fault.FORGOTTEN,),
        where="client",
        arguments=ARGUMENTS,
        before=[userspace],
        steps=[connect, passing_connection, closes_second, second_subflow],
        barrier=closes_second,
        look=subflows,
        path_manager="userspace",
        wire=(*CLOSED, CREATES),
        said=ONE_EACH,
        theirs={"wire": (SECOND_JOIN,), "said": ("2 on path0", "0 on path1")},
        better="removes the state of the closed connection only",
    ),
    Scenario(
        name="sspi, restarted during a connection, then a second subflow",
        faults=(Fault.UNKNOWN_LIVE,),
        where="client",
        arguments=ARGUMENTS,
        before=[userspace],
        steps=[connect, restart, closes_second, second_subflow],
        barrier=closes_second,
        look=subflows,
        path_manager="userspace",
        wire=(*CLOSED, CREATES),
        said=ONE_EACH,
        theirs={"wire": (SECOND_JOIN,), "said": ("2 on path0", "0 on path1")},
        better="reads the open connections after a restart",
    ),
    Scenario(
        name="sspi on the server",
        faults=(Fault.IDLE,),
        where="server",
        arguments=ARGUMENTS,
        before=[userspace],
        steps=[connect],
        barrier=closes_second,
        path_manager="userspace",
        wire=("ADD_ADDR out id 1 10.2.2.2",),
        theirs={"wire": ()},
        better="a server announces an address of each interface that has no subflow",
    ),
]
