# SPDX-License-Identifier: BSD-3-Clause
"""Each filter of each tool lets through the connection that fits it, and not the other one.

Two processes of different names, in different cgroups, have a connection each, to different
addresses of the server.  Every tool runs in another namespace and is pointed at the client's
by --netns.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path as File

import pytest

from mptcpd_ebpf.kernel import diag
from mptcpd_ebpf.lab import Lab, Path
from mptcpd_ebpf.lab.kernel_path_manager import raise_limits
from tests.netns.tracing import Tracing, tracing
from tests.waiting import SLOWNESS, until

CGROUPS = (File("/sys/fs/cgroup"), File("/sys/fs/cgroup/unified"))
CHUNK = 100_000

_TALKER = f"""
import socket, struct, sys
name, server, port = sys.argv[1:]
open("/proc/self/comm", "w").write(name)
sys.stdin.readline()
client = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
client.connect((server, int(port)))
while True:
    client.sendall(b"x" * {CHUNK})
    left = {CHUNK}
    while left:
        left -= len(client.recv(left))
    print("done", flush=True)
    if "close" in sys.stdin.readline():
        break
client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
client.close()
"""
_ECHO = """
import socket, socketserver
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        try:
            while data := self.request.recv(65536):
                self.request.sendall(data)
        except OSError:
            pass
class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    def __init__(self):
        super().__init__(("0.0.0.0", 0), Echo, bind_and_activate=False)
        self.socket.close()
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
        self.server_bind(), self.server_activate()
server = Server()
print(server.server_address[1], flush=True)
server.serve_forever()
"""


@dataclass
class Talker:
    """A process that connects when told to, and its connection."""

    process: "subprocess.Popen[str]"
    name: str
    server: str
    cgroup: File | None

    def exchange(self) -> None:
        """Connects, if it has not yet; sends and receives."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("on\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def abort(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("close\n")
        self.process.stdin.close()
        assert self.process.wait(10 * SLOWNESS) == 0

    def filters(self, token: str | None) -> list[tuple[str, str]]:
        found = [
            ("--pid", str(self.process.pid)),
            ("--comm", self.name),
            ("--addr", self.server),
        ]
        if token is not None:
            found.append(("--token", token))
        if self.cgroup is not None:
            found.append(("--cgroup", str(self.cgroup)))
        return found


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(paths=[Path(delay_ms=1), Path(delay_ms=1)]) as lab:
        raise_limits(lab.client, lab.server)
        yield lab


@contextmanager
def cgroup(name: str) -> Iterator[File | None]:
    """A cgroup of the test's own; None where the test may make none."""
    root = next((root for root in CGROUPS if (root / "cgroup.controllers").exists()), None)
    folder = root and root / f"mptcpd-ebpf-test-{name}"
    try:
        if folder is not None:
            folder.mkdir()
    except OSError as error:
        print(f"--cgroup is left out: {error}")
        folder = None
    try:
        yield folder
    finally:
        if folder is not None:
            # A process that has ended leaves its cgroup a moment later.
            until(lambda: not (folder / "cgroup.procs").read_text(), "empty cgroup")
            folder.rmdir()


@pytest.fixture
def talkers(lab: Lab) -> Iterator[tuple[Talker, Talker]]:
    with ExitStack() as stack:
        echo = stack.enter_context(
            lab.server.popen([sys.executable, "-c", _ECHO], stdout=subprocess.PIPE, text=True)
        )
        stack.callback(echo.kill)
        assert echo.stdout is not None
        port = echo.stdout.readline().strip()
        made = []
        for name, path in zip(("meant", "other"), lab.paths, strict=True):
            folder = stack.enter_context(cgroup(name))
            process = stack.enter_context(
                lab.client.popen(
                    [sys.executable, "-c", _TALKER, name, path.server_ip, port],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            if folder is not None:
                (folder / "cgroup.procs").write_text(str(process.pid))
            made.append(Talker(process, name, path.server_ip, folder))
        yield made[0], made[1]


def tokens(told: Tracing) -> set[str]:
    """Of all connections that a tool speaks of."""
    rows = list(told.lines)
    for line in told.lines:
        if isinstance(line.get("subflows"), list):
            rows += line["subflows"]
    return {row["token"] for row in rows if row.get("token")}


@pytest.mark.parametrize(
    ("tool", "event"),
    [
        ("life", "ended"),
        ("joins", "join"),
        ("resets", "reset"),
        ("retrans", "retransmitted"),
        ("rtt", None),
        ("stalls", None),
        ("sched", None),
        ("pm", "event"),
        ("func mptcp_subflow_get_send --args", "call"),
    ],
)
def test_filters(lab: Lab, talkers: tuple[Talker, Talker], tool: str, event: str | None) -> None:
    """A tool, and the event by which it tells of a connection (None: by its summary)."""
    meant, other = talkers
    for talker in talkers:
        talker.exchange()
    with lab.client.entered():
        by_server = {each.remote.ip: f"{each.token:08x}" for each in diag.subflows()}
    mine, others = (by_server[each.server] for each in talkers)
    with ExitStack() as stack:
        chosen: list[tuple[str, ...]] = [(), *meant.filters(mine)]
        at_client = ("--netns", lab.client.name)
        tools = [
            stack.enter_context(tracing(lab.server, *tool.split(), *at_client, *each))
            for each in chosen
        ]
        path = lab.paths[1]
        for each in lab.paths:
            add = ["ip", "mptcp", "endpoint", "add", each.client_ip, "subflow", "fullmesh"]
            lab.client.run(add)
        path.wait_for_subflow(10 * SLOWNESS)
        if tool == "retrans":
            for each in lab.paths:
                each.set(loss_percent=10)
        for _ in range(3):
            other.exchange()
            meant.exchange()
        other.abort()
        meant.abort()
        for told in tools:
            if event is not None:
                told.event(event, token=mine)
            told.end()
    seen = {" ".join(each): tokens(told) for each, told in zip(chosen, tools, strict=True)}
    assert seen.pop("") == {mine, others}
    assert all(each == {mine} for each in seen.values()), (mine, seen)


def test_filters_of_fallbacks(lab: Lab, talkers: tuple[Talker, Talker]) -> None:
    """The token is given up by falling back: nobody can ask for it beforehand."""
    meant, other = talkers
    for path in lab.paths:
        path.strip_mptcp()
    with ExitStack() as stack:
        chosen: list[tuple[str, ...]] = [(), *meant.filters(None)]
        tools = [
            stack.enter_context(tracing(lab.server, "fallback", "--netns", lab.client.name, *each))
            for each in chosen
        ]
        other.exchange()
        meant.exchange()
        for told in tools:
            told.until(
                lambda line: str(line.get("remote")).startswith(meant.server + ":"),
                "fallback of the one that is meant",
            )
            told.end()
    seen = {
        " ".join(each): [line["remote"].split(":")[0] for line in told.all("fallback")]
        for each, told in zip(chosen, tools, strict=True)
    }
    assert seen.pop("") == [other.server, meant.server]
    assert all(each == [meant.server] for each in seen.values()), seen
