# SPDX-License-Identifier: BSD-3-Clause
"""The hands: what is decided goes through here to the kernel, and its answer comes back.

A command may need more than its netlink message: a listening socket for an announced port
(`AnnouncedListeners`), a record that an endpoint is ours (`EndpointLedger`), or a check of the
route that a join would take (`detour`).  The first two are written to disk after the commands of
a turn, because a file takes longer than all commands.
"""

import logging
from collections.abc import Container, Iterable

from mptcpd_ebpf.core.commands import CreateSubflow, KernelCommand
from mptcpd_ebpf.core.events import ConnectionMode, EndpointsRead, ModesRead
from mptcpd_ebpf.daemon.announced_listeners import AnnouncedListeners
from mptcpd_ebpf.daemon.endpoint_ledger import EndpointLedger
from mptcpd_ebpf.kernel.detour import detour
from mptcpd_ebpf.kernel.errors import KernelError
from mptcpd_ebpf.kernel.pm import joins_marked
from mptcpd_ebpf.kernel.pm_client import CommandAnswer, PmClient

log = logging.getLogger("mptcpd-ebpf")


class CommandExecutor:
    """Carries out commands in the daemon's network namespace."""

    def __init__(self, pm: PmClient) -> None:
        self._pm = pm
        self._ledger = EndpointLedger(pm)
        self._listeners = AnnouncedListeners()

    def execute(
        self, command: KernelCommand, *, by_person: bool = False
    ) -> tuple[KernelCommand, CommandAnswer]:
        """The command as it was carried out, with the port that was chosen, and the answer.

        What a person (`by_person`) makes in the endpoint table is not ours.
        """
        led_astray = self._led_astray(command)
        if led_astray is not None:
            return command, led_astray
        ready = self._listeners.open_for(command)
        if isinstance(ready, CommandAnswer):
            return command, ready
        execute = self._ledger.execute_by_hand if by_person else self._ledger.execute
        answer = execute(ready)
        self._listeners.settle(ready, answer)
        return ready, answer

    def _led_astray(self, command: KernelCommand) -> CommandAnswer | None:
        """Only a kernel that binds no join to its interface can be."""
        if not isinstance(command, CreateSubflow) or joins_marked():
            return None
        return detour(command)

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

    def reopen_doors(self, tokens: Container[int]) -> None:
        """Listens again where an earlier daemon did, for the connections that still live."""
        for complaint in self._listeners.reopen(tokens):
            log.warning("an address announced before cannot be joined any more: %s", complaint)

    def keep_doors_of(self, tokens: Container[int]) -> None:
        """Shuts the doors of all other connections."""
        self._listeners.keep_only(tokens)

    def save(self) -> None:
        """Writes down what has changed."""
        for what, keeper in (
            ("what is ours in the endpoint table", self._ledger),
            ("which announced ports are listened at", self._listeners),
        ):
            try:
                keeper.save()
            except KernelError as error:
                log.error("%s could not be noted: %s", what, error)

    def close(self) -> None:
        self._listeners.close()
