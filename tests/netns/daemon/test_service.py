# SPDX-License-Identifier: BSD-3-Clause
"""The daemon under a service manager: its messages on ``$NOTIFY_SOCKET`` (sd_notify(3))."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mptcpd_ebpf.daemon.privileges import KEPT
from tests.netns.daemon_process import NEW_NAMESPACE, daemon
from tests.netns.own_plugins import plugin_folder
from tests.waiting import until

INTERVAL_US = 200_000
STORED = "FDSTORE=1\nFDNAME=pm-events\nFDPOLL=0"
"""The subscription, for the manager to keep (`descriptor_store`)."""

# sum() over integers checks no signal until it returns, here after some hours.
BLOCKS = """
from pathlib import Path

from mptcpd_ebpf.plugin import Plugin


class Blocks(Plugin):
    name = "blocks"

    def new_local_address(self, ctx, address):
        Path({marker!r}).touch()
        sum(range(10**13))
"""


class Manager:
    """Receives the messages for a service manager."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "notify.sock")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)

    def close(self) -> None:
        self._socket.close()

    def receive(self, within_s: float = 20.0) -> str | None:
        """The next message; None if there is none."""
        self._socket.settimeout(within_s)
        try:
            return self._socket.recv(4096).decode()
        except TimeoutError:
            return None

    def discard(self) -> None:
        """Reads all messages so far."""
        self._socket.setblocking(False)
        try:
            while True:
                self._socket.recv(4096)
        except BlockingIOError:
            pass


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    listening = Manager(tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", listening.path)
    yield listening
    listening.close()


def test_it_reports_when_it_is_ready_and_when_it_stops(
    manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The watchdog of another process is ignored.
    monkeypatch.setenv("WATCHDOG_USEC", "1000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    with daemon(tmp_path) as running:
        assert manager.receive() == STORED
        assert manager.receive() == "READY=1"
        assert running.stop() == 0
        assert manager.receive() == "STOPPING=1"


def test_the_watchdog_gets_keep_alive_messages(
    manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", str(INTERVAL_US))
    with daemon(tmp_path):
        assert manager.receive() == STORED
        assert manager.receive() == "READY=1"
        for _ in range(5):
            assert manager.receive() == "WATCHDOG=1"


def test_a_plugin_that_hangs_in_c_stops_the_keep_alive_messages(
    manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", str(INTERVAL_US))
    marker = tmp_path / "blocked"
    folder = plugin_folder(tmp_path, blocks=BLOCKS.format(marker=str(marker)))
    options = ("--plugin-dir", str(folder), "--path-manager=blocks")
    with daemon(tmp_path, *options, prefix=NEW_NAMESPACE) as running:
        assert running.process.poll() is None
        for argv in ("link set lo up", "addr add 192.0.2.1/32 dev lo"):
            os.spawnvp(os.P_WAIT, "nsenter", [*running.inside, "ip", *argv.split()])
        until(marker.exists, "the plugin blocks")
        manager.discard()
        assert manager.receive(within_s=10 * INTERVAL_US / 1e6) is None
        running.process.kill()


def test_a_ready_daemon_holds_only_the_capabilities_that_it_still_needs(tmp_path: Path) -> None:
    with daemon(tmp_path) as running:
        lines = Path(f"/proc/{running.process.pid}/status").read_text().splitlines()
        fields = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
        needed = f"{sum(1 << each for each in KEPT):016x}"
        assert (fields["CapEff"], fields["CapPrm"], fields["CapBnd"]) == (needed,) * 3
        assert fields["NoNewPrivs"] == "1"
        answer = running.ask("ls", "--json")
        assert answer.returncode == 0, "a probe can still be read"


def test_a_daemon_that_sees_less_than_it_could_warns(tmp_path: Path) -> None:
    kept = "-all,+net_admin"
    limited = ("setpriv", f"--bounding-set={kept}", f"--inh-caps={kept}", "--")
    with daemon(tmp_path, prefix=(*NEW_NAMESPACE, *limited)) as running:
        assert "WARNING CAP_SYS_PTRACE is missing" in running.log
        assert "WARNING probes: none" in running.log
        assert "ready:" in running.log
