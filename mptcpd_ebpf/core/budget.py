# SPDX-License-Identifier: BSD-3-Clause
"""How many destructive commands may pass: an allowance by connection, and a rate by path.

A path that dies takes every connection along at once, so what the core's own evidence calls for
passes without a rate, a few times a minute for each connection and path.  Everything else, such as
destroying subflows that work or destroying and creating in circles, passes at a rate for each
author and path.
"""

from collections import deque

from mptcpd_ebpf.core.evidence import Grounds
from mptcpd_ebpf.core.model import SECOND

Path = tuple[str, str]
"""Our address and the peer's."""

MINUTE = 60 * SECOND

ALLOWED = {Grounds.CUT_OFF: 3, Grounds.SILENT: 3, Grounds.HARMS: 1}
"""How often a minute a connection may leave a path without a rate.  A path that is silent carries
nothing that could be lost; but one that lets handshakes through and no data would be left and
joined in circles."""

ONCE = 1
"""How often what loses nothing passes: a demotion while a regular subflow is left, or a withdrawal
without a subflow."""


class Budget:
    """Times are nanoseconds."""

    def __init__(self, per_second: int) -> None:
        self.per_second = per_second
        """Commands of one author on one path within any second; 0: none."""
        self._passed: dict[tuple[str, Path], deque[int]] = {}
        """When the last ones passed, at most `per_second` of them."""
        self._left: dict[int, dict[tuple[str, Path], list[int]]] = {}
        """By token, and by what was done to which path: when, within the last minute."""

    @property
    def used(self) -> bool:
        """Whether something has passed at a rate within the last second, as far as expired."""
        return bool(self._passed)

    def take_allowance(self, token: int, what: str, path: Path, times: int, now: int) -> bool:
        """Takes one of `times` a minute; False if they are used up."""
        of_one = self._left.setdefault(token, {})
        used = [at for at in of_one.get((what, path), ()) if now - at < MINUTE]
        if len(used) >= times:
            return False
        of_one[what, path] = [*used, now]
        return True

    def take(self, author: str, path: Path, now: int) -> bool:
        """Takes one of this second's; False if they are used up."""
        at = self.room_at(author, path, now)
        if at is None or at > now:
            return False
        passed = self._passed.pop((author, path), None) or deque()
        self._passed[author, path] = passed  # the one that passed last comes last
        passed.append(now)
        while len(passed) > self.per_second:
            passed.popleft()
        return True

    def room_at(self, author: str, path: Path, now: int) -> int | None:
        """When the next one may pass; None: never."""
        if not self.per_second:
            return None
        passed = self._passed.get((author, path))
        if passed is None or len(passed) < self.per_second:
            return now
        return max(now, passed[-self.per_second] + SECOND)

    def expire(self, now: int) -> None:
        """Forgets the paths on which nothing has passed within a second."""
        while self._passed:
            key, passed = next(iter(self._passed.items()))
            if passed[-1] + SECOND > now:
                return
            del self._passed[key]

    def connection_closed(self, token: int) -> None:
        self._left.pop(token, None)
