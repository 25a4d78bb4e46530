# SPDX-License-Identifier: BSD-3-Clause
"""A read of the control socket reaches no plugin, so it can change no decision."""

import socket
import time
from pathlib import Path

from mptcpd_ebpf.lab import Lab
from tests.netns.daemon_host import connections, daemon_in
from tests.netns.daemon_process import RunningDaemon
from tests.netns.mptcp_sockets import connection, exchange
from tests.netns.witness import HandlerLog
from tests.waiting import until

READING_S = 2.0


def scrape(running: RunningDaemon) -> str:
    """The answer to ``GET /metrics``."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(running.control))
        asking.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        with asking.makefile() as answer:
            return answer.read()


def test_reads_reach_no_plugin(mptcp_lab: Lab, tmp_path: Path) -> None:
    handler_log = HandlerLog(tmp_path)
    file = tmp_path / "c.yaml"
    file.write_text("metrics: {enabled: true}\n")
    options = ("--plugin-dir", str(handler_log.plugins(witness=0)), "--path-manager=witness")
    with (
        daemon_in(mptcp_lab.client, tmp_path, "--config", str(file), *options) as running,
        connection(mptcp_lab) as ends,
    ):
        exchange(ends, b"x" * 1000)
        handler_log.until("connection_established")
        until(lambda: bool(connections(running)), "the connection is shown")
        before = handler_log.rows
        deadline = time.monotonic() + READING_S
        reads = 0
        while time.monotonic() < deadline:
            exchange(ends, b"x" * 1000)  # so that each read measures something else
            (shown,) = connections(running)
            assert "mptcpd_ebpf_connections 1.0" in scrape(running)
            reads += 1
        assert running.ask("ls").returncode == 0
        assert shown["subflows"][0]["srtt_us"] > 0
        assert reads > 10
        assert handler_log.rows == before
