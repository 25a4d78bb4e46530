# SPDX-License-Identifier: BSD-3-Clause
"""Who else manages MPTCP in the namespace is named at the start, with what to do about it."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from mptcpd_ebpf.kernel.owners import comm
from tests.netns.plugin_host import plugin_host
from tests.waiting import until

MPTCPD = Path("/usr/libexec/mptcpd")
SLEEP = Path("/usr/bin/sleep")

NEIGHBOURS = {
    "mptcpd": ([str(MPTCPD), "--log=null", "--path-manager=sspi"], "systemctl disable --now mptcp"),
    "NetworkManager": (["{folder}/NetworkManager", "600"], "connection.mptcp-flags=disabled"),
    "stranger": (["ip", "mptcp", "monitor"], "it may give orders of its own"),
}
"""How each is started, and what is said of it.  NetworkManager needs D-Bus: a stand-in with
its name is what can be had, for it is known by that."""


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_a_neighbour_is_named_with_advice(tmp_path: Path, name: str) -> None:
    if name == "mptcpd" and not MPTCPD.exists():
        pytest.skip("Debian's mptcpd is not installed")
    (tmp_path / "NetworkManager").symlink_to(SLEEP)
    words, advice = NEIGHBOURS[name]
    argv = [word.format(folder=tmp_path) for word in words]
    with plugin_host() as host:
        with subprocess.Popen(
            [*host.prefix, *argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as neighbour:
            try:
                until(
                    lambda: comm(neighbour.pid) == os.path.basename(argv[0]), f"{name} has started"
                )
                until(lambda: neighbour.poll() is None and _settled(neighbour.pid), "it listens")
                with host.daemon(tmp_path, "--path-manager=addr_adv") as running:
                    said = rf"WARNING {os.path.basename(argv[0])} \(pid {neighbour.pid}\) .*"
                    assert re.search(said + re.escape(advice), running.log), running.log
            finally:
                neighbour.kill()
        with host.daemon(tmp_path, "--path-manager=addr_adv") as running:
            assert "here too" not in running.log, "nobody is there any more"


def _settled(pid: int) -> bool:
    """Whether it waits for something, so that its start is over."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "S"
