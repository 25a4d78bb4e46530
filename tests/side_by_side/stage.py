# SPDX-License-Identifier: BSD-3-Clause
"""The environment of a scenario: one of the two daemons, in separate namespaces.

A bare stage is one namespace.  A live one is a lab of two hosts on two paths, and the
daemon runs on one of them; all packets of its host are captured, and `connect` opens a connection
that stays open until the stage is left.

Neither daemon reports when it has processed its events, but both process them in order: when the
address that is added last has its endpoint, all earlier events have been processed.  If that
endpoint never appears, the daemon is unresponsive, which is also an outcome.
"""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.commands import CreateSubflow
from mptcpd_ebpf.kernel import diag
from mptcpd_ebpf.kernel.pm_client import PmClient
from mptcpd_ebpf.lab import Host, Lab
from mptcpd_ebpf.lab import Path as LabPath
from mptcpd_ebpf.lab.kernel_path_manager import raise_limits
from mptcpd_ebpf.lab.waiting import wait_until
from mptcpd_ebpf.lab.wire import Wire
from tests.netns.daemon_process import PROGRAM
from tests.netns.mptcp_sockets import connected_sockets, exchange
from tests.netns.plugin_host import PluginHost, plugin_host
from tests.side_by_side.spoken import spoken
from tests.waiting import SLOWNESS

Manager = Literal["mptcpd", "ours"]
Where = Literal["bare", "client", "server"]

MPTCPD = "/usr/libexec/mptcpd"
CONFIGURATION = Path("/etc/mptcpd/mptcpd.conf")
LAST = "10.99.0.1"
"""The address that is added last."""
PATIENCE_S = 20.0 * SLOWNESS
"""Deadline of an expected outcome."""
ATTEMPT_S = 1.5 * SLOWNESS
ATTEMPTS, ATTEMPTS_IF_UNRESPONSIVE = 15, 3
USUAL = ("--addr-flags=subflow", "--notify-flags=existing,skip_link_local,skip_loopback")
"""Arguments of every scenario; its own follow and override them."""

WITH_MOUNTS = ("unshare", "--mount", "--", "sh", "-c")
"""mptcpd has no option for its configuration file: the scenario's is mounted over it."""


class Stage:
    """The daemon and its host, on which the steps of a scenario act."""

    def __init__(
        self, name: Manager, host: PluginHost, folder: Path, arguments: tuple[str, ...]
    ) -> None:
        self.name = name
        self.host = host
        self.folder = folder
        self.arguments = list(arguments)
        self.configuration = CONFIGURATION
        self.environment: dict[str, str] = {}
        self.mounts: list[str] = []
        """Commands that change the daemon's mount namespace."""
        self.journal: socket.socket | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self.lab: Lab | None = None
        self.wire: Wire | None = None
        self.connections: list[Connection] = []
        self.hidden: set[int] = set()
        """Server ports of connections that only serve to wait."""
        self.attempts = ATTEMPTS
        """How often an action is repeated that the daemon may have missed."""
        self.noted: list[str] = []
        """Results of steps, to compare."""
        self.stack = ExitStack()
        """Closed when the stage is left."""

    # --- the daemon

    def command(self) -> list[str]:
        """The command that starts the daemon inside the namespace."""
        if self.name == "ours":
            control = ("--control", str(self.folder / "ours.sock"))
            source: tuple[str, ...] = ("--mptcpd-conf", str(self.configuration))
            first = [PROGRAM, "daemon", "--probes=netlink", *control]
            if any(word.startswith("--config") for word in self.arguments):
                source = ()
            return [*first, *source, *self.arguments]
        return [MPTCPD, *self.arguments]

    def mounted(self, command: list[str]) -> list[str]:
        """`command` in a mount namespace of its own, if there is anything to mount."""
        mounts = list(self.mounts)
        if self.name == "mptcpd" and self.configuration is not CONFIGURATION:
            mounts.append(f"mount --bind {self.configuration} {CONFIGURATION}")
        return (
            [*WITH_MOUNTS, " && ".join([*mounts, 'exec "$@"']), "-", *command]
            if mounts
            else command
        )

    def start(self) -> None:
        self.starts += 1
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.host.prefix, *self.mounted(self.command())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | self.environment,
            )

    @property
    def log(self) -> str:
        """What the daemon has said so far."""
        return (self.folder / f"{self.name}.log").read_text(errors="replace")

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit code, also if it has ended before."""
        assert self.process is not None
        if self.runs:
            self.process.send_signal(number)
        return self.process.wait(20 * SLOWNESS)

    def ask(self, *words: str) -> str:
        """What a command says to our daemon; empty for mptcpd, which cannot be asked."""
        if self.name == "mptcpd":
            return ""
        return self.host.run(PROGRAM, *words, "--control", str(self.folder / "ours.sock"))

    # --- what can be seen from outside

    def rows(self) -> tuple[str, ...]:
        """The endpoint table, each as ``address flag flag``; that of the last left out."""
        flags = ("subflow", "signal", "backup", "fullmesh")
        return tuple(
            sorted(
                " ".join([address, *(flag for flag in flags if row.get(flag))])
                for address, row in self.host.endpoints.items()
                if address != LAST
            )
        )

    def spoken(self) -> tuple[str, ...]:
        """What MPTCP said on the wire so far."""
        return spoken(self.wire.matching(), LAST, self.hidden) if self.wire else ()

    @property
    def path_manager(self) -> str:
        return self.host.run("sysctl", "-n", "net.mptcp.path_manager").strip()

    # --- waiting

    def within(self, condition: Callable[[], bool], seconds: float = PATIENCE_S) -> bool:
        """Whether it came true in time, and before the daemon ended."""
        outcome = wait_until(
            lambda: "true" if condition() else "" if self.runs else "ended", seconds
        )
        return outcome == "true"

    def settle(self) -> bool:
        """Waits until all events were worked off; False if that does not show.

        Whoever has not begun to listen misses the address, so it is added again.
        """
        self.await_readiness()
        if self.lab and self.name == "mptcpd":
            # Which ids its host's own addresses get must not depend on the last one's coming.
            self.within(lambda: bool(self.rows()))
        return self.attempt(
            lambda: self.host.ip(f"addr add {LAST}/24 dev z"),
            lambda: LAST in self.host.table,
            lambda: self.host.ip(f"addr del {LAST}/24 dev z"),
        )

    def await_readiness(self) -> None:
        """Ours tells when it has begun to listen, if it is not told to be silent."""
        silent = any(word.startswith(("-l", "-dl", "--log")) for word in self.arguments)
        if self.name == "ours" and not silent:
            self.within(lambda: self.log.count("INFO ready:") >= self.starts)

    def clear(self) -> None:
        """Takes the last address back, and waits until that is worked off too."""
        self.host.ip(f"addr flush dev z to {LAST}")
        self.within(lambda: LAST not in self.host.table)

    def attempt(
        self, do: Callable[[], object], done: Callable[[], bool], undo: Callable[[], object]
    ) -> bool:
        """Tries until the daemon reacts; False if it never does, or ends."""
        for _ in range(self.attempts):
            do()
            if self.within(done, ATTEMPT_S):
                return True
            undo()
            if not self.runs:
                break
        return False

    # --- live stages

    @property
    def near(self) -> Host:
        """The lab's host on which the daemon runs."""
        assert self.lab is not None
        here = self.host.prefix[1].rpartition("/")[2]
        return self.lab.client if self.lab.client.name == here else self.lab.server

    def connect(self, *, port: int = 0, hidden: bool = False) -> "Connection":
        """One more connection of the client to the server, over the first path."""
        assert self.lab is not None
        server_ip = self.lab.paths[0].server_ip
        ends = self.stack.enter_context(
            # On all its addresses: joins to the others must find the listener.
            connected_sockets(
                self.lab.client, self.lab.server, server_ip, listen_on="0.0.0.0", port=port
            )
        )
        made = Connection(self.lab.client, ends.client, ends.server)
        if hidden:
            self.hidden.add(made.remote.port)
        else:
            self.connections.append(made)
        return made


class Connection:
    """Both ends, held by the test's own process."""

    def __init__(self, host: Host, client: socket.socket, server: socket.socket) -> None:
        self._host = host
        self.client = client
        self.server = server
        self.remote = SockAddr(*client.getpeername())

    def exchange(self) -> None:
        """Both ends send and receive a byte: it is alive, and both know it is established."""
        exchange(self)

    def close(self) -> None:
        self.client.close()
        self.server.close()

    def subflows(self) -> list[str]:
        """The client's address of each, sorted."""
        asked = ["ss", "-Htn", "state", "established", f"dport = :{self.remote.port}"]
        lines = self._host.run(asked).stdout.splitlines()
        return sorted(line.split()[2].rpartition(":")[0].partition("%")[0] for line in lines)

    def join(self, local_ip: str, address_id: int) -> None:
        """One more subflow, asked for by the client (which needs its userspace path manager)."""
        with self._host.entered(), PmClient() as pm:
            for found in diag.snapshot(with_owners=False).connections:
                if found.remote == self.remote:
                    command = CreateSubflow(
                        token=found.token,
                        local_ip=local_ip,
                        local_id=address_id,
                        remote=self.remote,
                        reason="the scenario",
                    )
                    answer = pm.execute_now(command)
                    assert answer.errno == 0, answer.explanation


@contextlib.contextmanager
def stage(name: Manager, where: Where, arguments: tuple[str, ...], folder: Path) -> Iterator[Stage]:
    """A stage with an interface `z` for the last address, and a daemon to start."""
    with ExitStack() as stack:
        if where == "bare":
            host = stack.enter_context(plugin_host())
            there = Stage(name, host, folder, arguments)
        else:
            lab = stack.enter_context(Lab(paths=[LabPath(), LabPath()]))
            raise_limits(lab.client, lab.server)
            at = getattr(lab, where)
            at.batch("ip", ["mptcp limits set subflows 2 add_addr_accepted 0"])
            there = Stage(name, PluginHost(f"/run/netns/{at.name}"), folder, arguments)
            there.lab = lab
            there.wire = stack.enter_context(Wire(at.name, snap=160))
        there.host.veth("z")
        try:
            yield there
        finally:
            there.stack.close()
            if there.process is not None and there.runs:
                there.process.kill()
                there.process.wait()
