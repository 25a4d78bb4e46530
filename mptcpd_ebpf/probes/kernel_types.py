# SPDX-License-Identifier: BSD-3-Clause
"""Prototypes and enumerations of the running kernel, from its BTF.

libbpf parses the five megabytes of /sys/kernel/btf/vmlinux in a few milliseconds, where
Python takes a second; this module then reads requested types in place (include/uapi/linux/btf.h,
Documentation/bpf/btf.rst).
"""

import ctypes
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

from mptcpd_ebpf.probes.libbpf import Libbpf

# include/uapi/linux/btf.h
_INT, _PTR, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF = 1, 2, 4, 5, 6, 7, 8
_VOLATILE, _CONST, _RESTRICT, _FUNC, _FUNC_PROTO, _TYPE_TAG, _ENUM64 = 9, 10, 11, 12, 13, 18, 19
_WORDS = {_STRUCT: "struct ", _UNION: "union ", _ENUM: "enum ", _FWD: "struct ", _ENUM64: "enum "}
_QUALIFIERS = {_VOLATILE: "volatile ", _CONST: "const ", _RESTRICT: ""}
_SIGNED, _BOOL = 1, 4
TRACE_ITERATOR = "__traceiter_"
"""Prefix of the kernel function that runs a tracepoint's probes."""


class Value(NamedTuple):
    """The type of an argument or a result."""

    text: str
    """In C."""
    size: int
    """Bytes; 0 for void."""
    signed: bool = False
    truth: bool = False
    pointed: str | None = None
    """The name of the structure that it points to; "" if it points to something else."""
    names: dict[int, str] | None = None
    """The names of an enumeration by value."""

    def read(self, register: int) -> int:
        """The value in a register; the type occupies its lower bytes."""
        bits = 8 * min(self.size, 8)
        value = register & ((1 << bits) - 1)
        return value - (1 << bits) if self.signed and value >> (bits - 1) else value

    def plain(self, register: int) -> int | str | bool:
        """For JSON: pointers in hexadecimal, enumerations by name."""
        value = self.read(register)
        if self.names is not None or self.pointed is not None:
            return self.words(register)
        return bool(value) if self.truth else value

    def words(self, register: int) -> str:
        """As text: pointers in hexadecimal, enumerations by name."""
        value = self.read(register)
        if self.names is not None:
            return self.names.get(value, str(value))
        if self.truth:
            return "true" if value else "false"
        if self.pointed is not None:
            return hex(value) if value else "NULL"
        return str(value)


class Parameter(NamedTuple):
    name: str
    type: Value


@dataclass(frozen=True)
class Prototype:
    parameters: list[Parameter]
    result: Value


class KernelTypes:
    """The types of the running kernel.  A context manager that frees them.

    Raises OSError if the kernel has no BTF.
    """

    def __init__(self) -> None:
        self._bpf = Libbpf()
        self._btf = self._bpf.pointer("btf__load_vmlinux_btf")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bpf.btf__free(self._btf)

    def function(self, name: str) -> Prototype | None:
        """The prototype of a function; None if the BTF does not have it."""
        found = self._bpf.btf__find_by_name_kind(self._btf, name.encode(), _FUNC)
        return None if found < 0 else self._prototype(self._type(found)[2])

    def tracepoint(self, name: str) -> Prototype | None:
        """The prototype of a BTF tracepoint; None if the BTF does not have it.

        BTF has a typedef of a pointer to a function, whose first argument programs do not
        receive (kernel/bpf/verifier.c).
        """
        found = self._bpf.btf__find_by_name_kind(self._btf, f"btf_trace_{name}".encode(), _TYPEDEF)
        if found < 0:
            return None
        pointer = self._type(found)[2]
        whole = self._prototype(self._type(pointer)[2])
        named = self._bpf.btf__find_by_name_kind(
            self._btf, f"{TRACE_ITERATOR}{name}".encode(), _FUNC
        )
        names = self._prototype(self._type(named)[2]).parameters if named >= 0 else []
        given = [
            Parameter(better.name, each.type)
            for each, better in zip(
                whole.parameters[1:], names[1:] or whole.parameters[1:], strict=False
            )
        ]
        return Prototype(given, whole.result)

    def enumeration(self, name: str) -> dict[int, str]:
        """The names of an enumeration by value; empty if the kernel does not have it."""
        found = self._bpf.btf__find_by_name_kind(self._btf, name.encode(), _ENUM)
        if found < 0:
            return {}
        *_, count, place = self._type(found)
        return dict(self._members(place, count))

    def _members(self, place: int, count: int) -> Iterator[tuple[int, str]]:
        for text, value in struct.iter_unpack("=Ii", ctypes.string_at(place, 8 * count)):
            yield value, self._text(text)

    def _type(self, number: int) -> tuple[int, str, int, int, int]:
        """Kind, name, size or type, number of members, and their address."""
        place = self._bpf.pointer("btf__type_by_id", self._btf, number)
        name, info, size_or_type = struct.unpack("=III", ctypes.string_at(place, 12))
        return info >> 24 & 0x1F, self._text(name), size_or_type, info & 0xFFFF, place + 12

    def _text(self, offset: int) -> str:
        text: bytes = self._bpf.btf__name_by_offset(self._btf, offset)
        return text.decode()

    def _prototype(self, number: int) -> Prototype:
        kind, _, result, count, place = self._type(number)
        if kind != _FUNC_PROTO:
            raise OSError(f"BTF type {number} is no prototype")
        raw = ctypes.string_at(place, 8 * count)
        return Prototype(
            [
                Parameter(self._text(name) or f"arg{index}", self._value(type_number))
                for index, (name, type_number) in enumerate(struct.iter_unpack("=II", raw))
            ],
            self._value(result),
        )

    def _value(self, number: int) -> Value:
        if not number:
            return Value("void", 0)
        kind, name, size_or_type, count, place = self._type(number)
        if kind in _QUALIFIERS or kind == _TYPE_TAG:
            inner = self._value(size_or_type)
            return inner._replace(text=_QUALIFIERS.get(kind, "") + inner.text)
        if kind == _TYPEDEF:
            return self._value(size_or_type)._replace(text=name)
        if kind == _PTR:
            text, pointed = self._target(size_or_type)
            return Value(f"{text} *".replace("* *", "**"), 8, pointed=pointed)
        if kind == _INT:
            (encoding,) = struct.unpack("=I", ctypes.string_at(place, 4))
            how = encoding >> 24 & 0xF
            return Value(name, size_or_type, bool(how & _SIGNED), bool(how & _BOOL))
        if kind == _ENUM:
            names = dict(self._members(place, count))
            signed = any(value < 0 for value in names)
            return Value(f"enum {name}", size_or_type, signed, names=names)
        return Value(f"{_WORDS.get(kind, '')}{name}", size_or_type)

    def _target(self, number: int) -> tuple[str, str]:
        """The C text of a pointer's target, and the target's name if it is a structure."""
        before = ""
        while number:
            kind, name, inner, _, _ = self._type(number)
            if kind in _QUALIFIERS or kind == _TYPE_TAG:
                before += _QUALIFIERS.get(kind, "")
                number = inner
            elif kind == _PTR:
                return f"{before}{self._target(inner)[0]} *", ""
            elif kind == _FUNC_PROTO:
                return f"{before}function", ""
            else:
                structure = name if kind in (_STRUCT, _FWD) else ""
                return f"{before}{_WORDS.get(kind, '')}{name}", structure
        return f"{before}void", ""
