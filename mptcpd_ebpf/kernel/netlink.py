# SPDX-License-Identifier: BSD-3-Clause
"""Netlink messages as bytes: headers, attributes, and the answers to a request.  No sockets here.

A message is a 16-byte header (length, type, flags, sequence, port) and a body; a
body is a family's fixed header and attributes, each with a 4-byte header (length,
type) and padded to 4 bytes.  Integers are in host order unless said otherwise
(kernel: include/uapi/linux/netlink.h, Documentation/userspace-api/netlink/intro.rst).

A request is answered by any number of messages with its sequence number and ends
with an acknowledgement (NLMSG_ERROR, whose code is 0 for success) or, for a dump,
with NLMSG_DONE.  Both can carry an extended acknowledgement: the kernel's own words
and the offset of the attribute it means.  `Pending` collects that.
"""

import sys
from collections.abc import Callable, Generator, Iterator
from struct import Struct
from typing import NamedTuple, TypeVar

HEADER = Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence, port."""
ATTRIBUTE = Struct("=HH")
"""struct nlattr: length, type."""
GENERIC_HEADER = Struct("=BBH")
"""struct genlmsghdr: command, version, reserved."""

NLMSG_ERROR = 2
NLMSG_DONE = 3
NLMSG_FIRST_FAMILY_TYPE = 16

NLM_F_REQUEST = 0x1
NLM_F_MULTI = 0x2
NLM_F_ACK = 0x4
NLM_F_DUMP_INTR = 0x10
NLM_F_REPLACE = 0x100
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200
NLM_F_DUMP = 0x300

NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

_NLMSGERR_ATTR_MSG = 1
_NLMSGERR_ATTR_OFFS = 2
_NLMSGERR_ATTR_MISS_TYPE = 5

_U8 = Struct("=B")
_U16 = Struct("=H")
_U32 = Struct("=I")
_S32 = Struct("=i")

Buffer = bytes | bytearray | memoryview
Names = Callable[[list[int]], str]
"""Says an attribute's name, given the types from the outermost nest inwards."""


class Request(NamedTuple):
    """A request without its sequence number."""

    kind: int
    body: bytes
    dump: bool = False
    fixed: int = 0
    """Length of the family's fixed header at the start of `body`."""
    names: Names = str


class Reply(NamedTuple):
    """The whole answer to one request."""

    errno: int
    """0 for success."""
    message: str
    """The kernel's extended acknowledgement, with the attribute it names; often empty."""
    parts: list[bytes]
    """Bodies of the messages that came before the acknowledgement."""
    interrupted: bool = False
    """The table changed during the dump: repeat the request."""


T = TypeVar("T")
Operation = Generator[Request, Reply, T]
"""Requests out, replies in, a result at the end: what a driver of either kind runs."""


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded."""
    length = ATTRIBUTE.size + len(payload)
    return ATTRIBUTE.pack(length, kind) + payload + bytes(-length & 3)


def nest(kind: int, *inner: bytes) -> bytes:
    return attribute(kind | NLA_F_NESTED, b"".join(inner))


def u8(kind: int, value: int) -> bytes:
    return attribute(kind, _U8.pack(value))


def u16(kind: int, value: int) -> bytes:
    return attribute(kind, _U16.pack(value))


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, _U32.pack(value))


def s32(kind: int, value: int) -> bytes:
    return attribute(kind, _S32.pack(value))


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    return HEADER.pack(HEADER.size + len(body), kind, flags, sequence, 0) + body


def messages(data: Buffer, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Walks the messages of one datagram: (type, flags, sequence, body start, body end).

    Raises ValueError for a header whose length does not fit the datagram.
    """
    offset = 0
    while offset + HEADER.size <= end:
        length, kind, flags, sequence, _port = HEADER.unpack_from(data, offset)
        if length < HEADER.size or offset + length > end:
            raise ValueError(f"netlink message of {length} bytes at offset {offset} of {end}")
        yield kind, flags, sequence, offset + HEADER.size, offset + length
        offset += (length + 3) & ~3


def attributes(data: Buffer, start: int, end: int) -> dict[int, bytes]:
    """Payloads by attribute type; of a repeated type the last one counts, as in the kernel.

    Raises ValueError for an attribute whose length does not fit.
    """
    found: dict[int, bytes] = {}
    while start + ATTRIBUTE.size <= end:
        length, kind = ATTRIBUTE.unpack_from(data, start)
        if length < ATTRIBUTE.size or start + length > end:
            raise ValueError(f"netlink attribute of {length} bytes at offset {start} of {end}")
        found[kind & NLA_TYPE_MASK] = bytes(data[start + ATTRIBUTE.size : start + length])
        start += (length + 3) & ~3
    return found


def attribute_at(data: bytes, start: int, offset: int) -> list[int]:
    """Types of the attributes around byte `offset` of `data`, from the outermost nest inwards.

    Attributes begin at `start`.  Empty if no attribute is there.
    """
    path: list[int] = []
    end = len(data)
    while start + ATTRIBUTE.size <= end:
        length, kind = ATTRIBUTE.unpack_from(data, start)
        if length < ATTRIBUTE.size:
            break
        if start <= offset < start + length:
            path.append(kind & NLA_TYPE_MASK)
            if start == offset or not kind & NLA_F_NESTED:
                break
            start, end = start + ATTRIBUTE.size, start + length
        else:
            start += (length + 3) & ~3
    return path


def number(payload: bytes) -> int:
    """An unsigned integer attribute of any width."""
    return int.from_bytes(payload, sys.byteorder)


class Pending:
    """The answer to one request, as far as it has arrived."""

    def __init__(self, request: Request, sequence: int) -> None:
        self._request = request
        self._sequence = sequence
        self._parts: list[bytes] = []
        self._interrupted = False
        self.reply: Reply | None = None
        """None until the last message has arrived."""

    def encode(self) -> bytes:
        flags = NLM_F_REQUEST | (NLM_F_DUMP if self._request.dump else NLM_F_ACK)
        return message(self._request.kind, flags, self._sequence, self._request.body)

    def feed(self, kind: int, flags: int, data: Buffer, start: int, end: int) -> None:
        """Takes one message of the answer.  Raises ValueError or struct.error if it is mangled."""
        if flags & NLM_F_DUMP_INTR:
            self._interrupted = True
        if kind not in (NLMSG_ERROR, NLMSG_DONE):
            self._parts.append(bytes(data[start:end]))
            return
        code = -_S32.unpack_from(data, start)[0] if end - start >= _S32.size else 0
        start += _S32.size
        if kind == NLMSG_ERROR:
            echoed: int = HEADER.unpack_from(data, start)[0]
            start += HEADER.size if flags & NLM_F_CAPPED or not code else (echoed + 3) & ~3
        words = ""
        if flags & NLM_F_ACK_TLVS:
            words = self._words(attributes(data, start, end))
        # A positive number in NLMSG_DONE is a length some families leave there.
        self.reply = Reply(max(code, 0), words, self._parts, self._interrupted)

    def fail(self, code: int, words: str) -> None:
        """Ends it without an answer."""
        self.reply = Reply(code, words, self._parts, self._interrupted)

    def _words(self, extended: dict[int, bytes]) -> str:
        words = extended.get(_NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode("utf-8", "replace")
        names = self._request.names
        if _NLMSGERR_ATTR_OFFS in extended:
            offset = number(extended[_NLMSGERR_ATTR_OFFS]) - HEADER.size
            path = attribute_at(self._request.body, self._request.fixed, offset)
            if path:
                words += f" ({names(path)})" if words else names(path)
        if _NLMSGERR_ATTR_MISS_TYPE in extended:
            missing = names([number(extended[_NLMSGERR_ATTR_MISS_TYPE])])
            words += f" ({missing} is missing)" if words else f"{missing} is missing"
        return words
