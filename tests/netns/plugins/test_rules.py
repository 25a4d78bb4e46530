# SPDX-License-Identifier: BSD-3-Clause
"""Rules choose the plugin of a connection, also by its owner, which netlink does not report.

Each condition is tested with two connections that differ only in it: the rule must fit one and must
not fit the other.
"""

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from mptcpd_ebpf.lab import Host, Lab, LivePath
from tests.netns.daemon_host import connections, daemon_in
from tests.netns.mptcp_sockets import DEADLINE_S, listen, mptcp_socket
from tests.netns.witness import HandlerLog

PYTHON = "/usr/bin/python3"
NOBODY = 65534

CALLS = """
import json, os, socket, sys
wanted = json.loads(sys.argv[1])
if wanted["cgroup"]:
    with open(wanted["cgroup"] + "/cgroup.procs", "w") as file:
        file.write(str(os.getpid()))
with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((wanted["from"], wanted["port"]))
    sock.connect(tuple(wanted["to"]))
    sock.sendall(b"x")
    print(sock.getsockname()[1], flush=True)
    sys.stdin.read()
"""


@dataclass(kw_only=True)
class Call:
    """A connection from a host of the lab: its ends and its owner."""

    path: int = 0
    port: int = 0
    listener: int = 0
    outward: bool = True
    """From the daemon's host, not to it."""
    uid: int = 0
    command: str = PYTHON
    cgroup: Path | None = None


class Scene:
    """Two hosts with listeners on both paths; the daemon runs on the client."""

    def __init__(self, lab: Lab, stack: ExitStack) -> None:
        self.lab = lab
        self._stack = stack
        self.listeners = {
            "server": [self._listen(lab.server, path.server_ip) for path in lab.paths],
            "client": [self._listen(lab.client, path.client_ip) for path in lab.paths],
        }

    def _listen(self, host: Host, ip: str) -> socket.socket:
        return self._stack.enter_context(listen(host, ip))

    def port(self, listener: int) -> int:
        return int(self.listeners["server"][listener].getsockname()[1])

    def call(self, wanted: Call) -> int:
        """Makes the connection; returns the local port of the caller."""
        path = self.lab.paths[wanted.path]
        host = self.lab.client if wanted.outward else self.lab.server
        listener = self.listeners["server" if wanted.outward else "client"][wanted.listener]
        fields = {
            "from": path.client_ip if wanted.outward else path.server_ip,
            "port": wanted.port,
            "to": listener.getsockname(),
            "cgroup": wanted.cgroup and str(wanted.cgroup),
        }
        argv = [wanted.command, "-c", CALLS, json.dumps(fields)]
        if wanted.uid:
            argv = ["setpriv", f"--reuid={wanted.uid}", "--clear-groups", "--", *argv]
        process = self._stack.enter_context(
            host.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        self._stack.callback(process.kill)
        assert process.stdout is not None
        port = int(process.stdout.readline())
        accepted = self._stack.enter_context(listener.accept()[0])
        accepted.settimeout(DEADLINE_S)
        assert accepted.recv(1) == b"x"
        accepted.sendall(b"y")
        return port


@contextmanager
def own_cgroup(name: str) -> Iterator[Path]:
    """A cgroup v2 for the test, removed afterwards."""
    with open("/proc/mounts") as mounts:
        roots = [line.split()[1] for line in mounts if line.split()[2] == "cgroup2"]
    if not roots:
        pytest.skip("no cgroup v2 is mounted here")
    folder = Path(roots[0]) / name
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made in {roots[0]}: {error}")
    try:
        yield folder
    finally:
        folder.rmdir()


def _first(path: LivePath) -> str:
    return path.client_ip.rpartition(".")[0]


CONDITIONS = ["local", "local_port", "remote", "remote_port", "interface", "server_side"]
OWNERS = ["uid", "command", "cgroup"]


@pytest.mark.parametrize(
    ("condition", "probes"),
    [(each, "netlink") for each in CONDITIONS]
    + [(each, probes) for each in OWNERS for probes in ("core", "netlink")],
)
def test_a_rule_takes_only_connections_that_fit(
    mptcp_lab: Lab, tmp_path: Path, condition: str, probes: str
) -> None:
    second = mptcp_lab.paths[1]
    handler_log = HandlerLog(tmp_path)
    folder = handler_log.plugins(other=0, chosen=0)
    with ExitStack() as stack:
        # The processes end before their cgroup is removed.
        cgroup = (
            stack.enter_context(own_cgroup(f"rules-{mptcp_lab.client.name}"))
            if (condition == "cgroup")
            else None
        )
        scene = Scene(mptcp_lab, stack)
        command = tmp_path / "rsync-like"
        command.symlink_to(PYTHON)
        trials: dict[str, tuple[Any, Call, Call]] = {
            "local": (f"{_first(second)}.0/24", Call(path=1, listener=1), Call()),
            "local_port": ([4444, 4445], Call(port=4445), Call(port=4446)),
            "remote": (second.server_ip, Call(path=1, listener=1), Call()),
            "remote_port": (scene.port(1), Call(path=1, listener=1), Call()),
            "interface": (f"{second.client_if[:-1]}[1]", Call(path=1, listener=1), Call()),
            "server_side": (True, Call(outward=False), Call()),
            "uid": (NOBODY, Call(uid=NOBODY), Call()),
            "command": ("rsync*", Call(command=str(command)), Call()),
            "cgroup": (
                f"*/{cgroup.name}" if cgroup else "", Call(cgroup=cgroup), Call()
            ),
        }  # fmt: skip
        value, fits, differs = trials[condition]
        file = tmp_path / "c.yaml"
        rules = [{condition: value, "plugin": "chosen"}]
        file.write_text(
            yaml.safe_dump(
                {"plugin_dir": str(folder), "path_manager": "other", "rules": rules}
                | {"probes": {"backend": probes}}
            )
        )
        with daemon_in(mptcp_lab.client, tmp_path, "--config", str(file)) as running:
            served = {}
            for which, call in (("differs", differs), ("fits", fits)):
                port = scene.call(call)
                end = "local" if call.outward else "remote"
                handler_log.until(
                    "connection_established", lambda c, e=end, p=port: c[e].endswith(f":{p}")
                )
                served[which] = [
                    row["plugin"]
                    for row in handler_log.rows
                    if row["handler"] == "connection_established"
                    and row["args"][0][end].endswith(f":{port}")
                ]
            assert served == {"differs": ["other"], "fits": ["chosen"]}
            assert "is excluded" not in running.log


def test_all_conditions_of_a_rule_must_hold_and_the_first_rule_wins(
    mptcp_lab: Lab, tmp_path: Path
) -> None:
    """No plugin gets a connection that a rule leaves to the kernel."""
    handler_log = HandlerLog(tmp_path)
    folder = handler_log.plugins(one=0, two=0, three=0)
    with ExitStack() as stack:
        scene = Scene(mptcp_lab, stack)
        near, far = scene.port(0), scene.port(1)
        rules = [
            {"remote_port": near, "uid": NOBODY, "plugin": "two"},
            {"remote_port": near, "local_port": 4444, "plugin": None},
            {"remote_port": [near, 1], "plugin": "three"},
            {"remote_port": near, "plugin": "one"},
        ]
        file = tmp_path / "c.yaml"
        whole = {"plugin_dir": str(folder), "path_manager": "one", "rules": rules}
        file.write_text(yaml.safe_dump(whole))
        with daemon_in(mptcp_lab.client, tmp_path, "--probes=netlink", "--config", str(file)):
            for call, plugin in (
                (Call(port=4444), None),
                (Call(uid=NOBODY, port=4443), "two"),
                (Call(port=4445), "three"),
                (Call(path=1, listener=1), "one"),
            ):
                port = scene.call(call)
                if plugin is not None:
                    handler_log.until(
                        "connection_established", lambda c, p=port: c["local"].endswith(f":{p}")
                    )
        calls = [r for r in handler_log.rows if r["handler"] == "connection_established"]
        assert [row["plugin"] for row in calls] == ["two", "three", "one"]
        assert far in [int(row["args"][0]["remote"].rpartition(":")[2]) for row in calls]


LISTENS = """
import socket, sys, time
with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) as sock:
    sock.bind((sys.argv[1], 0))
    sock.listen()
    print(sock.getsockname()[1], flush=True)
    sys.stdin.read()
"""


@contextmanager
def listener_of(host: Host, ip: str, uid: int) -> Iterator[int]:
    """The port on which a process of that user listens without accepting."""
    argv = ["setpriv", f"--reuid={uid}", "--clear-groups", "--", PYTHON, "-c", LISTENS, ip]
    with host.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


@pytest.mark.parametrize("probes", ["core", "netlink"])
def test_on_a_server_a_rule_checks_the_listener_also_if_it_is_older_than_the_daemon(
    mptcp_lab: Lab, tmp_path: Path, probes: str
) -> None:
    path = mptcp_lab.paths[0]
    handler_log = HandlerLog(tmp_path)
    folder = handler_log.plugins(other=0, chosen=0)
    rule = {"server_side": True, "uid": NOBODY, "command": "python3*", "plugin": "chosen"}
    file = tmp_path / "c.yaml"
    whole = {"plugin_dir": str(folder), "path_manager": "other", "rules": [rule]}
    file.write_text(yaml.safe_dump(whole | {"probes": {"backend": probes}}))
    with ExitStack() as stack:
        ports = {
            plugin: stack.enter_context(listener_of(mptcp_lab.server, path.server_ip, uid))
            for plugin, uid in (("other", 0), ("chosen", NOBODY))
        }
        running = stack.enter_context(daemon_in(mptcp_lab.server, tmp_path, "--config", str(file)))

        def served() -> dict[str, str]:
            return {
                row["args"][0]["local"].rpartition(":")[2]: row["plugin"]
                for row in handler_log.rows
                if row["handler"] == "connection_established"
            }

        for port in ports.values():
            calls = stack.enter_context(mptcp_socket(mptcp_lab.client))
            calls.connect((path.server_ip, port))
            calls.sendall(b"x")
        for port in ports.values():
            handler_log.until(
                "connection_established", lambda c, p=port: c["local"].endswith(f":{p}")
            )
        wanted = {str(port): plugin for plugin, port in ports.items()}
        assert served() == wanted
        # Neither a read of the connections nor a reload changes that.
        for row in connections(running):
            assert row["comm"].startswith("python3")
        assert running.ask("reload").returncode == 0
        inits = [row for row in handler_log.rows if row["handler"] in ("init", "reloaded")]
        tokens = {row["plugin"]: row["served"] for row in inits[-2:]}
        assert {plugin: len(each) for plugin, each in tokens.items()} == {"other": 1, "chosen": 1}
