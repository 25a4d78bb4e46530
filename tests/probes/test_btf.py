# SPDX-License-Identifier: BSD-3-Clause
"""Record layouts from the object's BTF are those of the compiler."""

import struct

import pytest

from mptcpd_ebpf.core.measurement import AlarmKind, Measurement, Thresholds
from mptcpd_ebpf.probes.btf import Btf, BtfError
from mptcpd_ebpf.probes.records import Decoder
from mptcpd_ebpf.runtime.resources import bpf_object


@pytest.fixture(scope="module")
def btf() -> Btf:
    """The BTF of the shipped object, read from its ELF section (elf(5))."""
    elf = bpf_object("subflow").read_bytes()
    (sections,) = struct.unpack_from("=Q", elf, 0x28)
    size, number, names = struct.unpack_from("=HHH", elf, 0x3A)
    headers = [struct.unpack_from("=IIQQQQ", elf, sections + i * size) for i in range(number)]
    strings = headers[names][4]
    for name, _, _, _, offset, length in headers:
        start = strings + name
        if elf[start : elf.index(b"\0", start)] == b".BTF":
            return Btf(elf[offset : offset + length])
    raise AssertionError("the object has no .BTF section")


def test_core_and_bpf_object_have_the_same_thresholds(btf: Btf) -> None:
    assert set(btf.layout("thresholds").fields) == set(Thresholds.__struct_fields__)


def test_every_alarm_has_its_report_kind(btf: Btf) -> None:
    kinds = {name.removeprefix("REPORT_") for name in btf.enumeration("report_kind")}
    assert kinds - {"SAMPLE", "ENDED"} == set(AlarmKind.__members__)


def test_records_have_no_holes_or_overlaps(btf: Btf) -> None:
    for name in ("measurement", "report", "counters", "thresholds"):
        layout = btf.layout(name)
        end = 0
        for field in layout.fields.values():
            assert field.offset == end, f"a hole before {name}.{field.name}"
            end += field.size
        assert end == layout.size == layout.codec.size


def test_all_bits_set_means_unknown(btf: Btf) -> None:
    decoder = Decoder(btf)
    seen = decoder.measurement(b"\xff" * decoder.size)
    filled = {"local", "remote", "rtt_histogram", "closed"}
    for name in Measurement.__struct_fields__:
        if name not in filled:
            assert getattr(seen, name) is None, name


def test_zero_is_a_known_value(btf: Btf) -> None:
    decoder = Decoder(btf)
    seen = decoder.measurement(bytes(decoder.size))
    assert seen.srtt_us == 0
    assert seen.backup is False
    assert str(seen.local) == "[::]:0"


def test_each_member_is_decoded_into_its_own_field(btf: Btf) -> None:
    decoder = Decoder(btf)
    layout = btf.layout("measurement")
    for field in layout.fields.values():
        if field.count > 1 or field.name not in Measurement.__struct_fields__:
            continue
        data = bytearray(decoder.size)
        data[field.offset] = 1
        seen = decoder.measurement(bytes(data))
        empty = decoder.measurement(bytes(decoder.size))
        changed = [
            name
            for name in Measurement.__struct_fields__
            if getattr(seen, name) != getattr(empty, name)
        ]
        assert changed == [field.name]


def test_a_missing_record_is_named(btf: Btf) -> None:
    with pytest.raises(BtfError, match="no_such_record"):
        btf.layout("no_such_record")
    with pytest.raises(BtfError, match="byte order"):
        Btf(bytes(64))


def test_a_fields_unknown_value_has_all_bits_set(btf: Btf) -> None:
    field = btf.layout("measurement").fields["local_id"]
    assert field.unseen == 0xFFFF
