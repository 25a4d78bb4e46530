# SPDX-License-Identifier: BSD-3-Clause
"""The line server works over paths that lose packets, fail, or remove MPTCP options."""

import pathlib
import socket
import subprocess
import sys

import pytest

SERVER = pathlib.Path(__file__).with_name("line_server.py")
PORT = 7000


@pytest.fixture
def lab(mptcp_lab):
    """The test's lab, with the line server running on its server host."""
    server = mptcp_lab.server.popen(
        [sys.executable, str(SERVER), str(PORT)], stdout=subprocess.PIPE, text=True
    )
    with server, server.stdout:
        assert server.stdout.readline() == "ready\n"
        yield mptcp_lab
        server.terminate()


def connect(lab):
    """A connection from the client host to the server's first address."""
    with lab.client.entered():
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
    connection.settimeout(20)
    connection.connect((lab.paths[0].server_ip, PORT))
    return connection


def ask(lines, text):
    lines.write(text + "\n")
    lines.flush()
    return lines.readline().rstrip("\n")


@pytest.mark.mptcp_lab(paths=[{"delay_ms": 5, "loss_percent": 10}], seed=1)
def test_every_line_is_answered_over_a_lossy_path(lab):
    with connect(lab) as connection, connection.makefile("rw") as lines:
        for number in range(30):
            assert ask(lines, f"line {number}") == f"LINE {number}"


@pytest.mark.mptcp_lab(paths=[{"name": "wlan", "delay_ms": 5}, {"name": "lte", "delay_ms": 20}])
def test_the_conversation_goes_on_when_the_first_path_fails(lab):
    wlan, lte = lab.paths
    lab.client.run(["ip", "mptcp", "endpoint", "add", lte.client_ip, "subflow"])
    with connect(lab) as connection, connection.makefile("rw") as lines:
        assert ask(lines, "hello") == "HELLO"
        lte.wait_for_subflow()
        wlan.blackhole()
        assert ask(lines, "still there?") == "STILL THERE?"


@pytest.mark.mptcp_lab(paths=[{"delay_ms": 5}])
def test_it_works_as_plain_tcp_through_a_middlebox_that_strips_mptcp(lab):
    lab.paths[0].strip_mptcp()
    with connect(lab) as connection, connection.makefile("rw") as lines:
        assert ask(lines, "hello") == "HELLO"
