# SPDX-License-Identifier: BSD-3-Clause
"""A subscription that the service manager keeps is that of the next daemon."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mptcpd_ebpf.daemon import descriptor_store
from mptcpd_ebpf.kernel.pm_events import PmEvents
from mptcpd_ebpf.lab import Host, Lab
from tests.tree import ROOT

ADOPT = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
from mptcpd_ebpf.daemon import descriptor_store
events = descriptor_store.subscribe()
print(events.fileno(), len(events.read()), os.get_inheritable(events.fileno()),
      [name for name in os.environ if name.startswith("LISTEN")])
"""


@pytest.fixture
def inside(mptcp_lab: Lab) -> Iterator[Host]:
    with mptcp_lab.client.entered():
        yield mptcp_lab.client


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The service manager's socket."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(path)
        listening.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        yield listening


def adopted(descriptor: int, **given: str) -> str:
    """What a new daemon does that gets a descriptor as number 3."""
    copy = os.dup(descriptor)
    done = subprocess.run(
        ["bash", "-c", f"exec {sys.executable} -c '{ADOPT}' 3<&{copy}"],
        cwd=ROOT,
        pass_fds=[copy],
        env={**os.environ, "LISTEN_FDS": "1", "LISTEN_FDNAMES": descriptor_store.NAME, **given},
        capture_output=True,
        text=True,
        check=False,
    )
    os.close(copy)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.usefixtures("inside")
def test_a_new_subscription_is_given_to_the_manager(manager: socket.socket) -> None:
    with descriptor_store.subscribe() as events:
        message, (kept,), _, _ = socket.recv_fds(manager, 4096, 1)
        assert message == b"FDSTORE=1\nFDNAME=pm-events\nFDPOLL=0"
        assert os.path.sameopenfile(kept, events.fileno())
        os.close(kept)


def test_the_next_daemon_goes_on_with_it_and_without_what_waited(
    inside: Host, manager: socket.socket
) -> None:
    with PmEvents.open() as kept:
        inside.run(["ip", "link", "set", "lo", "up"])
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP) as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()  # an event
        assert adopted(kept.fileno()) == "3 0 False []"
        assert kept.read() == [], "what waited is gone, in one queue for both"
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(4096)


@pytest.mark.usefixtures("inside")
def test_one_of_another_namespace_is_replaced(mptcp_lab: Lab, manager: socket.socket) -> None:
    with mptcp_lab.server.entered():
        foreign = PmEvents.open()
    with foreign:
        adopted(foreign.fileno())
    assert manager.recv(4096) == b"FDSTOREREMOVE=1\nFDNAME=pm-events"
    message, (kept,), _, _ = socket.recv_fds(manager, 4096, 1)
    assert message.startswith(b"FDSTORE=1\n")
    os.close(kept)


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(
    "given", [{"LISTEN_FDNAMES": "other"}, {"LISTEN_FDS": "x"}, {"LISTEN_FDS": "0"}]
)
def test_what_is_not_ours_is_not_taken(manager: socket.socket, given: dict[str, str]) -> None:
    with PmEvents.open() as kept:
        assert not adopted(kept.fileno(), **given).startswith("3 ")
    assert manager.recv(4096).startswith(b"FDSTORE=1\n")
