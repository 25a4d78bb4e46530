# SPDX-License-Identifier: BSD-3-Clause
"""A connection that the peer ends at a stroke is forgotten, although the kernel tells nobody."""

import socket
from pathlib import Path

from mptcpd_ebpf.lab import Lab
from tests.netns.daemon_host import PATIENCE_S, connections, daemon_in
from tests.netns.mptcp_peers import connected, peer
from tests.netns.witness import Testimony
from tests.waiting import until

ROUNDS = 5


def leave_rudely(leaving: socket.socket, left: socket.socket) -> None:
    """Closes with unread data, for which Linux sends MP_FASTCLOSE."""
    left.sendall(b"unread")
    leaving.recv(1, socket.MSG_PEEK)
    leaving.close()
    try:
        while left.recv(100):
            pass
    except ConnectionResetError:
        return
    raise AssertionError("that was a polite end")


def test_a_connection_ended_by_fastclose_is_forgotten(mptcp_lab: Lab, tmp_path: Path) -> None:
    testimony = Testimony(tmp_path)
    folder = testimony.plugins(witness=0)
    options = ("--probes=core", "--plugin-dir", str(folder), "--path-manager=witness")
    with (
        daemon_in(mptcp_lab.server, tmp_path, *options) as running,
        peer(mptcp_lab.client) as client,
        peer(mptcp_lab.server) as server,
    ):
        for _ in range(ROUNDS):
            with connected(client, server, mptcp_lab.paths[0].server_ip) as pair:
                leave_rudely(pair.client, pair.server)
        until(
            lambda: len(testimony.calls("connection_closed")) == ROUNDS,
            f"all are forgotten\n{running.log}",
            PATIENCE_S,
        )
        assert connections(running) == []
        assert len(testimony.calls("subflow_closed")) == ROUNDS
