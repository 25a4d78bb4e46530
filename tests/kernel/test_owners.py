# SPDX-License-Identifier: BSD-3-Clause
"""Processes and their names, as this kernel reports them."""

import os
import socket
import subprocess
import sys

import pytest

from mptcpd_ebpf.kernel import owners
from tests.ordinary_user import AS_NOBODY
from tests.tree import ROOT

SLEEPER = """
import sys
open("/proc/self/comm", "wb").write(b"a\\x1b[2J\\xff\\nb")
print(flush=True)
sys.stdin.read()
"""


def test_a_name_that_its_process_chose_is_printable() -> None:
    argv = ["/usr/bin/python3", "-I", "-c", SLEEPER]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert owners.describe(process.pid).comm == "a\\x1b[2J\\xff\\x0ab"


def test_a_socket_belongs_to_the_process_that_has_it_open() -> None:
    with socket.socket() as mine, open("/dev/null") as other:
        inode, another = os.fstat(mine.fileno()).st_ino, os.fstat(other.fileno()).st_ino
        found = owners.owners({inode, another, 0})
        assert found.keys() == {inode}
        assert found[inode].pid == os.getpid()
    assert owners.owners({inode}) == {}


@pytest.mark.ordinary_user
@pytest.mark.parametrize(("capabilities", "seen"), [("+sys_ptrace", True), ("", False)])
def test_another_users_sockets_take_sys_ptrace_alone(capabilities: str, seen: bool) -> None:
    ask = "from mptcpd_ebpf.kernel import owners; print([*owners.owners({%d})])"
    held = ",".join(filter(None, ("-all", capabilities)))
    with socket.socket() as mine:
        inode = os.fstat(mine.fileno()).st_ino
        prefix = [*AS_NOBODY, f"--inh-caps={held}", f"--ambient-caps={held}"]
        done = subprocess.run(
            [*prefix, sys.executable, "-c", ask % inode],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    assert done.stdout == (f"[{inode}]\n" if seen else "[]\n"), done.stderr
