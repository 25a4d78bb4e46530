# SPDX-License-Identifier: BSD-3-Clause
"""Declares the kernel's structures with the layout of the running kernel, for bcc.

bcc applies no CO-RE relocations: a field is read where its declaration has it.  The
structures and fields that the probes read are declared in bpf/kernel.h, and so in the BTF
of the object compiled from it.  This module looks each of them up in the kernel's own BTF
as libbpf does: by name, also inside anonymous structures and unions, without the suffix
``___x`` of a structure's name.  The result is C, for bpf/bcc/reach.h:

    struct tcp_sock {
        union {
            char whole[2496];
            struct { char _srtt_us[1520]; u32 srtt_us; } __attribute__((packed));
            ...
    };
    #define HAS_tcp_sock_srtt_us 1
    #define WIDTH_tcp_sock_srtt_us 4

A field that the kernel lacks is placed after the structure's end, with HAS_ 0 and WIDTH_ 0.
A bit field is not declared: ``BITS_AT_field`` is the offset of the four bytes to read, and
``BITS_field`` is its width << 8 | its shift in them.
"""

import os
from pathlib import Path

from mptcpd_ebpf.probes.bpf_object import object_btf
from mptcpd_ebpf.probes.btf import ARRAY, INT, PTR, STRUCT, UNION, Btf, BtfError, Member, Type
from mptcpd_ebpf.probes.libbpf import Libbpf

VMLINUX_BTF = Path("/sys/kernel/btf/vmlinux")
_ROOTS = (
    "tcp_sock",
    "mptcp_subflow_context",
    "mptcp_subflow_context___u8",
    "mptcp_sock",
    "net",
    "dst_entry",
    "net_device",
    "socket",
    "sk_buff",
    "tcp_skb_cb",
)
"""The structures that the probes reach by pointers; those embedded in them follow from these."""
_UNSIGNED = {1: "u8", 2: "u16", 4: "u32", 8: "u64"}
_SIGNED = {1: "s8", 2: "s16", 4: "s32", 8: "s64"}


class _Writer:
    def __init__(self, seen: Btf, kernel: Btf) -> None:
        self.seen = seen
        self.kernel = kernel
        self.text: list[str] = []
        self.defines: dict[str, str] = {}
        self.written: set[str] = set()

    def structure(self, name: str) -> None:
        """Writes ``struct name`` after the structures that it contains."""
        if name in self.written:
            return
        self.written.add(name)
        declared = self.seen.structure(name)
        if declared is None:
            return  # the object reads none of its fields
        found = self.kernel.structure(name.split("___")[0])
        if found is None:
            raise BtfError(f"this kernel has no struct {name}")
        body = self._body(declared, found, name)
        self.text.append(f"struct {name} {body};")

    def _body(self, declared: Type, found: Type, name: str) -> str:
        size = found.size_or_type
        lines = [f"char whole[{size}];"]
        for member in self.seen.members(declared):
            place = self._find(found, member.name)
            if member.bits or (place and place.bits):
                self._bits(member.name, place)
                continue
            if place is None:
                known = Member(member.name, member.type, 8 * size, 0)
                self._define(name, member.name, None)
            else:
                known = place
                self._define(name, member.name, place.type)
            text = self._typed(member.type, known.type, member.name)
            before = f"char _{member.name}[{known.bit // 8}]; " if known.bit else ""
            lines.append(f"struct {{ {before}{text}; }} __attribute__((packed));")
        return "{ union { " + " ".join(lines) + " }; }"

    def _find(self, found: Type, name: str, base: int = 0) -> Member | None:
        """A member of the kernel's structure, also inside anonymous ones."""
        for member in self.kernel.members(found):
            bit = base + member.bit
            if member.name == name:
                return Member(name, member.type, bit, member.bits)
            if not member.name and member.type.kind in (STRUCT, UNION):
                inner = self._find(member.type, name, bit)
                if inner is not None:
                    return inner
        return None

    def _define(self, structure: str, field: str, found: Type | None) -> None:
        if structure:
            self.defines[f"HAS_{structure}_{field}"] = "1" if found else "0"
            width = 8 if found and found.kind == PTR else found.size_or_type if found else 0
            self.defines[f"WIDTH_{structure}_{field}"] = str(width)

    def _bits(self, name: str, place: Member | None) -> None:
        """Defines a bit field's offset, width and shift: a plain integer's full width, a missing
        field's 0.
        """
        start, bits = (
            (place.bit // 8, place.bits or 8 * place.type.size_or_type) if place else (0, 0)
        )
        self.defines[f"BITS_AT_{name}"] = str(start)
        self.defines[f"BITS_{name}"] = str(bits << 8 | (place.bit - 8 * start if place else 0))

    def _typed(self, declared: Type, found: Type, name: str) -> str:
        """The C declaration of a member: its type as declared, its width as found."""
        if declared.kind == PTR:
            target = self.seen.target(declared)
            what = f"struct {target.name}" if target.name and target.kind == STRUCT else "void"
            return f"{what} *{name}"
        if declared.kind == ARRAY:
            element, length = self.seen.array(declared)
            inner, _ = self.kernel.array(found) if found.kind == ARRAY else (element, 0)
            return f"{self._typed(element, inner, name)}[{length}]"
        if declared.kind in (STRUCT, UNION):
            if declared.name:
                self.structure(declared.name)
                return f"struct {declared.name} {name}"
            return f"struct {self._body(declared, found, '')} {name}"
        names = _SIGNED if declared.kind == INT and self.seen.signed(declared) else _UNSIGNED
        try:
            return f"{names[found.size_or_type]} {name}"
        except KeyError:
            raise BtfError(f"{name}: no integer has {found.size_or_type} bytes") from None


def layouts(seen: Btf, kernel: Btf) -> str:
    """C declarations of `seen`'s structures with their layout in `kernel`.  Raises BtfError."""
    writer = _Writer(seen, kernel)
    for name in _ROOTS:
        writer.structure(name)
    defines = [f"#define {name} {value}" for name, value in writer.defines.items()]
    return "\n".join([*writer.text, *defines]) + "\n"


def kernel_layouts(path: Path) -> str:
    """`layouts` of what the BPF object at `path` declares, in the running kernel.

    Raises BtfError, and OSError if there is no such object or no BTF of the kernel.
    """
    libbpf = Libbpf()
    handle = libbpf.pointer("bpf_object__open_file", os.fsencode(path), None)
    try:
        return layouts(object_btf(libbpf, handle), Btf(VMLINUX_BTF.read_bytes()))
    finally:
        libbpf.bpf_object__close(handle)
