# SPDX-License-Identifier: BSD-3-Clause
"""Other programs that manage MPTCP in the namespace are named at the start, with advice."""

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

MANAGERS = {
    "mptcpd": ([str(MPTCPD), "--log=null", "--path-manager=sspi"], "systemctl disable --now mptcp"),
    "NetworkManager": (["{folder}/NetworkManager", "600"], "connection.mptcp-flags=disabled"),
    "another subscriber": (["ip", "mptcp", "monitor"], "it may give orders of its own"),
}
"""How each is started, and the advice.  NetworkManager needs D-Bus, so a program of that name, by
which it is recognized, stands in for it."""


@pytest.mark.parametrize("name", MANAGERS)
def test_another_manager_is_named_with_advice(tmp_path: Path, name: str) -> None:
    if name == "mptcpd" and not MPTCPD.exists():
        pytest.skip("Debian's mptcpd is not installed")
    (tmp_path / "NetworkManager").symlink_to(SLEEP)
    words, advice = MANAGERS[name]
    argv = [word.format(folder=tmp_path) for word in words]
    with plugin_host() as host:
        with subprocess.Popen(
            [*host.prefix, *argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as other:
            try:
                until(lambda: comm(other.pid) == os.path.basename(argv[0]), f"{name} has started")
                until(lambda: other.poll() is None and _sleeps(other.pid), "it has subscribed")
                with host.daemon(tmp_path, "--path-manager=addr_adv") as running:
                    start = rf"WARNING {os.path.basename(argv[0])} \(pid {other.pid}\) .*"
                    assert re.search(start + re.escape(advice), running.log), running.log
            finally:
                other.kill()
        with host.daemon(tmp_path, "--path-manager=addr_adv") as running:
            assert "manages or monitors MPTCP" not in running.log


def _sleeps(pid: int) -> bool:
    """Whether it waits for something, so that its start is over."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "S"
