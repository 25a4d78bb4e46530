# SPDX-License-Identifier: BSD-3-Clause
"""Files of /proc that the kernel writes for people, read by programs."""

from mptcpd_ebpf.kernel import counters, others

NETSTAT = """\
TcpExt: SyncookiesSent SyncookiesRecv
TcpExt: 1 2
MPTcpExt: MPCapableSYNRX MPJoinRejected
MPTcpExt: 3 18446744073709551615
"""

NETLINK = """\
sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode
0000000086695747 0   9899       00000100 0        0        0     2        0        15154
00000000f7e8716d 16  9899       00000180 0        0        0     2        0        15155
00000000aa582cc3 16  0          00000000 0        0        0     2        0        16010
000000000a320e89 16  3014770    ffffffff 1664     0        0     2        3        16029
"""


def test_counters_are_the_mptcp_section() -> None:
    assert counters.parse(NETSTAT) == {"MPCapableSYNRX": 3, "MPJoinRejected": 2**64 - 1}


def test_a_kernel_without_mptcp_counts_nothing() -> None:
    assert counters.parse("TcpExt: A\nTcpExt: 1\n") == {}


def test_subscribers_by_group() -> None:
    assert others.parse_proc(NETLINK, 9) == {15155, 16029}
    assert others.parse_proc(NETLINK, 8) == {15155, 16029}
    assert others.parse_proc(NETLINK, 7) == {16029}
    assert others.parse_proc(NETLINK, 32) == {16029}


def test_groups_beyond_the_file_are_unseen() -> None:
    assert others.parse_proc(NETLINK, 33) == set()
