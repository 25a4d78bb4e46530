# SPDX-License-Identifier: BSD-3-Clause
"""A scenario: the initial state, the steps, and the expected outcome of both daemons.

A scenario states the outcome of ours.  If mptcpd's differs, `theirs` states the differing fields
and `better` the reason; any other difference is a failure.
"""

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

from msgspec import Struct, structs

from tests.side_by_side.stage import USUAL, Manager, Stage, Where

Step = str | Callable[[Stage], object]
"""Arguments of ip(8) in the daemon's namespace, or a function of the stage."""


class Fault(Enum):
    """Complaints of mptcpd's users: the kind, and the complaint."""

    CARRIER = "stale endpoints", "after carrier loss"
    DELETED = "stale endpoints", "after `ip link del`"
    DOWN = "stale endpoints", "after interface down, address removed"
    ROUTELESS = "stale endpoints", "check_route, after the route went"
    EXIT = "stale endpoints", "after the daemon's exit"
    RESTART = "stale endpoints", "EEXIST for each address after a restart"
    EARLY = "missed addresses", "configured before the interface came up"
    LATE_ROUTE = "missed addresses", "the default route comes later than the address"
    PEER = "wrong address", "the peer's of a point-to-point link"
    TENTATIVE = "wrong address", "IPv6 while tentative"
    LINK_LOCAL = "wrong address", "169.254/16 with global scope"
    ID_TAKEN = "manual endpoints", "mptcpd retries an id that is in use"
    OTHERS_GONE = "manual endpoints", "mptcpd removes them with a local address"
    MANY = "more than 8 addresses", "an opaque ERANGE"
    DEAF = "lost events", "no reaction after a netlink overflow"
    UNKNOWN_LIVE = "state", "open connections unknown after a restart"
    GROWTH = "state", "token maps that only grow"
    FORGOTTEN = "state", "sspi loses the state of the others when one connection closes"
    BACKUP = "plugins", "the callback always gets backup=true"
    ERRORS = "plugins", "error and reset reason dropped"
    CHOICE = "plugins", "one plugin for every connection"
    REPLACED = "plugins", "an unknown name is replaced silently"
    IDLE = "sspi", "never creates or announces anything"
    USERSPACE = "userspace mode", "addr_adv fills a table that nothing uses"
    ENVIRONMENT = "mptcpize", "deletes the unit's `Environment=` lines"
    LITTER = "mptcpize", "leaves temporary files"
    LISTING = "missing features", "listing connections"
    FLAGS = "missing features", "flags per path"
    INTERFACES = "missing features", "an allow-list of interfaces"
    OVERLAP = "missing features", "detection of other endpoint managers"
    RELOAD = "missing features", "reload"
    API = "missing features", "D-Bus or another API"
    ALGORITHMS = "missing features", "more algorithms"
    NUMBERS = "missing features", "RTT and loss of each subflow"

    def __init__(self, kind: str, complaint: str) -> None:
        self.kind = kind
        self.complaint = complaint


ELSEWHERE = {Fault.GROWTH: "`make bench` measures the memory of 20 000 connections"}
"""Complaints without a scenario, and what shows them."""


class Seen(Struct, frozen=True, kw_only=True):
    """The outcome of a scenario, as seen from outside the daemon."""

    table: tuple[str, ...] = ()
    """Endpoints, each as ``address flag flag``; without that of the last address."""
    limits: tuple[int, int] | None = None
    """Subflows, accepted addresses; as an expectation, None: equal for both."""
    path_manager: str = "kernel"
    wire: tuple[str, ...] = ()
    """MPTCP signalling on the wire: `spoken`."""
    said: tuple[str, ...] = ()
    """Results of `Scenario.look`."""
    unresponsive: bool = False
    """It did not react to the last event."""
    exit_code: int = 0
    """As in subprocess: negative for the signal that ended it."""
    after: tuple[str, ...] = ()
    """Endpoints when the daemon has ended."""
    put_back: bool = True
    """Limits and path manager are restored at exit; not compared for mptcpd."""


class Scenario(Struct, frozen=True, kw_only=True):
    name: str
    faults: tuple[Fault, ...] = ()
    needs: tuple[str, ...] = ()
    """Programs and files that it needs."""
    where: Where = "bare"
    arguments: tuple[str, ...] = ()
    usual: tuple[str, ...] = USUAL
    daemon: bool = True
    """False: no daemon runs, only the steps."""
    before: Sequence[Step] = ()
    steps: Sequence[Step] = ()
    barrier: Callable[[Stage], bool] = Stage.settle
    """Waits until the daemon has processed all events; False if it does not."""
    look: Callable[[Stage], tuple[str, ...]] = lambda stage: tuple(stage.noted)
    """Further text to compare."""
    after: tuple[str, ...] = ()
    """Endpoints that ours must keep at exit: those of others, and the one of a connection's last
    subflow."""
    table: tuple[str, ...] = ()
    limits: tuple[int, int] | None = None
    path_manager: str = "kernel"
    wire: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    exit_code: int = 0
    put_back: bool = True
    """False: not compared, because another program sets limits too, or they must stay."""
    theirs: dict[str, Any] = {}
    """The fields of `Seen` in which mptcpd differs."""
    better: str = ""
    """Why ours differs."""

    def expected(self, name: Manager) -> Seen:
        """mptcpd keeps its endpoints at exit in every scenario, so scenarios do not state it."""
        ours = Seen(
            table=self.table,
            limits=self.limits,
            path_manager=self.path_manager,
            wire=self.wire,
            said=self.said,
            exit_code=self.exit_code,
            after=self.after,
        )
        if name == "ours":
            return ours
        theirs = structs.replace(ours, **self.theirs)
        return structs.replace(theirs, after=theirs.table)
