# SPDX-License-Identifier: BSD-3-Clause
"""CO-RE relocations of the BPF objects: they concern the kernel's structures only.

A relocation of one of the object's own structures cannot be resolved.  Kernels with
bpf_rdonly_cast (6.2 or newer) never reach it, so only older ones refuse the program.
"""

import struct
import subprocess
from pathlib import Path

import pytest

from mptcpd_ebpf.probes.btf import STRUCT, UNION, Btf
from tests.tree import ROOT

OBJECTS = sorted((ROOT / "build" / "bpf").glob("*.bpf.o"))
KERNEL = Path("/sys/kernel/btf/vmlinux")


def relocated(program: Path, folder: Path) -> set[str]:
    """The structures that an object's field relocations start from (struct bpf_core_relo)."""
    types, ext = folder / "types", folder / "ext"
    subprocess.run(
        [
            *("llvm-objcopy", f"--dump-section=.BTF={types}", f"--dump-section=.BTF.ext={ext}"),
            *(str(program), str(folder / "copy")),
        ],
        check=True,
    )
    btf, raw = Btf(types.read_bytes()), ext.read_bytes()
    # struct btf_ext_header: magic, version, flags, header length, three (offset, length).
    header, *_, offset, length = struct.unpack_from("=4xIIIIIII", raw)
    if not length:
        return set()  # its programs read their context only
    position, end = header + offset, header + offset + length
    (record_size,) = struct.unpack_from("=I", raw, position)
    position += 4
    found = set()
    while position < end:
        _section, number = struct.unpack_from("=II", raw, position)
        position += 8
        for _ in range(number):
            _instruction, type_id, _access, kind = struct.unpack_from("=IIII", raw, position)
            position += record_size
            named = btf._types[type_id]
            if kind <= 5 and named.kind in (STRUCT, UNION):  # BPF_CORE_FIELD_*
                found.add(named.name.partition("___")[0])
    assert found
    return found


@pytest.mark.skipif(not KERNEL.exists(), reason="this kernel has no BTF to compare with")
@pytest.mark.parametrize("program", OBJECTS, ids=lambda program: str(program.name))
def test_relocations_concern_the_kernels_structures_only(program: Path, tmp_path: Path) -> None:
    kernel = {each.name for each in Btf(KERNEL.read_bytes())._types if each.kind in (STRUCT, UNION)}
    found = relocated(program, tmp_path)
    assert found - kernel == set()
