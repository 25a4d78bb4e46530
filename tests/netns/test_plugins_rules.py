# SPDX-License-Identifier: BSD-3-Clause
"""Rules choose a connection's plugin, also by whose it is, which netlink does not tell."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mptcpd_ebpf.lab import Lab, RequestResponse
from mptcpd_ebpf.lab import Path as LabPath
from tests.netns.daemon_process import daemon
from tests.waiting import until


def cgroup() -> str | None:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return line[3:]
    return None


CONDITIONS = {
    "uid": f"uid: {os.getuid()}",
    "command": f"command: '{Path(sys.executable).name[:6]}*'",
    "cgroup": f"cgroup: '{cgroup()}'",
    "interface": "interface: path0",
    "remote": "remote: 10.1.2.0/24",
}


@pytest.mark.parametrize("probes", ["core", "netlink"])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_rule_gives_the_connection_to_another_plugin(
    make_mptcp_lab: Callable[..., Lab], tmp_path: Path, condition: str, probes: str
) -> None:
    if condition == "cgroup" and cgroup() is None:
        pytest.skip("no cgroup v2 here")
    lab = make_mptcp_lab([LabPath()])
    file = tmp_path / "c.yaml"
    file.write_text(
        f"path_manager: reconnect\nprobes: {{backend: {probes}}}\nrules:\n"
        f"  - {{uid: 4242, plugin: fullmesh}}\n"
        f"  - {{{CONDITIONS[condition]}, server_side: false, plugin: ndiffports}}\n"
    )
    prefix = ("nsenter", f"--net=/run/netns/{lab.client.name}", "--")
    with daemon(tmp_path, "--config", str(file), prefix=prefix) as running:
        traffic = lab.start(RequestResponse(interval_ms=10))

        def subflows() -> list[int]:
            answer = json.loads(running.ask("ls", "--json").stdout)
            return [len(connection["subflows"]) for connection in answer["connections"]]

        until(lambda: subflows() == [2], "ndiffports made it two subflows")
        assert "ndiffports: create subflow" in running.log
        traffic.stop()
