# SPDX-License-Identifier: BSD-3-Clause
"""The netlink codec: messages are read back as written, and damaged ones are refused."""

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcpd_ebpf.kernel import netlink as nl

PAYLOADS = st.binary(max_size=40)
TYPES = st.integers(1, nl.NLA_TYPE_MASK)


def error_message(code: int, *extended: bytes, capped: bool = True, request: bytes = b"") -> bytes:
    """An NLMSG_ERROR as netlink_ack() in net/netlink/af_netlink.c builds it."""
    flags = (nl.NLM_F_CAPPED if capped else 0) | (nl.NLM_F_ACK_TLVS if extended else 0)
    echoed = nl.message(99, 5, 7, request)
    body = struct.pack("=i", -code) + (echoed[: nl.HEADER.size] if capped else echoed)
    return nl.message(nl.NLMSG_ERROR, flags, 7, body + b"".join(extended))


def answer(request: nl.Request, *datagrams: bytes) -> nl.Reply:
    pending = nl.Pending(request, 7)
    for datagram in datagrams:
        for kind, flags, sequence, start, end in nl.messages(datagram, len(datagram)):
            assert sequence == 7
            pending.feed(kind, flags, datagram, start, end)
    assert pending.reply is not None
    return pending.reply


@given(st.lists(st.tuples(TYPES, PAYLOADS)))
def test_attributes_are_read_back(items: list[tuple[int, bytes]]) -> None:
    data = b"".join(nl.attribute(kind, payload) for kind, payload in items)
    assert len(data) % 4 == 0
    assert nl.attributes(data, 0, len(data)) == dict(items)


@given(st.lists(st.tuples(st.integers(16, 0xFFFF), st.integers(0, 0xFFFF), PAYLOADS)))
def test_messages_are_read_back(items: list[tuple[int, int, bytes]]) -> None:
    data = b""
    for number, (kind, flags, body) in enumerate(items):
        encoded = nl.message(kind, flags, number, body)
        data += encoded + bytes(-len(encoded) & 3)
    read = [
        (kind, flags, data[start:end])
        for kind, flags, _sequence, start, end in nl.messages(data, len(data))
    ]
    assert read == items


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_read(data: bytes) -> None:
    pending = nl.Pending(nl.Request(16, b""), 7)
    try:
        for kind, flags, _sequence, start, end in nl.messages(data, len(data)):
            pending.feed(kind, flags, data, start, end)
        nl.attributes(data, 0, len(data))
    except (ValueError, struct.error):
        pass


@pytest.mark.parametrize("length", [0, 3, 13, 0xFFFF])
def test_a_length_that_does_not_fit_is_refused(length: int) -> None:
    data = struct.pack("=HH", length, 1) + bytes(8)
    with pytest.raises(ValueError, match=f"attribute of {length} bytes"):
        nl.attributes(data, 0, len(data))
    data = struct.pack("=IHHII", length, 16, 0, 0, 0)
    with pytest.raises(ValueError, match=f"message of {length} bytes"):
        list(nl.messages(data, len(data)))


@given(TYPES, st.lists(PAYLOADS, min_size=1, max_size=5), st.data())
def test_an_attribute_is_found_by_its_offset(
    outer: int, payloads: list[bytes], data: st.DataObject
) -> None:
    wanted = data.draw(st.integers(0, len(payloads) - 1))
    inner = [nl.attribute(kind + 1, payload) for kind, payload in enumerate(payloads)]
    body = b"head" + nl.nest(outer, *inner)
    offset = len(b"head") + nl.ATTRIBUTE.size + sum(map(len, inner[:wanted]))
    assert nl.attribute_at(body, len(b"head"), offset) == [outer, wanted + 1]
    assert nl.attribute_at(body, len(b"head"), len(b"head")) == [outer]
    assert nl.attribute_at(body, len(b"head"), len(body)) == []


def test_success_is_an_error_of_zero() -> None:
    assert answer(nl.Request(99, b""), error_message(0)) == nl.Reply(0, "", [])


@pytest.mark.parametrize("capped", [True, False])
def test_the_kernels_words_and_the_attribute_they_mean(capped: bool) -> None:
    body = b"head" + nl.u32(1, 5) + nl.nest(2, nl.u8(3, 4))
    offset = nl.HEADER.size + len(b"head") + 8 + nl.ATTRIBUTE.size
    request = nl.Request(99, body, fixed=4, names=lambda path: "/".join(map(str, path)))
    message = error_message(
        errno.EINVAL,
        nl.attribute(1, b"no such thing\0"),
        nl.u32(2, offset),
        capped=capped,
        request=body,
    )
    assert answer(request, message) == nl.Reply(errno.EINVAL, "no such thing (2/3)", [])


def test_a_missing_attribute_is_named() -> None:
    request = nl.Request(99, b"", names=lambda path: f"attribute {path[0]}")
    reply = answer(request, error_message(errno.EINVAL, nl.u32(5, 4)))
    assert reply.message == "attribute 4 is missing"


def test_a_dump_ends_with_done() -> None:
    parts = [nl.message(20, nl.NLM_F_MULTI, 7, body) for body in (b"abcd", b"efgh")]
    done = nl.message(nl.NLMSG_DONE, nl.NLM_F_MULTI, 7, struct.pack("=i", 0))
    request = nl.Request(22, b"", dump=True)
    assert answer(request, parts[0] + parts[1], done) == nl.Reply(0, "", [b"abcd", b"efgh"])

    failed = nl.message(nl.NLMSG_DONE, nl.NLM_F_MULTI, 7, struct.pack("=i", -errno.ENOMEM))
    assert answer(request, parts[0], failed).errno == errno.ENOMEM


def test_an_interrupted_dump_is_marked() -> None:
    flags = nl.NLM_F_MULTI | nl.NLM_F_DUMP_INTR
    done = nl.message(nl.NLMSG_DONE, flags, 7, struct.pack("=i", 0))
    assert answer(nl.Request(22, b"", dump=True), done).interrupted


def test_requests_ask_for_an_answer() -> None:
    for dump, flags in ((False, nl.NLM_F_REQUEST | nl.NLM_F_ACK), (True, 0x301)):
        encoded = nl.Pending(nl.Request(99, b"body", dump=dump), 7).encode()
        assert nl.HEADER.unpack_from(encoded) == (len(encoded), 99, flags, 7, 0)
        assert encoded.endswith(b"body")
