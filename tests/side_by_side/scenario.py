# SPDX-License-Identifier: BSD-3-Clause
"""What a scenario is: what is there, what happens, and what both daemons must come to.

A scenario states what ours ends with.  Where mptcpd ends with something else, `theirs`
says in which points and `better` why ours is meant to differ; any other difference is a
failure.
"""

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

from msgspec import Struct, structs

from tests.side_by_side.stage import USUAL, Manager, Stage, Where

Step = str | Callable[[Stage], object]
"""Words for ip(8) in the daemon's namespace, or what to do with the stage."""


class Fault(Enum):
    """What mptcpd's users complain of: the kind, and each complaint of its own."""

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
    ID_TAKEN = "an id or endpoint set by hand", "its id is tried all the same"
    OTHERS_GONE = "an id or endpoint set by hand", "removed with an address of ours"
    MANY = "more than 8 addresses", "an opaque ERANGE"
    DEAF = "deafness", "after a netlink overflow"
    UNKNOWN_LIVE = "state", "live connections unknown after a restart"
    GROWTH = "state", "token maps that only grow"
    FORGOTTEN = "state", "sspi forgets the others when one connection closes"
    BACKUP = "plugins", "always told backup=true"
    ERRORS = "plugins", "error and reset reason dropped"
    CHOICE = "plugins", "one plugin for every connection"
    REPLACED = "plugins", "an unknown name is silently replaced"
    IDLE = "sspi", "never creates or announces anything"
    USERSPACE = "userspace mode", "addr_adv fills a table that nothing uses"
    ENVIRONMENT = "mptcpize", "deletes the unit's `Environment=` lines"
    LITTER = "mptcpize", "leaves temporary files"
    LISTING = "wanted and missing", "listing connections"
    FLAGS = "wanted and missing", "flags per path"
    INTERFACES = "wanted and missing", "an allow-list of interfaces"
    OVERLAP = "wanted and missing", "others who set endpoints are noticed"
    RELOAD = "wanted and missing", "reload"
    API = "wanted and missing", "D-Bus or another API"
    ALGORITHMS = "wanted and missing", "more algorithms"
    NUMBERS = "wanted and missing", "RTT and loss of each subflow"

    def __init__(self, kind: str, complaint: str) -> None:
        self.kind = kind
        self.complaint = complaint


ELSEWHERE = {Fault.GROWTH: "`make bench` measures the memory of 20 000 connections"}
"""What no scenario shows, and what does."""


class Seen(Struct, frozen=True, kw_only=True):
    """What can be seen from outside when a scenario has been played."""

    table: tuple[str, ...] = ()
    """Endpoints, each as ``address flag flag``; that of the last address left out."""
    limits: tuple[int, int] | None = None
    """Subflows, accepted addresses; None as an expectation: the same for both, whatever."""
    path_manager: str = "kernel"
    wire: tuple[str, ...] = ()
    """What MPTCP said on the wire: `spoken`."""
    said: tuple[str, ...] = ()
    """What the scenario itself looked at: `Scenario.look`."""
    deaf: bool = False
    """It has not reacted to what came last."""
    exit_code: int = 0
    """As subprocess has it: negative, the signal that ended it."""
    after: tuple[str, ...] = ()
    """Endpoints when the daemon has ended."""
    put_back: bool = True
    """The limits and the path manager are then what they were before; never asked of mptcpd."""


class Scenario(Struct, frozen=True, kw_only=True):
    name: str
    faults: tuple[Fault, ...] = ()
    needs: tuple[str, ...] = ()
    """Programs and files without which it cannot be played."""
    where: Where = "bare"
    arguments: tuple[str, ...] = ()
    usual: tuple[str, ...] = USUAL
    daemon: bool = True
    """False: there is none; the steps do it all."""
    before: Sequence[Step] = ()
    steps: Sequence[Step] = ()
    barrier: Callable[[Stage], bool] = Stage.settle
    """Waits until the daemon has dealt with all that happened; False if it does not."""
    look: Callable[[Stage], tuple[str, ...]] = lambda stage: tuple(stage.noted)
    """What else is compared, as words."""
    after: tuple[str, ...] = ()
    """Endpoints that ours must not take along at its end: those that are not its own, and the
    one under a connection's last subflow."""
    table: tuple[str, ...] = ()
    limits: tuple[int, int] | None = None
    path_manager: str = "kernel"
    wire: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    exit_code: int = 0
    put_back: bool = True
    """False: not compared, because somebody else sets limits too, or they shall stay."""
    theirs: dict[str, Any] = {}
    """By field of `Seen`, in what mptcpd differs."""
    better: str = ""
    """Why ours differs."""

    def expected(self, name: Manager) -> Seen:
        """mptcpd leaves its endpoints behind in every scenario, so that is not said in each."""
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
