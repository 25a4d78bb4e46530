# SPDX-License-Identifier: BSD-3-Clause
"""Reads record layouts from a BPF object's own BTF.

The layouts are declared once, in bpf/records.h; the compiler writes them into the object
as BTF (kernel: Documentation/bpf/btf.rst), and this module turns them into `struct.Struct`s.
Records may hold integers, enumerations, pointers, and arrays and structures of these; any
other type in a record raises BtfError.
"""

import struct
from dataclasses import dataclass
from functools import cached_property

_MAGIC = 0xEB9F
INT, PTR, ARRAY, STRUCT, UNION, ENUM = 1, 2, 3, 4, 5, 6
_TYPEDEF, _VOLATILE, _CONST, _RESTRICT = 8, 9, 10, 11
_FUNC_PROTO, _VAR, _DATASEC, _DECL_TAG, _TYPE_TAG, _ENUM64 = 13, 14, 15, 17, 18, 19
_SEE_THROUGH = (_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG)
# Bytes that follow the common 12 of a type: (fixed, per member).
_TAIL = {
    INT: (4, 0),
    ARRAY: (12, 0),
    STRUCT: (0, 12),
    UNION: (0, 12),
    ENUM: (0, 8),
    _FUNC_PROTO: (0, 8),
    _VAR: (4, 0),
    _DATASEC: (0, 12),
    _DECL_TAG: (4, 0),
    _ENUM64: (0, 12),
}
_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}


class BtfError(ValueError):
    """The BTF lacks a requested type, or has it in a form that records may not have."""


@dataclass(frozen=True, slots=True)
class Field:
    """A member of a record."""

    name: str
    offset: int
    size: int
    index: int
    """Index of its value in what `Layout.codec` unpacks."""
    count: int
    """Number of its values there: 1, or the length of an array."""

    @property
    def unseen(self) -> int:
        """All bits set: the value that means "unknown"."""
        return (1 << (8 * self.size // self.count)) - 1


@dataclass(frozen=True)
class Layout:
    """The memory layout of a record.

    Byte arrays and nested structures unpack to `bytes`, other arrays to as many values
    as they have elements.
    """

    name: str
    size: int
    codec: struct.Struct
    fields: dict[str, Field]


@dataclass(frozen=True, slots=True)
class Type:
    """One type; `kind` is one of INT, PTR, ARRAY, STRUCT, UNION, ENUM or another of BTF's."""

    kind: int
    name: str
    length: int
    size_or_type: int
    """Size in bytes; for a pointer, typedef or qualifier the id of the type it refers to."""
    tail: int
    """Offset of the data that follows the common 12 bytes."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a structure or union of an object or of the kernel."""

    name: str
    """Empty: an anonymous structure or union, whose members count as the outer one's."""
    type: Type
    bit: int
    """Offset in bits."""
    bits: int
    """Width of a bit field; 0 for any other member."""


class Btf:
    """The types of one object, or of the kernel.  `raw` is its .BTF section."""

    def __init__(self, raw: bytes) -> None:
        magic, _, _, header, types, types_len, strings, strings_len = struct.unpack_from(
            "=HBBIIIII", raw
        )
        if magic != _MAGIC:
            raise BtfError("no BTF in the machine's byte order")
        self._raw = raw
        self._strings = raw[header + strings : header + strings + strings_len]
        self._types: list[Type] = [Type(0, "void", 0, 0, 0)]
        position, end = header + types, header + types + types_len
        while position < end:
            name, info, size_or_type = struct.unpack_from("=III", raw, position)
            kind, length = info >> 24 & 0x1F, info & 0xFFFF
            position += 12
            self._types.append(Type(kind, self._text(name), length, size_or_type, position))
            fixed, each = _TAIL.get(kind, (0, 0))
            position += fixed + each * length

    def _text(self, offset: int) -> str:
        return self._strings[offset : self._strings.index(b"\0", offset)].decode()

    @cached_property
    def _named(self) -> dict[tuple[int, str], Type]:
        return {(each.kind, each.name): each for each in self._types if each.name}

    def _find(self, kind: int, name: str) -> Type:
        try:
            return self._named[kind, name]
        except KeyError:
            raise BtfError(f"the BPF object has no {name!r}") from None

    def _resolve(self, type_id: int) -> Type:
        found = self._types[type_id]
        while found.kind in _SEE_THROUGH:
            found = self._types[found.size_or_type]
        return found

    def _code(self, found: Type) -> tuple[str, int, int]:
        """The struct codes, the size and the number of values of a member's type."""
        if found.kind in (INT, ENUM):
            return _CODES[found.size_or_type], found.size_or_type, 1
        if found.kind == PTR:
            return "Q", 8, 1
        if found.kind in (STRUCT, UNION):
            return f"{found.size_or_type}s", found.size_or_type, 1
        if found.kind == ARRAY:
            element, length = self.array(found)
            code, size, values = self._code(element)
            if size == 1:
                return f"{length}s", length, 1
            if values == 1 and len(code) == 1:
                return f"{length}{code}", length * size, length
        raise BtfError(f"a record may not hold a {found.name or 'type'} of BTF kind {found.kind}")

    def structure(self, name: str) -> Type | None:
        """``struct name``; None if the BTF has none."""
        return self._named.get((STRUCT, name))

    def members(self, compound: Type) -> list[Member]:
        """The members of a structure or union."""
        found = []
        for i in range(compound.length):
            text, type_id, bits = struct.unpack_from("=III", self._raw, compound.tail + 12 * i)
            found.append(
                Member(self._text(text), self._resolve(type_id), bits & 0xFFFFFF, bits >> 24)
            )
        return found

    def array(self, found: Type) -> tuple[Type, int]:
        """The element type and the length of an array."""
        element_id, _, length = struct.unpack_from("=III", self._raw, found.tail)
        return self._resolve(element_id), length

    def target(self, pointer: Type) -> Type:
        """What a pointer points to."""
        return self._resolve(pointer.size_or_type)

    def signed(self, integer: Type) -> bool:
        """Whether an integer has a sign."""
        (encoding,) = struct.unpack_from("=I", self._raw, integer.tail)
        return bool(encoding >> 24 & 1)

    def layout(self, name: str) -> Layout:
        """The layout of ``struct name``.  Raises BtfError."""
        record = self._find(STRUCT, name)
        codes, fields, end, index = "=", {}, 0, 0
        for i in range(record.length):
            text, type_id, bits = struct.unpack_from("=III", self._raw, record.tail + 12 * i)
            code, size, values = self._code(self._resolve(type_id))
            offset, odd = divmod(bits, 8)
            if odd or bits >> 24:
                raise BtfError(f"struct {name}: a record may not hold bit fields")
            codes += f"{offset - end}x{code}"
            member = self._text(text)
            fields[member] = Field(member, offset, size, index, values)
            end, index = offset + size, index + values
        codes += f"{record.size_or_type - end}x"
        return Layout(name, record.size_or_type, struct.Struct(codes), fields)

    def enumeration(self, name: str) -> dict[str, int]:
        """The names and values of ``enum name``.  Raises BtfError."""
        found = self._find(ENUM, name)
        pairs = (
            struct.unpack_from("=Ii", self._raw, found.tail + 8 * i) for i in range(found.length)
        )
        return {self._text(text): value for text, value in pairs}

    def variables(self, section: str) -> dict[str, tuple[int, int]]:
        """Offset and size of each variable in a section such as ``.bss``.  Raises BtfError."""
        found = self._find(_DATASEC, section)
        triples = (
            struct.unpack_from("=III", self._raw, found.tail + 12 * i) for i in range(found.length)
        )
        return {self._types[variable].name: (offset, size) for variable, offset, size in triples}
