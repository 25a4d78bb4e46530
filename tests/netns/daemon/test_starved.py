# SPDX-License-Identifier: BSD-3-Clause
"""A daemon that temporarily cannot read subflows or write files does everything else."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mptcpd_ebpf.lab import Lab
from tests.netns.daemon_host import daemon_in
from tests.netns.own_plugins import plugin_folder
from tests.netns.plugin_host import plugin_host

# Removing endpoints that do not exist shows in the log that a command was carried out.
ASKS = """
from mptcpd_ebpf.plugin import Plugin, RemoveEndpoint, RequestSample


class Asks(Plugin):
    name = "asks"

    def new_local_address(self, ctx, address):
        yield RequestSample(reason="look")
        yield RemoveEndpoint(address_id=77, reason="after the request for a sample")

    def sampled(self, ctx):
        yield RemoveEndpoint(address_id=78, reason="the sample has come")
"""


@contextmanager
def no_more_descriptors(pid: int) -> Iterator[None]:
    """The process keeps its descriptors, and gets no new one."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    lowest = next(number for number in range(len(used) + 1) if number not in used)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("probes", ["core", "netlink"])
def test_a_sample_that_fails_stops_nothing_else(
    mptcp_lab: Lab, tmp_path: Path, probes: str
) -> None:
    folder = plugin_folder(tmp_path, asks=ASKS)
    options = (f"--probes={probes}", "--plugin-dir", str(folder), "--path-manager=asks")
    with daemon_in(mptcp_lab.client, tmp_path, *options) as running:
        add = ["ip", "address", "add", "dev", mptcp_lab.paths[0].client_if]
        with no_more_descriptors(running.process.pid):
            mptcp_lab.client.run([*add, "192.0.2.1/32"])
            running.until_logged("remove endpoint 77: after the request for a sample")
            running.until_logged("subflows cannot be read, so the plugins get no sample: ")
            assert "remove endpoint 78" not in running.log
        mptcp_lab.client.run([*add, "192.0.2.2/32"])
        running.until_logged("remove endpoint 78: the sample has come")
        assert "Traceback" not in running.log
        assert "is excluded" not in running.log


def test_a_state_file_that_cannot_be_written_stops_nothing_else(tmp_path: Path) -> None:
    with plugin_host() as host, host.daemon(tmp_path, "--path-manager=addr_adv") as running:
        host.veth("a", "10.0.1.1/24")
        host.expect("10.0.1.1")
        with no_more_descriptors(running.process.pid):
            host.veth("b", "10.0.2.1/24", "10.0.3.1/24")
            host.expect("10.0.1.1", "10.0.2.1", "10.0.3.1")
            assert "the daemon's own endpoints cannot be saved: " in running.log
        host.veth("c", "10.0.4.1/24")
        host.expect("10.0.1.1", "10.0.2.1", "10.0.3.1", "10.0.4.1")
        assert "Traceback" not in running.log
        assert running.stop() == 0
        assert host.table == set()
