# SPDX-License-Identifier: BSD-3-Clause
"""The same scenario under Debian's mptcpd and under ours, each in a namespace of its own.

Neither tells when it has worked off its events, but both take them in order: once an
address that is added last has its endpoint, all before it has been dealt with.  Where that
endpoint never comes, the daemon has become deaf, which is an outcome too.
"""

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec import Struct

from tests.netns.daemon_process import PROGRAM
from tests.netns.plugin_host import PluginHost, plugin_host

MPTCPD = "/usr/libexec/mptcpd"
CONFIGURATION = "/etc/mptcpd/mptcpd.conf"
LAST = "10.99.0.1"
"""The address that is added last."""
PATIENCE_S = 1.0
ATTEMPTS = 4

USUAL = ("--addr-flags=subflow", "--notify-flags=existing,skip_link_local,skip_loopback")
"""What every scenario starts with; what it says itself comes later and counts."""

COMMANDS = {
    "mptcpd": (MPTCPD,),
    "ours": (PROGRAM, "daemon", "--probes=netlink", "--mptcpd-conf", CONFIGURATION),
}


class Outcome(Struct, frozen=True, kw_only=True):
    """What can be seen from outside when a scenario has been played."""

    table: tuple[str, ...]
    """Endpoints, each as ``address flag flag``; that of the last address left out."""
    limits: tuple[int, int]
    """Subflows, accepted addresses."""
    path_manager: str
    deaf: bool
    after: tuple[str, ...]
    """Endpoints after SIGTERM."""
    exit_code: int


class Stage:
    """A namespace in which one of the two runs; what a scenario's steps act on."""

    def __init__(self, host: PluginHost, arguments: tuple[str, ...], log: Path) -> None:
        self.host = host
        self._arguments = arguments
        self._log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.host.prefix, *self._arguments], stdout=log, stderr=log
            )

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit code; 0 if it has ended before."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(20)

    def restart(self) -> None:
        self.stop()
        self.start()

    def rows(self) -> tuple[str, ...]:
        """The endpoint table."""
        flags = ("subflow", "signal", "backup", "fullmesh")
        return tuple(
            sorted(
                " ".join([address, *(flag for flag in flags if row.get(flag))])
                for address, row in self.host.endpoints.items()
                if address != LAST
            )
        )

    def settle(self) -> bool:
        """Waits until all events were worked off; False if that does not show.

        Whoever has not begun to listen misses the address, so it is added again.
        """
        for _ in range(ATTEMPTS):
            self.host.ip(f"addr add {LAST}/24 dev z")
            if self._within(lambda: LAST in self.host.table):
                return True
            self.host.ip(f"addr del {LAST}/24 dev z")
        return False

    def wait_for(self, table: tuple[str, ...], limits: tuple[int, int] | None) -> None:
        """Gives what takes its time, such as a second attempt, the time."""
        self._within(lambda: self.rows() == table and limits in (None, self.host.limits))

    def _within(self, condition: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.process is not None
            if time.monotonic() > deadline or self.process.poll() is not None:
                return False
            time.sleep(0.01)
        return True


@contextlib.contextmanager
def stage(name: str, arguments: tuple[str, ...], folder: Path) -> Iterator[Stage]:
    """A bare namespace with an interface `z` for the last address, and a daemon to start."""
    with plugin_host() as host:
        host.veth("z")
        control = ("--control", str(folder / f"{name}.sock")) if name == "ours" else ()
        there = Stage(host, (*COMMANDS[name], *control, *USUAL, *arguments), folder / f"{name}.log")
        try:
            yield there
        finally:
            if there.process is not None and there.process.poll() is None:
                there.process.kill()
                there.process.wait()
