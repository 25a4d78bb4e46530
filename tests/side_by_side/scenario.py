# SPDX-License-Identifier: BSD-3-Clause
"""What a scenario is: what is there, what happens, and what both daemons must come to.

A scenario states what ours ends with.  Where mptcpd ends with something else, `theirs`
says in which points and `better` why ours is meant to differ; any other difference is a
failure.
"""

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

from msgspec import Struct, structs

from tests.side_by_side.stage import USUAL, Manager, Stage, Where

Step = str | Callable[[Stage], object]
"""Words for ip(8) in the daemon's namespace, or what to do with the stage."""


class Fault(StrEnum):
    """What mptcpd's users complain of."""

    STALE = "stale endpoints"
    MISSED = "missed addresses"
    WRONG = "wrong address"
    COLLISION = "an id or endpoint set by hand"
    MANY = "more than 8 addresses"
    DEAF = "deafness"
    STATE = "state"
    PLUGINS = "plugins"
    SSPI = "sspi"
    USERSPACE = "userspace mode"
    MPTCPIZE = "mptcpize"
    WANTED = "wanted and missing"


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
