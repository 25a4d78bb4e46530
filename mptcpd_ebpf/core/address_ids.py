# SPDX-License-Identifier: BSD-3-Clause
"""Address ids for our own addresses (RFC 8684, 3.2: 1…255, 0 is the initial address).

Ids live per connection, and the kernel refuses an address whose id differs from the
one it knows (net/mptcp/pm_userspace.c).  So one id per address, the lowest free one, is proposed
for the whole namespace; a connection in which the kernel already uses another id keeps that one.
"""

from mptcpd_ebpf.core.model import Connection

HIGHEST_ID = 255


class AddressIds:
    """Proposes ids: the same one for an address as long as the address is remembered."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def propose(self, ip: str) -> int:
        """The namespace-wide id of an address.

        When all 255 are in use, the least recently requested address loses its id; where a live
        connection still uses it, `for_connection` finds another.
        """
        known = self._ids.pop(ip, None)
        if known is None and len(self._ids) == HIGHEST_ID:
            known = self._ids.pop(next(iter(self._ids)))
        if known is None:
            taken = set(self._ids.values())
            known = next(id_ for id_ in range(1, HIGHEST_ID + 1) if id_ not in taken)
        self._ids[ip] = known
        return known

    def assign(self, ip: str, address_id: int) -> None:
        """Sets the id of an address; an address that had it gets another one.

        Raises ValueError unless it is 1…255.
        """
        if not 1 <= address_id <= HIGHEST_ID:
            raise ValueError(f"address id {address_id} is not 1…{HIGHEST_ID}")
        self._ids = {known: id_ for known, id_ in self._ids.items() if id_ != address_id}
        self._ids[ip] = address_id

    def forget(self, ip: str) -> None:
        """Frees the id of an address; nothing happens if it has none.

        Live connections that use it keep it (`for_connection`).
        """
        self._ids.pop(ip, None)

    def for_connection(self, connection: Connection, ip: str) -> int:
        """The id that the kernel will accept for `ip` in this connection.

        Raises OverflowError if the connection uses all 255.
        """
        adopted = connection.local_ids.get(ip)
        if adopted is not None:
            return adopted
        proposed = self.propose(ip)
        taken = set(connection.local_ids.values())
        if proposed not in taken:
            return proposed
        # Count down from 255, starting at a place that depends on the proposed id: two addresses
        # that collide before the kernel has learnt the first must not get the same id.
        for step in range(HIGHEST_ID):
            candidate = HIGHEST_ID - (proposed - 1 + step) % HIGHEST_ID
            if candidate not in taken:
                return candidate
        raise OverflowError(f"{ip}: all {HIGHEST_ID} address ids of the connection are in use")
