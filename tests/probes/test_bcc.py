# SPDX-License-Identifier: BSD-3-Clause
"""bcc compiles with the kernel's own layouts, and its errors are reported in one line."""

import struct
import sys
from pathlib import Path

import pytest

from mptcpd_ebpf.probes.bcc_compile import BccUnavailable, compile_functions, open_bcc
from mptcpd_ebpf.probes.bcc_layouts import VMLINUX_BTF, kernel_layouts, layouts
from mptcpd_ebpf.probes.bpf_object import BpfObject
from mptcpd_ebpf.probes.btf import Btf, BtfError, Member, Type
from mptcpd_ebpf.probes.loading import with_maps


@pytest.fixture(scope="module")
def stated() -> Btf:
    """The structures and fields that the probes read, as declared in bpf/kernel.h."""
    with BpfObject("subflow") as compiled:
        return compiled.btf


class Without(Btf):
    """A kernel that lacks one field, in every structure."""

    def __init__(self, raw: bytes, field: str) -> None:
        super().__init__(raw)
        self.lacks = field

    def members(self, compound: Type) -> list[Member]:
        return [each for each in super().members(compound) if each.name != self.lacks]


@pytest.fixture(scope="module")
def kernel() -> bytes:
    if not VMLINUX_BTF.exists():
        pytest.skip(f"{VMLINUX_BTF} is missing: this kernel has no BTF")
    return VMLINUX_BTF.read_bytes()


def test_every_field_has_the_kernels_offset(stated: Btf, kernel: bytes) -> None:
    # The compiler's offsets in the generated declarations against the kernel's BTF.
    text = layouts(stated, Btf(kernel))
    found = Btf(kernel)
    checks = []
    for name in ("tcp_sock", "mptcp_subflow_context", "mptcp_sock", "inet_connection_sock"):
        structure = found.structure(name)
        declared = stated.structure(name)
        assert structure is not None
        assert declared is not None
        size = structure.size_or_type
        checks.append(f"sizeof(struct {name}) == {size}")
        places = {m.name: m.bit // 8 for m in found.members(structure) if not m.bits}
        checks += [
            f"__builtin_offsetof(struct {name}, {m.name}) == {places[m.name]}"
            for m in stated.members(declared)
            if m.name in places
        ]
    assert len(checks) > 40
    asserted = "".join(f'_Static_assert({check}, "{check}");\n' for check in checks)
    assert compile_functions(text + asserted + "int f(void *ctx) { return 0; }", ["f"])


def test_a_field_that_the_kernel_lacks_is_defined_as_missing(stated: Btf, kernel: bytes) -> None:
    text = layouts(stated, Without(kernel, "subflow_id"))
    assert "#define HAS_mptcp_subflow_context_subflow_id 0\n" in text
    assert "#define HAS_mptcp_subflow_context_token 1\n" in text


def test_a_structure_that_the_kernel_lacks_is_named(stated: Btf) -> None:
    with pytest.raises(BtfError, match="this kernel has no struct tcp_sock"):
        layouts(stated, Btf(_empty()))


def _empty() -> bytes:
    """A BTF without types."""
    return struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, 0, 0, 1) + b"\0"


def test_compiling_needs_no_kernel_headers_and_does_not_change_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("BCC_KERNEL_SOURCE", raising=False)
    here = Path.cwd()
    code = compile_functions("int f(void *ctx) { return ANSWER; }", ["f"], {"ANSWER": 42})["f"]
    assert code == struct.pack("=BBhiQ", 0xB7, 0, 0, 42, 0x95)
    assert Path.cwd() == here
    assert "bcc" not in sys.modules, "bcc was imported into this process"


def test_the_compilers_error_is_reported() -> None:
    with pytest.raises(BccUnavailable, match="use of undeclared identifier 'nothing'"):
        compile_functions("int f(void *ctx) { return nothing; }", ["f"])


def test_without_bcc_the_message_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bcc", None)
    with pytest.raises(BccUnavailable, match="python3-bpfcc"):
        open_bcc("int f(void *ctx) { return 0; }")


def test_map_numbers_are_replaced_by_descriptors() -> None:
    load = struct.pack("=BBhiQ", 0x18, 0x11, 0, 7, 0)
    value = struct.pack("=BBhiQ", 0x18, 0x22, 0, 3, 0)
    plain = struct.pack("=BBhiQ", 0x18, 0x01, 0, 7, 0)  # a 64-bit constant
    done = with_maps(load + value + plain, {7: 40, 3: 41})
    assert done == (
        struct.pack("=BBhiQ", 0x18, 0x11, 0, 40, 0)
        + struct.pack("=BBhiQ", 0x18, 0x22, 0, 41, 0)
        + plain
    )


def test_a_missing_object_raises_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        kernel_layouts(tmp_path / "none.o")
