# SPDX-License-Identifier: BSD-3-Clause
"""How the kernel's MPTCP counters change while a test runs."""

from mptcpd_ebpf.kernel import counters
from mptcpd_ebpf.lab import Host
from tests.waiting import until

NEWER = {
    "AddAddrTx",
    "DssFallback",
    "EchoAddTx",
    "MPCapableDataFallback",
    "MPJoinRejected",
    "MPJoinSynBackupRx",
    "MPJoinSynTx",
}
"""Counters that came after Linux 6.1, the oldest kernel the suite runs on."""

WRONG_HMAC = ("MPJoinSynAckHMacFailure", "MPJoinAckHMacFailure")
"""What counts a SYN/ACK with a wrong HMAC; the second one on Linux 6.18.15."""


class Counters:
    """How a host's MPTcpExt counters changed since the making of this object."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._before = self._read()

    def expect(self, **changes: int) -> None:
        """Waits for these changes and asserts that the counters changed by exactly as much.

        Counters that an older kernel does not have are left out.
        """
        unknown = changes.keys() - self._before.keys()
        assert unknown <= NEWER, f"no such counters: {unknown - NEWER}"
        changes = {name: count for name, count in changes.items() if name not in unknown}

        def reached() -> bool:
            seen = self.changed()
            return all(seen.get(name, 0) >= count for name, count in changes.items())

        until(reached, lambda: f"wanted {changes}, the counters changed by {self.changed()}")
        seen = self.changed()
        assert {name: seen.get(name, 0) for name in changes} == changes

    def changed(self) -> dict[str, int]:
        """Every counter that moved, and by how much."""
        now = self._read()
        return {name: now[name] - old for name, old in self._before.items() if now[name] != old}

    def _read(self) -> dict[str, int]:
        with self._host.entered():
            return counters.read()
