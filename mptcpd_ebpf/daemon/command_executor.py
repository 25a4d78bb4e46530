# SPDX-License-Identifier: BSD-3-Clause
"""Carries out decided commands through the kernel, and returns its answers.

A command may need more than its netlink message: a listening socket for an announced port
(`AnnouncedListeners`), a record that an endpoint is ours (`EndpointLedger`), or a check of the
route that a join would take (`detour`).  The state of the first two is saved after the commands of
a turn, because writing a file takes longer than all of them.
"""

import logging
from collections.abc import Callable, Container, Iterable

from mptcpd_ebpf.core.commands import CreateSubflow, KernelCommand
from mptcpd_ebpf.core.events import ConnectionMode, EndpointsRead, ModesRead
from mptcpd_ebpf.daemon.announced_listeners import AnnouncedListeners
from mptcpd_ebpf.daemon.endpoint_ledger import EndpointLedger
from mptcpd_ebpf.kernel.errors import KernelError
from mptcpd_ebpf.kernel.pm_client import CommandAnswer, PmClient

log = logging.getLogger("mptcpd-ebpf")

CheckRoute = Callable[[CreateSubflow], CommandAnswer | None]
"""Returns why a join is refused, None if it is not (`kernel.detour`)."""


class CommandExecutor:
    """Carries out commands in the daemon's network namespace."""

    def __init__(
        self,
        pm: PmClient,
        ledger: EndpointLedger,
        listeners: AnnouncedListeners,
        check_route: CheckRoute | None,
    ) -> None:
        """`check_route` refuses a join that would leave by another interface.

        None on a kernel that binds joins to their interface.
        """
        self._pm = pm
        self._ledger = ledger
        self._listeners = listeners
        self._check_route = check_route

    def execute(
        self, command: KernelCommand, *, manual: bool = False
    ) -> tuple[KernelCommand, CommandAnswer]:
        """Carries out a command; returns it with the port that was chosen, and the answer.

        `manual`: an operator's command; what it creates in the endpoint table is not ours.
        """
        wrong_route = self._wrong_route(command)
        if wrong_route is not None:
            return command, wrong_route
        ready = self._listeners.open_for(command)
        if isinstance(ready, CommandAnswer):
            return command, ready
        execute = self._ledger.execute_manual if manual else self._ledger.execute
        answer = execute(ready)
        self._listeners.settle(ready, answer)
        return ready, answer

    def _wrong_route(self, command: KernelCommand) -> CommandAnswer | None:
        """Why a join would leave by another interface, on a kernel that does not bind it."""
        if self._check_route is None or not isinstance(command, CreateSubflow):
            return None
        return self._check_route(command)

    def read_endpoints(self) -> EndpointsRead:
        """The endpoint table as it is now.  Raises NetlinkRefused."""
        return self._ledger.read()

    def read_modes(self, tokens: Iterable[int]) -> ModesRead:
        """Which path manager has these connections; those that are gone are left out."""
        answers = [(token, self._pm.in_kernel(token)) for token in tokens]
        return ModesRead(
            modes=[
                ConnectionMode(token=token, in_kernel=answer)
                for token, answer in answers
                if answer is not None
            ]
        )

    def reopen_listeners(self, tokens: Container[int]) -> None:
        """Listens again where an earlier daemon did, for the connections that still exist."""
        for complaint in self._listeners.reopen(tokens):
            log.warning(
                "the peer can no longer join an address that an earlier daemon announced: %s",
                complaint,
            )

    def keep_listeners_of(self, tokens: Container[int]) -> None:
        """Closes the listeners of all other connections."""
        self._listeners.keep_only(tokens)

    def save(self) -> None:
        """Saves what has changed, and logs what cannot be saved."""
        for what, part in (
            ("the daemon's own endpoints", self._ledger),
            ("the listeners of announced addresses", self._listeners),
        ):
            try:
                part.save()
            except KernelError as error:
                log.error("%s cannot be saved: %s", what, error)

    def close(self) -> None:
        self._listeners.close()
