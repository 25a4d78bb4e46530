# SPDX-License-Identifier: BSD-3-Clause
"""Which connections, subflows and events somebody asks about: one meaning for every command.

A filter that is not set fits everything; one that is set does not fit what is unknown.
"""

import ipaddress
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Filter(NamedTuple):
    """What is asked about; each field narrows it further."""

    token: str | None = None
    """The first hexadecimal digits of a connection's token."""
    address: Network | None = None
    """An address of either end, or a network that contains it."""
    interface: str | None = None
    """Name of the local interface; ``*`` and ``?`` as in a shell."""
    process: str | None = None
    """Process id, or name with ``*`` and ``?``."""
    state: str | None = None
    """A word of the column STATE."""

    def fits_token(self, token: str | None) -> bool:
        return self.token is None or (token is not None and token.startswith(self.token))

    def fits_address(self, addresses: Iterable[str | None]) -> bool:
        """`addresses`: IP addresses, also with a port."""
        if self.address is None:
            return True
        return any(_ip(text) in self.address for text in addresses if text)

    def fits_interface(self, name: str | None) -> bool:
        return self.interface is None or (name is not None and fnmatchcase(name, self.interface))

    def fits_process(self, pid: int | None, comm: str | None) -> bool:
        if self.process is None:
            return True
        if self.process.isdecimal():
            return pid == int(self.process)
        return comm is not None and fnmatchcase(comm, self.process)

    def fits_state(self, *states: str | None) -> bool:
        return self.state is None or self.state in states


def network(text: str) -> Network:
    """An address or network.  Raises ValueError."""
    return ipaddress.ip_network(text, strict=False)


def token_prefix(text: str) -> str:
    """The first digits of a token, as `ls` shows it.  Raises ValueError."""
    digits = text.lower().removeprefix("0x")
    if not 1 <= len(digits) <= 8 or not set(digits) <= set("0123456789abcdef"):
        raise ValueError(f"{text!r} is no token: give the first of its eight hexadecimal digits")
    return digits


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address of ``ip``, ``ip:port`` or ``[ip]:port``."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    return ipaddress.ip_address(text)
