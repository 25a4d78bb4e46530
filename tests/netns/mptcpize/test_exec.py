# SPDX-License-Identifier: BSD-3-Clause
"""`mptcpd-ebpf exec` on the real kernel, in namespaces that end with their last process.

An unmodified server and an unmodified client communicate over loopback; the protocol is read
from SO_PROTOCOL, MPTCP_INFO and the namespace's MPTcpExt counters.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import SLOWNESS

COMMAND = Path(sys.executable).with_name("mptcpd-ebpf")

_TABLE = """
import errno, json, socket as s
rows = []
for family in (s.AF_UNSPEC, s.AF_UNIX, s.AF_INET, s.AF_INET6, s.AF_NETLINK, s.AF_PACKET, 99):
    for kind in (s.SOCK_STREAM, s.SOCK_DGRAM, s.SOCK_RAW, s.SOCK_SEQPACKET):
        for flags in (0, s.SOCK_NONBLOCK, s.SOCK_CLOEXEC, s.SOCK_NONBLOCK | s.SOCK_CLOEXEC):
            for protocol in (0, s.IPPROTO_TCP, s.IPPROTO_UDP, 58, 262):
                try:
                    with s.socket(family, kind | flags, protocol) as made:
                        got = [made.getsockopt(s.SOL_SOCKET, option)
                               for option in (s.SO_PROTOCOL, s.SO_TYPE, s.SO_DOMAIN)]
                        got.append(made.getblocking())
                except OSError as error:
                    got = errno.errorcode[error.errno]
                rows.append([[family, kind, flags, protocol], got])
print(json.dumps(rows))
"""

_TALK = """
import json, socket as s
from pathlib import Path
family, address = (s.AF_INET6, "::1") if %d == 6 else (s.AF_INET, "127.0.0.1")
with s.socket(family) as listener, s.socket(family) as client:
    listener.bind((address, 0))
    listener.listen()
    client.connect(listener.getsockname())
    server, _ = listener.accept()
    with server:
        client.sendall(b"ping")
        received = server.recv(4)
        server.sendall(b"pong")
        answer = client.recv(4)
        try:
            token = len(client.getsockopt(284, 1, 256)) > 0  # SOL_MPTCP, MPTCP_INFO
        except OSError:
            token = False
lines = [line.split() for line in Path("/proc/self/net/netstat").read_text().splitlines()]
counters = {}
for names, values in zip(lines[::2], lines[1::2]):
    counters |= {f"{names[0]}{name}": int(value) for name, value in zip(names[1:], values[1:])}
print(json.dumps({"received": [received.decode(), answer.decode()], "mptcp_info": token,
                  "capable": counters["MPTcpExt:MPCapableSYNRX"],
                  "fallback": counters["MPTcpExt:MPCapableFallbackACK"]}))
"""


def in_namespace(*command: object, mptcp: bool = True) -> Any:
    """Runs a command in a new network namespace and returns the JSON it prints."""
    setup = f'ip link set lo up; echo {int(mptcp)} > /proc/sys/net/mptcp/enabled; exec "$@"'
    done = subprocess.run(
        ["unshare", "--net", "sh", "-ec", setup, "sh", *map(str, command)],
        capture_output=True,
        text=True,
        timeout=60 * SLOWNESS,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def is_tcp(family: int, kind: int, protocol: int) -> bool:
    return family in (2, 10) and kind == 1 and protocol in (0, 6)


def test_only_tcp_sockets_become_mptcp_with_mptcp_on() -> None:
    plain = in_namespace(sys.executable, "-c", _TABLE)
    ours = in_namespace(COMMAND, "exec", sys.executable, "-c", _TABLE)
    expected = [
        [row, [262, *got[1:]] if is_tcp(row[0], row[1], row[3]) else got] for row, got in plain
    ]
    assert ours == expected
    assert sum(is_tcp(row[0], row[1], row[3]) for row, _ in plain) == 16


def test_no_socket_changes_with_mptcp_off() -> None:
    plain = in_namespace(sys.executable, "-c", _TABLE, mptcp=False)
    assert in_namespace(COMMAND, "exec", sys.executable, "-c", _TABLE, mptcp=False) == plain


@pytest.mark.parametrize("version", [4, 6])
def test_unmodified_programs_use_mptcp(version: int) -> None:
    talk = [sys.executable, "-c", _TALK % version]
    assert in_namespace(COMMAND, "exec", *talk) == {
        "received": ["ping", "pong"],
        "mptcp_info": True,
        "capable": 1,
        "fallback": 0,
    }
    assert in_namespace(*talk)["capable"] == 0


def test_unmodified_programs_use_tcp_where_mptcp_is_off() -> None:
    talk = [sys.executable, "-c", _TALK % 4]
    assert in_namespace(COMMAND, "exec", *talk, mptcp=False) == {
        "received": ["ping", "pong"],
        "mptcp_info": False,
        "capable": 0,
        "fallback": 0,
    }


def test_debug_reports_why_a_socket_stays_tcp() -> None:
    script = "import socket; print(socket.socket().getsockopt(1, 38))"
    setup = 'echo 0 > /proc/sys/net/mptcp/enabled; exec "$@"'
    within = ("unshare", "--net", "sh", "-ec", setup, "sh")
    done = subprocess.run(
        [*within, COMMAND, "exec", "-d", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60 * SLOWNESS,
        check=True,
    )
    assert done.stdout == "6\n"
    assert done.stderr.endswith(": stays TCP (Protocol not available)\n")
