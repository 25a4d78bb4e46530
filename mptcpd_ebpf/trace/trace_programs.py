# SPDX-License-Identifier: BSD-3-Clause
"""The tracing programs (bpf/trace*.bpf.c): loads those that a tool needs, reads records and maps.

Record layouts come from the object's BTF; a record is a dictionary by the names of its members.
The kernel measures the cost of the programs while the object is open (BPF_ENABLE_STATS): calls and
nanoseconds of each program.
"""

import ctypes
import os
import struct
from collections.abc import Iterable, Mapping
from ctypes import c_bool, c_size_t, c_uint64
from typing import Any, NamedTuple, Self

from mptcpd_ebpf.kernel.fdinfo import program_fields
from mptcpd_ebpf.probes.bpf_object import BpfObject, BpfUnavailable
from mptcpd_ebpf.probes.btf import Layout
from mptcpd_ebpf.probes.libbpf import RING_CALLBACK

Record = dict[str, Any]

RING_BYTES = 1 << 22
STATS_RUN_TIME = 0  # include/uapi/linux/bpf.h: BPFSTATS_RUN_TIME
_KPROBES = ("kprobe", "kretprobe")


class Cost(NamedTuple):
    """The cost of programs so far."""

    calls: int
    nanoseconds: int
    """Run time of all calls."""


class Refused(BpfUnavailable):
    """The kernel refused to load programs."""

    def __init__(self, message: str, errno: int | None, programs: dict[str, str]) -> None:
        super().__init__(message)
        self.errno = errno
        self.programs = programs
        """The reason by program, for the programs that libbpf names."""


class _KprobeOptions(ctypes.Structure):
    """struct bpf_kprobe_opts of libbpf 1.x (bpf/libbpf.h)."""

    _fields_ = (
        ("sz", c_size_t),
        ("bpf_cookie", c_uint64),
        ("offset", c_size_t),
        ("retprobe", c_bool),
    )


class TracePrograms:
    """Programs of one object, attached.  A context manager that detaches them."""

    def __init__(
        self,
        name: str,
        programs: Iterable[str] | None = None,
        constants: Mapping[str, int | bytes] | None = None,
        *,
        targets: Mapping[str, str] | None = None,
        ring_bytes: int = RING_BYTES,
    ) -> None:
        """Loads the `programs` of bpf/NAME.bpf.c (None: all), with `constants` set, and attaches.

        `targets` has the kernel function or tracepoint of programs whose source names none; if one
        cannot be attached there, `not_attached` has the reason.  Kprobes are loaded but not
        attached: see `attach_kprobe`.  Raises BpfUnavailable; Refused if the kernel refuses to
        load the programs.
        """
        self.not_attached: dict[str, str] = {}
        self._ring = 0
        self._raw: list[bytes] = []
        self._layouts: dict[str, Layout] = {}
        self._callback = RING_CALLBACK(self._on_record)  # kept: libbpf holds the address
        self._object = BpfObject(name)
        self._bpf = self._object.libbpf
        self._btf = self._object.btf
        self._statistics = int(self._bpf.bpf_enable_stats(STATS_RUN_TIME))
        chosen = self._object.names() if programs is None else list(programs)
        try:
            self._load(chosen, constants or {}, targets or {}, ring_bytes)
        except OSError as error:
            refused = self._bpf.refused_programs()
            why = self._object.explain(error)
            self.close()
            raise Refused(why, error.errno, refused) from None

    def _load(
        self,
        programs: list[str],
        constants: Mapping[str, int | bytes],
        targets: Mapping[str, str],
        ring_bytes: int,
    ) -> None:
        self._object.constants(constants)
        self._object.choose(programs)
        for program in programs:
            if program in targets:
                self._object.set_target(program, targets[program])
        has_records = self._object.has_map("records")
        if has_records:
            self._object.resize("records", ring_bytes)
        self._object.load()
        if has_records:
            self._ring = self._bpf.pointer(
                "ring_buffer__new",
                self._object.map_descriptor("records"),
                self._callback,
                None,
                None,
            )
        for program in programs:
            if self._object.hook(program) in _KPROBES:
                continue
            try:
                self._object.attach(program)
            except OSError as error:
                if program not in targets:
                    raise
                self.not_attached[program] = os.strerror(error.errno or 0)

    def attach_kprobe(self, program: str, function: str, cookie: int) -> None:
        """Attaches a kprobe or kretprobe program to one more function.  Raises OSError."""
        options = _KprobeOptions(
            sz=ctypes.sizeof(_KprobeOptions),
            bpf_cookie=cookie,
            retprobe=self._object.hook(program) == "kretprobe",
        )
        self._object.attach_kprobe(program, function, options)

    # --- reading

    def fileno(self) -> int:
        """A descriptor that is readable when `read` has records to return."""
        return int(self._bpf.ring_buffer__epoll_fd(self._ring))

    def _on_record(self, _context: int, data: int, size: int) -> int:
        self._raw.append(ctypes.string_at(data, size))
        return 0

    def read(self, layout: str) -> list[Record]:
        """The records since the last call, each of ``struct layout``; never blocks."""
        self._bpf.number("ring_buffer__consume", self._ring)
        raw, self._raw = self._raw, []
        return [self.decode(layout, each) for each in raw]

    def layout(self, name: str) -> Layout:
        if name not in self._layouts:
            self._layouts[name] = self._btf.layout(name)
        return self._layouts[name]

    def decode(self, name: str, raw: bytes) -> Record:
        layout = self.layout(name)
        values = layout.codec.unpack_from(raw)
        return {
            field.name: values[field.index]
            if field.count == 1
            else values[field.index : field.index + field.count]
            for field in layout.fields.values()
        }

    def enumeration(self, name: str) -> dict[int, str]:
        return {value: text for text, value in self._btf.enumeration(name).items()}

    def table(self, map_name: str, key: struct.Struct, layout: str) -> dict[Any, Record]:
        """A hash map's current content: unpacked keys, and values of ``struct layout``."""
        descriptor = self._object.map_descriptor(map_name)
        size = self.layout(layout).size
        place = ctypes.create_string_buffer(key.size)
        value = ctypes.create_string_buffer(size)
        last = None
        found: dict[Any, Record] = {}
        while not self._bpf.bpf_map_get_next_key(descriptor, last, place):
            last = ctypes.create_string_buffer(place.raw, key.size)
            if not self._bpf.bpf_map_lookup_elem(descriptor, last, value):
                found[key.unpack(last.raw)] = self.decode(layout, value.raw)
        return found

    def lookup(self, map_name: str, key: bytes) -> bytes:
        """One value of a map; empty if the map has no such key."""
        value = ctypes.create_string_buffer(self._object.value_size(map_name))
        descriptor = self._object.map_descriptor(map_name)
        missing = self._bpf.bpf_map_lookup_elem(descriptor, key, value)
        return b"" if missing else value.raw

    def forget(self, map_name: str, key: bytes) -> None:
        """Removes an entry of a hash map, if it exists."""
        self._bpf.bpf_map_delete_elem(self._object.map_descriptor(map_name), key)

    def variable(self, name: str) -> bytes:
        """The current bytes of a global variable in .bss."""
        offset, size = self._btf.variables(".bss")[name]
        return self.lookup(".bss", bytes(4))[offset : offset + size]

    @property
    def lost(self) -> dict[str, int]:
        """Lost records and other failures of the programs, by member of ``struct trace_lost``."""
        lost: dict[str, int] = self.decode("trace_lost", self.variable("lost"))
        return lost

    def hooks(self) -> list[str]:
        """The hooks of the loaded programs, without repetition: ``tp_btf/tcp_probe`` …"""
        return list(dict.fromkeys(self._object.hook(name) for name in self.programs()))

    def programs(self) -> dict[str, int]:
        """File descriptors of the loaded programs, by name."""
        return self._object.programs()

    def cost(self) -> Cost:
        """The cost of all loaded programs so far."""
        return run_time(self.programs().values())

    def close(self) -> None:
        """Detaches and unloads; a second call does nothing."""
        if self._ring:
            self._bpf.ring_buffer__free(self._ring)
            self._ring = 0
        self._object.close()
        if self._statistics >= 0:
            os.close(self._statistics)
            self._statistics = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run_time(descriptors: Iterable[int]) -> Cost:
    """The cost of programs since their statistics were enabled."""
    calls = nanoseconds = 0
    for descriptor in descriptors:
        fields = program_fields(descriptor)
        calls += int(fields.get("run_cnt", 0))
        nanoseconds += int(fields.get("run_time_ns", 0))
    return Cost(calls, nanoseconds)
