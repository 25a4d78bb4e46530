# SPDX-License-Identifier: BSD-3-Clause
"""The running kernel's types as read by libbpf agree with the Python reader and the source."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mptcpd_ebpf.probes.bpf_object import VMLINUX_BTF
from mptcpd_ebpf.probes.btf import Btf
from mptcpd_ebpf.probes.kernel_types import KernelTypes


@pytest.fixture
def types() -> Iterator[KernelTypes]:
    if not Path(VMLINUX_BTF).exists():
        pytest.skip(f"no {VMLINUX_BTF}")
    with KernelTypes() as types:
        yield types


def test_a_function_has_the_prototype_of_the_source(types: KernelTypes) -> None:
    found = types.function("mptcp_sendmsg")
    assert found is not None
    # net/mptcp/protocol.c
    assert [(each.name, each.type.text) for each in found.parameters] == [
        ("sk", "struct sock *"),
        ("msg", "struct msghdr *"),
        ("len", "size_t"),
    ]
    assert [each.type.pointed for each in found.parameters] == ["sock", "msghdr", None]
    assert (found.result.text, found.result.size, found.result.signed) == ("int", 4, True)


def test_pointers_have_the_types_of_the_source(types: KernelTypes) -> None:
    # net/ipv4/tcp.c, kernel/bpf/syscall.c, net/core/skbuff.c
    closed = types.function("tcp_close")
    assert closed is not None
    assert closed.result.size == 0
    copied = types.function("skb_copy_bits")
    assert copied is not None
    assert [each.type.text for each in copied.parameters] == [
        "const struct sk_buff *", "int", "void *", "int"
    ]  # fmt: skip
    assert copied.parameters[2].type.pointed == ""


def test_a_tracepoint_omits_the_internal_first_argument(types: KernelTypes) -> None:
    found = types.tracepoint("mptcp_subflow_get_send")
    assert found is not None
    assert [(each.name, each.type.pointed) for each in found.parameters] == [
        ("subflow", "mptcp_subflow_context")
    ]


def test_enumerations_agree_with_the_other_reader(types: KernelTypes) -> None:
    other = Btf(Path(VMLINUX_BTF).read_bytes())
    for name in ("mptcp_event_type", "bpf_prog_type"):
        assert types.enumeration(name) == {
            value: text for text, value in other.enumeration(name).items()
        }
    event = types.function("mptcp_event")
    assert event is not None
    assert event.parameters[0].type.words(1) == "MPTCP_EVENT_CREATED"


def test_types_that_the_kernel_lacks_are_none(types: KernelTypes) -> None:
    assert types.function("no_such_function") is None
    assert types.tracepoint("no_such_tracepoint") is None
    assert types.enumeration("no_such_enumeration") == {}
