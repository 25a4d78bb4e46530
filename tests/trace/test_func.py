# SPDX-License-Identifier: BSD-3-Clause
"""Matching of patterns, the connection of a call, and decoding of registers."""

from mptcpd_ebpf.probes.kernel_types import Parameter, Prototype, Value
from mptcpd_ebpf.trace.func import Calls
from mptcpd_ebpf.trace.func_targets import SubjectKind, Symbols, subject
from mptcpd_ebpf.trace.lines.func import latency_bars
from mptcpd_ebpf.trace.lines.histograms import quantile

VOID = Value("void", 0)
INT = Value("int", 4, signed=True)
U8 = Value("u8", 1)
SOCK = Value("struct sock *", 8, pointed="sock")
SUBFLOW = Value("struct mptcp_subflow_context *", 8, pointed="mptcp_subflow_context")
SOCKET = Value("struct socket *", 8, pointed="socket")
OTHER = Value("struct msghdr *", 8, pointed="msghdr")

SYMBOLS = Symbols(
    """\
ffffffff82200000 T mptcp_sendmsg
ffffffff82200100 t mptcp_recvmsg
ffffffff82200200 t subflow_ulp_release
ffffffff82200300 t subflow_ulp_release.cold
ffffffff82100000 T tcp_sendmsg
ffffffff82200400 W msk_owned
ffffffff821ffff0 t __pfx_mptcp_sendmsg
ffffffff82300000 T __traceiter_ack_update_msk
ffffffff82300100 T __traceiter_tcp_probe
ffffffff83000000 d mptcp_pernet
ffffffffc0000000 t mptcp_diag_dump\t[mptcp_diag]
"""
)


def test_a_pattern_matches_only_mptcp_names() -> None:
    assert SYMBOLS.matching("*msg") == ["mptcp_recvmsg", "mptcp_sendmsg"]
    assert SYMBOLS.matching("*_msk") == ["ack_update_msk"]
    assert SYMBOLS.matching("*probe") == []
    assert SYMBOLS.matching("*") == [
        "ack_update_msk", "mptcp_diag_dump", "mptcp_recvmsg", "mptcp_sendmsg", "msk_owned",
        "subflow_ulp_release",
    ]  # fmt: skip


def test_a_complete_name_may_be_any_function() -> None:
    assert SYMBOLS.matching("tcp_sendmsg") == ["tcp_sendmsg"]
    assert SYMBOLS.matching("tcp_probe") == ["tcp_probe"]
    assert SYMBOLS.matching("tcp_send") == []


def of(*types: Value) -> Prototype:
    return Prototype([Parameter(f"arg{i}", each) for i, each in enumerate(types)], VOID)


def test_the_argument_nearest_to_a_subflow_identifies_the_connection() -> None:
    assert subject(of(INT, SOCK, OTHER)) == (SubjectKind.SOCK, 1)
    assert subject(of(SOCK, SUBFLOW)) == (SubjectKind.SUBFLOW, 1)
    assert subject(of(SOCKET, SOCK, SOCK)) == (SubjectKind.SOCK, 1)
    assert subject(of(SOCKET)) == (SubjectKind.SOCKET, 0)
    assert subject(of(INT, OTHER)) == (SubjectKind.NONE, 0)
    assert subject(of(*[INT] * 6, SOCK)) == (SubjectKind.NONE, 0), "programs get six arguments"


def test_a_register_is_decoded_by_its_type() -> None:
    assert INT.words(0xDEAD_BEEF_FFFF_FFFE) == "-2"
    assert INT.plain(0xFFFF_FFF5) == -11
    assert U8.words(0xFFFF_FF80) == "128"
    assert SOCK.words(0) == "NULL"
    assert SOCK.plain(0xFFFF_8881_0000_0000) == "0xffff888100000000"
    assert Value("bool", 1, truth=True).plain(0x1_01) is True
    states = Value("enum state", 4, names={0: "CLOSED", 1: "OPEN"})
    assert states.plain(1) == "OPEN"
    assert states.words(7) == "7"


def total(*slots: int) -> dict[str, object]:
    histogram = [slots.count(slot) for slot in range(32)]
    return {"calls": len(slots), "duration_ns": 100, "longest_ns": 7, "histogram": histogram}


def test_quantiles_and_bars_of_latencies() -> None:
    calls = Calls()
    calls.add(total(10, 10, 10), token=1, stack=-1)
    calls.add(total(12), token=2, stack=5)
    assert calls.calls == 4
    shares = [quantile(calls.histogram, share) for share in (0.5, 0.99)]
    assert shares == [2**11, 2**13]
    assert calls.connections == {1: 3, 2: 1}
    assert calls.stacks == {5: 1}
    drawn = latency_bars(calls.histogram)
    assert [line.count("█") for line in drawn] == [40, 0, 13]
    assert drawn[0].split() == ["1", "µs", "…", "2", "µs", "3", "█" * 40]
