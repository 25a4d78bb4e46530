# SPDX-License-Identifier: BSD-3-Clause
"""A connection that the peer closes with MP_FASTCLOSE is removed, without an event for it."""

import socket
from pathlib import Path

from mptcpd_ebpf.lab import Lab
from tests.netns.daemon_host import PATIENCE_S, connections, daemon_in
from tests.netns.mptcp_peers import connected, peer
from tests.netns.witness import HandlerLog
from tests.waiting import until

ROUNDS = 5


def close_unread(closing: socket.socket, other: socket.socket) -> None:
    """Closes with unread data, for which Linux sends MP_FASTCLOSE."""
    other.sendall(b"unread")
    closing.recv(1, socket.MSG_PEEK)
    closing.close()
    try:
        while other.recv(100):
            pass
    except ConnectionResetError:
        return
    raise AssertionError("the connection was closed without a reset")


def test_a_connection_closed_with_fastclose_is_removed(mptcp_lab: Lab, tmp_path: Path) -> None:
    handler_log = HandlerLog(tmp_path)
    folder = handler_log.plugins(witness=0)
    options = ("--probes=core", "--plugin-dir", str(folder), "--path-manager=witness")
    with (
        daemon_in(mptcp_lab.server, tmp_path, *options) as running,
        peer(mptcp_lab.client) as client,
        peer(mptcp_lab.server) as server,
    ):
        for _ in range(ROUNDS):
            with connected(client, server, mptcp_lab.paths[0].server_ip) as pair:
                close_unread(pair.client, pair.server)
        until(
            lambda: len(handler_log.calls("connection_closed")) == ROUNDS,
            f"all are removed\n{running.log}",
            PATIENCE_S,
        )
        assert connections(running) == []
        assert len(handler_log.calls("subflow_closed")) == ROUNDS
