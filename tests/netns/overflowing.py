# SPDX-License-Identifier: BSD-3-Clause
"""Makes a daemon's netlink sockets overflow: it is stopped while they get more than they hold."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from mptcpd_ebpf.kernel.pm_events import RECEIVE_BUFFER
from mptcpd_ebpf.kernel.transport import NETLINK_GENERIC, NETLINK_ROUTE
from mptcpd_ebpf.lab import Lab
from tests.netns.daemon_process import RunningDaemon
from tests.netns.mptcp_sockets import listen
from tests.waiting import until


@contextlib.contextmanager
def stopped(running: RunningDaemon) -> Iterator[None]:
    """The daemon reads nothing meanwhile, so that its sockets fill."""
    running.process.send_signal(signal.SIGSTOP)
    stat = Path(f"/proc/{running.process.pid}/stat")
    until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "it is stopped")
    try:
        yield
    finally:
        running.process.send_signal(signal.SIGCONT)


def dropped(lab: Lab, running: RunningDaemon, protocol: int) -> int:
    """How many messages the daemon's sockets of a netlink protocol have dropped."""
    return _sum(lab, running, protocol, column=8)


def _sum(lab: Lab, running: RunningDaemon, protocol: int, *, column: int) -> int:
    """Of a column of /proc/net/netlink, over the daemon's sockets of a protocol."""
    with lab.client.entered():
        rows = [line.split() for line in Path("/proc/net/netlink").read_text().splitlines()[1:]]
    inodes = {
        int(link.removeprefix("socket:[").rstrip("]"))
        for link in map(_link, Path(f"/proc/{running.process.pid}/fd").iterdir())
        if link.startswith("socket:[")
    }
    return sum(
        int(row[column]) for row in rows if int(row[1]) == protocol and int(row[9]) in inodes
    )


def _link(descriptor: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return str(descriptor.readlink())
    return ""


def listen_until_dropped(lab: Lab, running: RunningDaemon) -> None:
    """Opens and closes MPTCP listeners until the socket for path-manager events overflows."""
    before = _sum(lab, running, NETLINK_GENERIC, column=4)
    for count in range(1, RECEIVE_BUFFER // 512):
        listen(lab.client, "127.0.0.1").close()
        if count % 1000 == 0:
            if dropped(lab, running, NETLINK_GENERIC):
                return
            # Two events each, some 700 bytes with the kernel's own overhead.
            if _sum(lab, running, NETLINK_GENERIC, column=4) < before + 500_000:
                pytest.skip("this kernel sends no events about listeners")
    pytest.fail("the socket did not overflow")


def change_addresses_until_dropped(lab: Lab, running: RunningDaemon) -> None:
    """Adds and removes an address until the socket for the local network overflows."""
    lines = ["address add 192.0.2.1/32 dev lo", "address del 192.0.2.1/32 dev lo"] * 1000
    for _ in range(40):
        lab.client.batch("ip", lines)
        if dropped(lab, running, NETLINK_ROUTE):
            return
    pytest.fail("the socket did not overflow")
