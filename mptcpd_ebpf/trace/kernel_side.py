# SPDX-License-Identifier: BSD-3-Clause
"""The tracing programs (bpf/trace*.bpf.c): loads those a tool needs, reads records and maps.

Record layouts come from the object's own BTF; a record becomes a dictionary by its
members' names, where all ones in an `unseen` member means not known and becomes None.
What the programs cost is measured by the kernel itself (BPF_ENABLE_STATS, for as long as
the object is open): calls and nanoseconds of each program.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from ctypes import c_bool, c_size_t, c_uint32, c_uint64
from typing import Any, NamedTuple, Self

from mptcpd_ebpf.kernel.fdinfo import program_fields
from mptcpd_ebpf.probes.btf import Btf, Layout
from mptcpd_ebpf.probes.core_probes import VMLINUX_BTF, ProbesUnavailable, may_load
from mptcpd_ebpf.probes.libbpf import LIBRARY, RING_CALLBACK, Libbpf
from mptcpd_ebpf.runtime.resources import bpf_object

Record = dict[str, Any]

RING_BYTES = 1 << 22
STATS_RUN_TIME = 0  # include/uapi/linux/bpf.h: BPFSTATS_RUN_TIME
_KPROBES = (b"kprobe", b"kretprobe")


class Cost(NamedTuple):
    """What programs cost so far."""

    calls: int
    nanoseconds: int


class Refused(ProbesUnavailable):
    """The kernel would not load programs."""

    def __init__(self, message: str, errno: int | None, programs: dict[str, str]) -> None:
        super().__init__(message)
        self.errno = errno
        self.programs = programs
        """Those it named, each with its reason."""


class _KprobeOptions(ctypes.Structure):
    """struct bpf_kprobe_opts of libbpf 1.x (bpf/libbpf.h)."""

    _fields_ = (
        ("sz", c_size_t),
        ("bpf_cookie", c_uint64),
        ("offset", c_size_t),
        ("retprobe", c_bool),
    )


class KernelSide:
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

        `targets` names the kernel function or tracepoint of programs whose source does
        not; those that cannot be attached there are left in `not_attached`, with the
        reason.  Kprobes are loaded and not attached: see `attach_kprobe`.
        Raises ProbesUnavailable: Refused if the kernel would not load a program.
        """
        self.not_attached: dict[str, str] = {}
        self._links: list[int] = []
        self._object = 0
        self._ring = 0
        self._statistics = -1
        self._raw: list[bytes] = []
        self._callback = RING_CALLBACK(self._on_record)  # kept: libbpf holds the address
        self._bpf = _library()
        try:
            self._load(name, programs, constants or {}, targets or {}, ring_bytes)
        except OSError as error:
            self.close()
            raise self._refused(error) from None
        except FileNotFoundError as error:
            raise ProbesUnavailable(str(error)) from None

    def _load(
        self,
        name: str,
        programs: Iterable[str] | None,
        constants: Mapping[str, int | bytes],
        targets: Mapping[str, str],
        ring_bytes: int,
    ) -> None:
        bpf = self._bpf
        bpf.log.clear()
        self._statistics = bpf.bpf_enable_stats(STATS_RUN_TIME)
        path = bpf_object(name)
        self._object = bpf.pointer("bpf_object__open_file", os.fsencode(path), None)
        length = c_uint32()
        raw = bpf.pointer("btf__raw_data", bpf.pointer("bpf_object__btf", self._object), length)
        self._btf = Btf(ctypes.string_at(raw, length.value))
        self._layouts: dict[str, Layout] = {}
        if constants:
            start = bpf.pointer("bpf_map__initial_value", self._map(".rodata"), c_size_t())
            places = self._btf.variables(".rodata")
            for variable, value in constants.items():
                offset, size = places[variable]
                content = value.to_bytes(size, "little") if isinstance(value, int) else value
                ctypes.memmove(start + offset, content, min(size, len(content)))
        chosen = None if programs is None else set(programs)
        for handle, program in self._programs():
            if chosen is not None and program not in chosen:
                bpf.number("bpf_program__set_autoload", handle, False)
            elif program in targets:
                target = targets[program].encode()
                bpf.number("bpf_program__set_attach_target", handle, 0, target)
        ring = bpf.bpf_object__find_map_by_name(self._object, b"records")
        if ring:
            bpf.number("bpf_map__set_max_entries", ring, ring_bytes)
        bpf.number("bpf_object__load", self._object)
        if ring:
            self._ring = bpf.pointer(
                "ring_buffer__new", bpf.bpf_map__fd(ring), self._callback, None, None
            )
        for handle, program in self._programs():
            if chosen is not None and program not in chosen:
                continue
            if bpf.bpf_program__section_name(handle) in _KPROBES:
                continue
            try:
                self._links.append(bpf.pointer("bpf_program__attach", handle))
            except OSError as error:
                if program not in targets:
                    raise
                self.not_attached[program] = os.strerror(error.errno or 0)

    def _programs(self) -> Iterator[tuple[int, str]]:
        handle = None
        while handle := self._bpf.bpf_object__next_program(self._object, handle):
            yield handle, self._bpf.bpf_program__name(handle).decode()

    def _map(self, name: str) -> int:
        return self._bpf.pointer("bpf_object__find_map_by_name", self._object, name.encode())

    def _refused(self, error: OSError) -> ProbesUnavailable:
        if error.errno in (errno.EPERM, errno.EACCES) and not may_load():
            return ProbesUnavailable(
                "tracing needs CAP_BPF and CAP_PERFMON: run as root or grant both"
            )
        if not os.path.exists(VMLINUX_BTF):
            return ProbesUnavailable(
                f"the kernel has no BTF ({VMLINUX_BTF} is missing): "
                "use a kernel built with CONFIG_DEBUG_INFO_BTF=y"
            )
        refused = self._bpf.refused_programs()
        detail = "; ".join(f"{name}: {why}" for name, why in refused.items())
        return Refused(f"the kernel refused to trace: {detail or error}", error.errno, refused)

    def attach_kprobe(self, program: str, function: str, cookie: int) -> None:
        """Attaches a kprobe or kretprobe program, once more, to a function.  Raises OSError."""
        handle = self._bpf.pointer(
            "bpf_object__find_program_by_name", self._object, program.encode()
        )
        options = _KprobeOptions(
            sz=ctypes.sizeof(_KprobeOptions),
            bpf_cookie=cookie,
            retprobe=self._bpf.bpf_program__section_name(handle) == b"kretprobe",
        )
        link = self._bpf.pointer(
            "bpf_program__attach_kprobe_opts", handle, function.encode(), ctypes.byref(options)
        )
        self._links.append(link)

    # --- reading

    def fileno(self) -> int:
        """Readable when `read` has something to return."""
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
        """A hash map's present content: unpacked keys, and values of ``struct layout``."""
        descriptor = self._bpf.bpf_map__fd(self._map(map_name))
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
        """One value of a map; nothing if it has none under that key."""
        entry = self._map(map_name)
        value = ctypes.create_string_buffer(self._bpf.bpf_map__value_size(entry))
        missing = self._bpf.bpf_map_lookup_elem(self._bpf.bpf_map__fd(entry), key, value)
        return b"" if missing else value.raw

    def forget(self, map_name: str, key: bytes) -> None:
        """Removes an entry of a hash map, if it is there."""
        self._bpf.bpf_map_delete_elem(self._bpf.bpf_map__fd(self._map(map_name)), key)

    def variable(self, name: str) -> bytes:
        """The present bytes of a global variable in .bss."""
        offset, size = self._btf.variables(".bss")[name]
        return self.lookup(".bss", bytes(4))[offset : offset + size]

    @property
    def lost(self) -> dict[str, int]:
        """What went wrong inside the programs, by the members of ``struct trace_lost``."""
        lost: dict[str, int] = self.decode("trace_lost", self.variable("lost"))
        return lost

    def hooks(self) -> list[str]:
        """Where the loaded programs are attached, each place once: ``tp_btf/tcp_probe`` …"""
        places = (
            self._bpf.bpf_program__section_name(handle).decode()
            for handle, _ in self._programs()
            if self._bpf.bpf_program__fd(handle) >= 0
        )
        return list(dict.fromkeys(places))

    def programs(self) -> dict[str, int]:
        """The loaded programs' descriptors, by name."""
        found = {name: self._bpf.bpf_program__fd(handle) for handle, name in self._programs()}
        return {name: descriptor for name, descriptor in found.items() if descriptor >= 0}

    def cost(self) -> Cost:
        """Calls and time of all loaded programs so far."""
        return run_time(self.programs().values())

    def close(self) -> None:
        """Detaches and unloads; a second call does nothing."""
        for link in self._links:
            self._bpf.bpf_link__destroy(link)
        self._links.clear()
        if self._ring:
            self._bpf.ring_buffer__free(self._ring)
            self._ring = 0
        if self._object:
            self._bpf.bpf_object__close(self._object)
            self._object = 0
        if self._statistics >= 0:
            os.close(self._statistics)
            self._statistics = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run_time(descriptors: Iterable[int]) -> Cost:
    """What programs cost since their statistics were enabled."""
    calls = nanoseconds = 0
    for descriptor in descriptors:
        fields = program_fields(descriptor)
        calls += int(fields.get("run_cnt", 0))
        nanoseconds += int(fields.get("run_time_ns", 0))
    return Cost(calls, nanoseconds)


def _library() -> Libbpf:
    try:
        return Libbpf()
    except (OSError, AttributeError) as error:
        raise ProbesUnavailable(
            f"{LIBRARY} cannot be used ({error}): install Debian's libbpf1"
        ) from None
