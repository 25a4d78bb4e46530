# SPDX-License-Identifier: BSD-3-Clause
"""Which endpoints and limits of the in-kernel path manager are ours.

The kernel's table does not say who created an entry.  So the daemon saves what it adds in a state
file until it removes it: after a daemon that was killed, or keeps its endpoints at exit, the next
one recognizes them.  An entry is ours while the kernel shows it unchanged: address, port, id,
interface and flags.  An entry that another program has changed belongs to that program.  The id
alone is not enough, because in an empty table the kernel starts again at 1.  An entry that another
program creates with exactly the same values cannot be distinguished from ours.
"""

from pathlib import Path

from msgspec import Struct, field
from msgspec.structs import replace

from mptcpd_ebpf.core.commands import (
    AddEndpoint,
    ChangeEndpoint,
    FlushEndpoints,
    KernelCommand,
    RemoveEndpoint,
    SetLimits,
)
from mptcpd_ebpf.core.endpoints import CHANGEABLE, Endpoint, EndpointFlag, Limits
from mptcpd_ebpf.core.events import EndpointsRead
from mptcpd_ebpf.daemon.state_file import StateFile
from mptcpd_ebpf.kernel.pm_client import CommandAnswer, PmClient


class _Made(Struct, frozen=True):
    """An endpoint that we added, with the values that we last set."""

    ip: str
    port: int
    address_id: int
    """0 until the table has been read and shows what the kernel chose."""
    if_index: int
    flags: EndpointFlag

    def matches(self, endpoint: Endpoint) -> bool:
        """Whether an entry of the kernel's table is this one."""
        seen = replace(_made(endpoint), address_id=self.address_id)
        return self == seen and self.address_id in (0, endpoint.address_id)


def _made(endpoint: Endpoint | AddEndpoint) -> _Made:
    return _Made(endpoint.ip, endpoint.port, endpoint.address_id, endpoint.if_index, endpoint.flags)


class _Ledger(Struct):
    endpoints: list[_Made] = field(default_factory=list)
    limits_before: Limits | None = None
    limits_ours: Limits | None = None


class EndpointLedger:
    """Carries out commands and records which endpoints and limits are ours."""

    def __init__(self, pm: PmClient, folder: Path) -> None:
        """`folder` holds the state file."""
        self._pm = pm
        self._file = StateFile(folder, "endpoints", _Ledger)
        self._ledger = self._file.read() or _Ledger()
        self._unsaved = False

    def execute(self, command: KernelCommand) -> CommandAnswer:
        """Carries out any command; those on endpoints and limits are recorded."""
        before = self._ledger.limits_before
        if isinstance(command, SetLimits) and before is None:
            before = self._pm.limits()
        answer = self._pm.execute_now(command)
        if answer.errno:
            return answer
        ledger = self._ledger
        match command:
            case AddEndpoint():
                ledger.endpoints.append(_made(command))
            case ChangeEndpoint():
                self._changed(command)
            case RemoveEndpoint():
                ledger.endpoints = [
                    made for made in ledger.endpoints if made.address_id != command.address_id
                ]
            case FlushEndpoints():
                ledger.endpoints = []
            case SetLimits():
                ledger.limits_before = before
                ledger.limits_ours = Limits(
                    subflows=command.subflows, add_addr_accepted=command.add_addr_accepted
                )
                if ledger.limits_ours == ledger.limits_before:
                    ledger.limits_before = ledger.limits_ours = None
            case _:
                return answer
        self._unsaved = True
        return answer

    def execute_manual(self, command: KernelCommand) -> CommandAnswer:
        """Carries out an operator's command: what it creates or sets is not ours."""
        answer = self._pm.execute_now(command)
        if answer.errno:
            return answer
        if isinstance(command, SetLimits):
            self._ledger.limits_before = self._ledger.limits_ours = None
            self._unsaved = True
        elif isinstance(command, ChangeEndpoint):
            # An endpoint of ours that the operator changes stays ours.
            self._changed(command)
            self._unsaved = True
        return answer

    def _changed(self, command: ChangeEndpoint) -> None:
        self._ledger.endpoints = [
            replace(made, flags=made.flags & ~CHANGEABLE | command.flags & CHANGEABLE)
            if made.address_id == command.address_id
            else made
            for made in self._ledger.endpoints
        ]

    def read(self) -> EndpointsRead:
        """The table as it is now.  Raises NetlinkRefused."""
        limits = self._pm.limits()
        endpoints = [self._marked(endpoint) for endpoint in self._pm.endpoints()]
        ours = [_made(endpoint) for endpoint in endpoints if endpoint.ours]
        stale = self._ledger.limits_ours != limits
        if ours != self._ledger.endpoints or (stale and self._ledger.limits_ours is not None):
            self._ledger.endpoints = ours
            if stale:
                self._ledger.limits_before = self._ledger.limits_ours = None
            self._unsaved = True
        return EndpointsRead(
            endpoints=endpoints,
            limits=limits,
            highest_limit=self._pm.highest_limit(),
            limits_before=self._ledger.limits_before,
        )

    def _marked(self, endpoint: Endpoint) -> Endpoint:
        return replace(endpoint, ours=any(m.matches(endpoint) for m in self._ledger.endpoints))

    def save(self) -> None:
        """Writes the state file, if something changed.  Raises NotPermitted."""
        if not self._unsaved:
            return
        self._unsaved = False
        if self._ledger == _Ledger():
            self._file.remove()
        else:
            self._file.write(self._ledger)
