# SPDX-License-Identifier: BSD-3-Clause
"""Processes and their names, as this kernel reports them."""

import subprocess

from mptcpd_ebpf.kernel import owners

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
