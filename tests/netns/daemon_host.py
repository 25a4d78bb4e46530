# SPDX-License-Identifier: BSD-3-Clause
"""A daemon in a host of a lab: its status and connections, and its event stream."""

import contextlib
import http.client
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mptcpd_ebpf.control import client
from mptcpd_ebpf.lab import Host, Lab, LivePath
from tests.netns.daemon_process import RunningDaemon, daemon
from tests.waiting import SLOWNESS, until

Record = dict[str, Any]
PATIENCE_S = 30.0
"""How long to wait for actions that take a daemon a few seconds on an idle machine."""


@contextlib.contextmanager
def daemon_in(
    host: Host, folder: Path, *arguments: str, staged: str = ""
) -> Iterator[RunningDaemon]:
    """A daemon, ready, in a host's namespace; its socket and log are in `folder`.

    `staged` is a shell script that runs first, in the daemon's own mount namespace.
    """
    prefix = ["nsenter", f"--net=/run/netns/{host.name}", "--"]
    if staged:
        prefix += ["unshare", "--mount", "--", "sh", "-ec", f'{staged}; exec "$@"', "sh"]
    with daemon(folder, *arguments, prefix=prefix) as running:
        yield running


@contextlib.contextmanager
def kept_alive(host: Host) -> Iterator[None]:
    """Another program stays subscribed, so that the kernel allows joins without a daemon."""
    holder = host.popen(["ip", "mptcp", "monitor"], stdout=-3)
    try:
        yield
    finally:
        holder.kill()
        holder.wait()


def make_room_behind_holes(lab: Lab) -> None:
    """Enlarges the receive buffers of later connections, in which a fault may leave holes.

    The data after a hole must fit into the receive buffer until the hole is filled: a full buffer
    does not accept even the missing data, and the connection stalls permanently (docs/kernel.md).
    """
    for host in lab.hosts.values():
        host.sysctl("ipv4.tcp_rmem", "4096 4194304 6291456")


@contextlib.contextmanager
def adaptive_in(host: Host, folder: Path, *arguments: str) -> Iterator[RunningDaemon]:
    """A daemon with the plugin adaptive in a host; at the end the plugin must still be active."""
    with daemon_in(host, folder, "--path-manager=adaptive", *arguments) as running:
        yield running
        if running.process.poll() is None:
            assert status(running)["plugins"] == [{"name": "adaptive", "excluded": None}]
        assert "Traceback" not in running.log


def status(running: RunningDaemon) -> Record:
    found: Record = client.get(str(running.control), "/v1/status")
    return found


def connections(running: RunningDaemon) -> list[Record]:
    """The connections as `ls --json` shows them."""
    found: list[Record] = client.get(str(running.control), "/v1/connections")["connections"]
    return found


def subflows(running: RunningDaemon, token: int | None) -> list[Record]:
    """The subflows of one connection, none if the daemon does not know it."""
    return [
        subflow
        for connection in connections(running)
        if token is not None and connection["token"] == f"{token:08x}"
        for subflow in connection["subflows"]
    ]


def carrying(running: RunningDaemon, token: int | None) -> list[str]:
    """The interfaces on which a connection has regular, established subflows, sorted."""
    return sorted(
        subflow["interface"] or "?"
        for subflow in subflows(running, token)
        if subflow["state"] == "established" and not subflow["backup"]
    )


def until_carried_by(running: RunningDaemon, token: int | None, *paths: LivePath) -> None:
    """Waits until a connection has one regular subflow on each of these paths, and no other."""
    wanted = sorted(path.client_if for path in paths)
    until(
        lambda: carrying(running, token) == wanted,
        lambda: (
            f"regular subflows on {wanted}; there are {carrying(running, token)}\n{running.log}"
        ),
        PATIENCE_S,
    )


def decisions(running: RunningDaemon, *actions: str, ip: str | None = None) -> list[Record]:
    """The decisions that were carried out, of these actions and about this local address."""
    found = client.get(str(running.control), "/v1/decisions")["decisions"]
    return [
        made
        for made in found
        if made["refused"] is None
        and (not actions or made["action"] in actions)
        and (ip is None or (made["subflow"] or "").startswith((f"{ip} ", f"{ip}:", f"[{ip}]:")))
    ]


def until_decided(running: RunningDaemon, action: str, ip: str, after: int = 0) -> Record:
    """Waits for a decision newer than the one numbered `after`, and returns the first."""

    def found() -> list[Record]:
        return [made for made in decisions(running, action, ip=ip) if made["id"] > after]

    return until(found, lambda: f"{action} {ip}\n{running.log}", PATIENCE_S)[0]


def newest(running: RunningDaemon) -> int:
    """The number of the newest decision, 0 if there is none."""
    found = client.get(str(running.control), "/v1/decisions")["decisions"]
    return int(found[-1]["id"]) if found else 0


def bpf_programs(pid: int) -> set[int]:
    """The ids of the BPF programs that a process holds."""
    found = set()
    for name in os.listdir(f"/proc/{pid}/fdinfo"):
        with (
            contextlib.suppress(FileNotFoundError),
            open(f"/proc/{pid}/fdinfo/{name}") as file,
        ):
            found |= {int(line.split()[1]) for line in file if line.startswith("prog_id:")}
    return found


class _Streaming(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE_S * SLOWNESS)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


class EventStream:
    """The stream of a daemon's events and decisions from now on, in its order."""

    def __init__(self, running: RunningDaemon) -> None:
        self.told: list[Record] = []
        self._connection = _Streaming(running.control)
        self._connection.request("GET", "/v1/events")
        self._answer = self._connection.getresponse()
        self._answer.readline()  # after the greeting no event is missed
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def __enter__(self) -> "EventStream":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._connection.close()

    def _listen(self) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            while line := self._answer.readline():
                if line.startswith(b"data: "):
                    self.told.append(json.loads(line[6:]))

    def events(self, name: str) -> list[Record]:
        return [each for each in self.told if each.get("event") == name]

    def until(self, name: str, fits: Callable[[Record], bool] = lambda _: True) -> Record:
        """Waits for an event and returns the first that fits."""

        def found() -> list[Record]:
            return [event for event in self.events(name) if fits(event)]

        return until(found, lambda: f"{name} among {self.told[-20:]}", PATIENCE_S)[0]
