# SPDX-License-Identifier: BSD-3-Clause
"""Address ids for our own addresses (RFC 8684, 3.2: 1…255, 0 is the initial address).

Ids live per connection, and the kernel refuses an address whose id differs from the
one it knows (net/mptcp/pm_userspace.c).  So one id per address is proposed for the
whole namespace, the lowest free one, and a connection in which the kernel already uses
another keeps that.
"""

from mptcpd_ebpf.core.model import Connection

HIGHEST_ID = 255


class AddressIds:
    """Proposes ids, the same one for the same address as long as it is remembered."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def propose(self, ip: str) -> int:
        """The namespace-wide id of an address.  Raises OverflowError after 255 addresses."""
        known = self._ids.get(ip)
        if known is not None:
            return known
        taken = set(self._ids.values())
        for candidate in range(1, HIGHEST_ID + 1):
            if candidate not in taken:
                self._ids[ip] = candidate
                return candidate
        raise OverflowError(f"{ip}: all {HIGHEST_ID} address ids are in use")

    def forget(self, ip: str) -> None:
        self._ids.pop(ip, None)

    def for_connection(self, connection: Connection, ip: str) -> int:
        """The id that the kernel will accept for `ip` in this connection."""
        adopted = connection.local_ids.get(ip)
        if adopted is not None:
            return adopted
        proposed = self.propose(ip)
        taken = set(connection.local_ids.values())
        if proposed not in taken:
            return proposed
        for candidate in range(HIGHEST_ID, 0, -1):
            if candidate not in taken:
                return candidate
        raise OverflowError(f"{ip}: all {HIGHEST_ID} address ids of the connection are in use")
