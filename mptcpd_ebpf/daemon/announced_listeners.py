# SPDX-License-Identifier: BSD-3-Clause
"""Listening sockets behind announced ports, for as long as the peer may come.

An address announced with a port is joined there, and the kernel refuses the join unless
something listens (`kernel.listeners`).  Whoever announces with `listen` gets that door from
the daemon: one per address and port, shared by all connections that announce it, and shut
when the last of them has withdrawn it or ended.

The peer may come after a restart of the daemon too, so what is open is noted
(`namespace_note`), and the next daemon opens it again for the connections that still live.
"""

import asyncio
import errno
from collections.abc import Container, Iterator
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.commands import AnnounceAddress, KernelCommand, WithdrawAddress
from mptcpd_ebpf.daemon.state_file import StateFile
from mptcpd_ebpf.kernel.errors import KernelError
from mptcpd_ebpf.kernel.listeners import Listeners
from mptcpd_ebpf.kernel.pm_client import CommandAnswer


class _Announced(Struct, frozen=True):
    """A door, and for which connection it is open."""

    token: int
    address_id: int
    ip: str
    port: int


class AnnouncedListeners:
    """The doors of all connections of the daemon's network namespace.

    While open they are watched by the running event loop, which turns strangers away.
    """

    def __init__(self, listeners: Listeners, folder: Path) -> None:
        """`folder` holds the note."""
        self._listeners = listeners
        self._behind: dict[tuple[int, int], SockAddr] = {}
        """By token and address id."""
        self._watched: set[int] = set()
        self._file = StateFile(folder, "listeners", list[_Announced])
        self._unsaved = False

    def reopen(self, tokens: Container[int]) -> Iterator[str]:
        """Opens again what is noted for these connections; yields why one stays shut."""
        for noted in self._file.read() or []:
            self._unsaved = True
            if noted.token not in tokens:
                continue
            try:
                address = self._listeners.open(SockAddr(noted.ip, noted.port))
            except KernelError as error:
                yield str(error)
            else:
                self._behind[noted.token, noted.address_id] = address
        self._watch()

    def open_for(self, command: KernelCommand) -> KernelCommand | CommandAnswer:
        """Opens what the command needs, before it leaves.

        Returns the command with the port that is listened at, or why there is no door.
        """
        if not isinstance(command, AnnounceAddress) or not command.listen:
            return command
        try:
            address = self._listeners.open(SockAddr(command.ip, command.port))
        except KernelError as error:
            return CommandAnswer(errno.EADDRNOTAVAIL, str(error))
        self._watch()
        return replace(command, port=address.port)

    def settle(self, command: KernelCommand, answer: CommandAnswer) -> None:
        """Keeps or shuts the door of a command that `open_for` returned, by the kernel's answer."""
        if isinstance(command, AnnounceAddress) and command.listen:
            address = SockAddr(command.ip, command.port)
            if answer.errno:
                self._shut(address)
            else:
                self._leave(command.token, command.address_id)
                self._behind[command.token, command.address_id] = address
                self._unsaved = True
        elif isinstance(command, WithdrawAddress) and not answer.errno:
            self._leave(command.token, command.address_id)

    def keep_only(self, tokens: Container[int]) -> None:
        """Shuts the doors of all other connections."""
        for token, address_id in list(self._behind):
            if token not in tokens:
                self._leave(token, address_id)

    def save(self) -> None:
        """Writes down what is open, if that has changed.  Raises NotPermitted."""
        if not self._unsaved:
            return
        self._unsaved = False
        noted = [_Announced(*name, *address) for name, address in self._behind.items()]
        if noted:
            self._file.write(noted)
        else:
            self._file.forget()

    def close(self) -> None:
        """Shuts them all; what is noted stays, for the next daemon."""
        for number in self._watched:
            asyncio.get_running_loop().remove_reader(number)
        self._watched.clear()
        self._behind.clear()
        self._listeners.close_all()

    def _leave(self, token: int, address_id: int) -> None:
        address = self._behind.pop((token, address_id), None)
        if address is not None:
            self._unsaved = True
            self._shut(address)

    def _shut(self, address: SockAddr) -> None:
        before = set(self._listeners.filenos())
        self._listeners.close(address)
        for number in before - set(self._listeners.filenos()):
            # A closed descriptor has left the poll by itself, but the loop's book has it yet.
            asyncio.get_running_loop().remove_reader(number)
            self._watched.discard(number)

    def _watch(self) -> None:
        for number in set(self._listeners.filenos()) - self._watched:
            asyncio.get_running_loop().add_reader(number, self._listeners.turn_away)
            self._watched.add(number)
