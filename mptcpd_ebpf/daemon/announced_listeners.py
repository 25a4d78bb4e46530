# SPDX-License-Identifier: BSD-3-Clause
"""Listening sockets for announced ports, open while the peer may join there.

The peer joins an address that was announced with a port at that port, and the kernel refuses the
join unless a socket listens there (`kernel.listeners`).  For an announcement with `listen` the
daemon opens a listener: one per address and port, shared by all connections that announce it, and
closed when the last of them has withdrawn it or is closed.

The peer may also join after a restart of the daemon.  So the open listeners are saved in a state
file, and the next daemon opens those of the live connections again.
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
    """A listener and its connection."""

    token: int
    address_id: int
    ip: str
    port: int


class AnnouncedListeners:
    """The listeners of all connections of the daemon's network namespace.

    The running event loop watches them and closes connections that are no joins.
    """

    def __init__(self, listeners: Listeners, folder: Path) -> None:
        """`folder` holds the state file."""
        self._listeners = listeners
        self._addresses: dict[tuple[int, int], SockAddr] = {}
        """By token and address id."""
        self._watched: set[int] = set()
        self._file = StateFile(folder, "listeners", list[_Announced])
        self._unsaved = False

    def reopen(self, tokens: Container[int]) -> Iterator[str]:
        """Opens the saved listeners of these connections; yields why one cannot be opened."""
        for saved in self._file.read() or []:
            self._unsaved = True
            if saved.token not in tokens:
                continue
            try:
                address = self._listeners.open(SockAddr(saved.ip, saved.port))
            except KernelError as error:
                yield str(error)
            else:
                self._addresses[saved.token, saved.address_id] = address
        self._watch()

    def open_for(self, command: KernelCommand) -> KernelCommand | CommandAnswer:
        """Opens the listener that a command needs, before the command is sent.

        Returns the command with the listener's port, or why there is no listener.
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
        """Keeps or closes the listener of a command from `open_for`, by the kernel's answer."""
        if isinstance(command, AnnounceAddress) and command.listen:
            address = SockAddr(command.ip, command.port)
            if answer.errno:
                self._close(address)
            else:
                self._remove(command.token, command.address_id)
                self._addresses[command.token, command.address_id] = address
                self._unsaved = True
        elif isinstance(command, WithdrawAddress) and not answer.errno:
            self._remove(command.token, command.address_id)

    def keep_only(self, tokens: Container[int]) -> None:
        """Closes the listeners of all other connections."""
        for token, address_id in list(self._addresses):
            if token not in tokens:
                self._remove(token, address_id)

    def save(self) -> None:
        """Writes the open listeners to the state file, if they changed.  Raises NotPermitted."""
        if not self._unsaved:
            return
        self._unsaved = False
        announced = [_Announced(*name, *address) for name, address in self._addresses.items()]
        if announced:
            self._file.write(announced)
        else:
            self._file.remove()

    def close(self) -> None:
        """Closes them all; the state file stays, for the next daemon."""
        for number in self._watched:
            asyncio.get_running_loop().remove_reader(number)
        self._watched.clear()
        self._addresses.clear()
        self._listeners.close_all()

    def _remove(self, token: int, address_id: int) -> None:
        address = self._addresses.pop((token, address_id), None)
        if address is not None:
            self._unsaved = True
            self._close(address)

    def _close(self, address: SockAddr) -> None:
        before = set(self._listeners.filenos())
        self._listeners.close(address)
        for number in before - set(self._listeners.filenos()):
            # The kernel has removed the closed descriptor from epoll; asyncio still lists it.
            asyncio.get_running_loop().remove_reader(number)
            self._watched.discard(number)

    def _watch(self) -> None:
        for number in set(self._listeners.filenos()) - self._watched:
            asyncio.get_running_loop().add_reader(number, self._listeners.close_accepted)
            self._watched.add(number)
