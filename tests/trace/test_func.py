# SPDX-License-Identifier: BSD-3-Clause
"""`trace func` says what a kernel lacks, and what would do instead."""

from mptcpd_ebpf.exitcodes import ExitCode
from mptcpd_ebpf.trace.func import way

SYMBOLS = ["mptcp_sendmsg", "mptcp_recvmsg", "tcp_sendmsg", "__traceiter_mptcp_sendmsg_frag"]


def test_a_kernel_without_kprobes() -> None:
    told = way("mptcp_*msg", SYMBOLS)
    assert told.exit_code == ExitCode.NO_MPTCP
    assert "2 functions match" in str(told)
    assert "CONFIG_KPROBES" in str(told)
    assert "mptcp_sendmsg_frag" in str(told)


def test_a_kernel_with_kprobes() -> None:
    told = way("mptcp_*msg", [*SYMBOLS, "register_kprobe"])
    assert "bpftrace -e 'kprobe:mptcp_*msg" in str(told)


def test_a_name_that_is_none() -> None:
    assert way("tcp_*", SYMBOLS).exit_code == ExitCode.USAGE
