# SPDX-License-Identifier: BSD-3-Clause
"""Each filter of each tool passes the matching connection, and not the other one.

Two processes with different names, in different cgroups, have one connection each, to different
addresses of the server.  Every tool runs in another namespace and selects the client's with
--netns.
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

_CLIENT = f"""
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
class Client:
    """A process with one connection, which it opens and uses on request."""

    process: "subprocess.Popen[str]"
    name: str
    server: str
    cgroup: File | None

    def exchange(self) -> None:
        """Connects, if it is not connected, then sends and receives."""
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
    """A new cgroup; None if it cannot be created."""
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
            # A process leaves its cgroup shortly after it ended.
            until(lambda: not (folder / "cgroup.procs").read_text(), "empty cgroup")
            folder.rmdir()


@pytest.fixture
def clients(lab: Lab) -> Iterator[tuple[Client, Client]]:
    with ExitStack() as stack:
        echo = stack.enter_context(
            lab.server.popen([sys.executable, "-c", _ECHO], stdout=subprocess.PIPE, text=True)
        )
        stack.callback(echo.kill)
        assert echo.stdout is not None
        port = echo.stdout.readline().strip()
        made = []
        for name, path in zip(("wanted", "other"), lab.paths, strict=True):
            folder = stack.enter_context(cgroup(name))
            process = stack.enter_context(
                lab.client.popen(
                    [sys.executable, "-c", _CLIENT, name, path.server_ip, port],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            if folder is not None:
                (folder / "cgroup.procs").write_text(str(process.pid))
            made.append(Client(process, name, path.server_ip, folder))
        yield made[0], made[1]


def tokens(traced: Tracing) -> set[str]:
    """The tokens of all connections in a tool's lines."""
    rows = list(traced.lines)
    for line in traced.lines:
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
def test_each_filter_passes_only_its_connection(
    lab: Lab, clients: tuple[Client, Client], tool: str, event: str | None
) -> None:
    """`event` is the kind of line that reports a connection; None: the summary does."""
    wanted, other = clients
    for client in clients:
        client.exchange()
    with lab.client.entered():
        by_server = {each.remote.ip: f"{each.token:08x}" for each in diag.subflows()}
    token, other_token = (by_server[each.server] for each in clients)
    with ExitStack() as stack:
        chosen: list[tuple[str, ...]] = [(), *wanted.filters(token)]
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
            wanted.exchange()
        other.abort()
        wanted.abort()
        for traced in tools:
            if event is not None:
                traced.event(event, token=token)
            traced.end()
    seen = {" ".join(each): tokens(traced) for each, traced in zip(chosen, tools, strict=True)}
    assert seen.pop("") == {token, other_token}
    assert all(each == {token} for each in seen.values()), (token, seen)


def test_filters_of_fallback_pass_only_their_connection(
    lab: Lab, clients: tuple[Client, Client]
) -> None:
    """Without --token: a connection that falls back in its handshake loses its token first."""
    wanted, other = clients
    for path in lab.paths:
        path.strip_mptcp()
    with ExitStack() as stack:
        chosen: list[tuple[str, ...]] = [(), *wanted.filters(None)]
        tools = [
            stack.enter_context(tracing(lab.server, "fallback", "--netns", lab.client.name, *each))
            for each in chosen
        ]
        other.exchange()
        wanted.exchange()
        for traced in tools:
            traced.until(
                lambda line: str(line.get("remote")).startswith(wanted.server + ":"),
                "a fallback of the wanted connection",
            )
            traced.end()
    seen = {
        " ".join(each): [line["remote"].split(":")[0] for line in traced.all("fallback")]
        for each, traced in zip(chosen, tools, strict=True)
    }
    assert seen.pop("") == [other.server, wanted.server]
    assert all(each == [wanted.server] for each in seen.values()), seen
