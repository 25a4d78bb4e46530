# SPDX-License-Identifier: BSD-3-Clause
"""A compiled BPF object (bpf/*.bpf.c): opens it, sets it up, loads, attaches and closes it.

In this order: `constants`, `choose`, `set_target` and `resize` change what will be loaded; `load`
loads it; `attach` and the functions that read maps and variables follow.  Everything ends with
`close`, and with the process.

A refusal by libbpf or the kernel raises OSError; `explain` states why loading failed.
"""

import ctypes
import errno
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from ctypes import c_size_t, c_uint32
from typing import Self

from mptcpd_ebpf.probes.btf import Btf
from mptcpd_ebpf.probes.libbpf import LIBRARY, Libbpf
from mptcpd_ebpf.runtime.capabilities import may_load_bpf
from mptcpd_ebpf.runtime.resources import bpf_object

VMLINUX_BTF = "/sys/kernel/btf/vmlinux"


class BpfUnavailable(Exception):  # noqa: N818 — a state of the machine, not a bug
    """BPF programs cannot run here; the text says why and what to do."""


def load_library() -> Libbpf:
    """Raises BpfUnavailable if the library is not installed."""
    try:
        return Libbpf()
    except (OSError, AttributeError) as error:
        raise BpfUnavailable(
            f"{LIBRARY} cannot be used ({error}): install Debian's libbpf1"
        ) from None


def object_btf(libbpf: Libbpf, handle: int) -> Btf:
    """The types of an open ``struct bpf_object``."""
    length = c_uint32()
    raw = libbpf.pointer("btf__raw_data", libbpf.pointer("bpf_object__btf", handle), length)
    return Btf(ctypes.string_at(raw, length.value))


class BpfObject:
    """One object file, open.  A context manager that closes it."""

    def __init__(self, name: str, libbpf: Libbpf | None = None) -> None:
        """Opens bpf/NAME.bpf.c's object.

        Raises BpfUnavailable if it was not built or is no object, or libbpf is not installed.
        """
        self.libbpf = libbpf or load_library()
        self._handle = 0
        self._links: list[int] = []
        self._memory: dict[str, mmap.mmap] = {}
        self.libbpf.log.clear()
        try:
            path = bpf_object(name)
        except FileNotFoundError as error:
            raise BpfUnavailable(str(error)) from None
        try:
            self._handle = self.libbpf.pointer("bpf_object__open_file", os.fsencode(path), None)
        except OSError as error:
            raise BpfUnavailable(f"{path}: {error.strerror}: run 'make bpf'") from None
        self.btf = object_btf(self.libbpf, self._handle)

    # --- before loading

    def constants(self, values: Mapping[str, int | bytes]) -> None:
        """Sets ``const volatile`` variables; bytes shorter than the variable end in zeros."""
        if not values:
            return
        start = self.libbpf.pointer("bpf_map__initial_value", self._map(".rodata"), c_size_t())
        places = self.btf.variables(".rodata")
        for name, value in values.items():
            offset, size = places[name]
            content = value.to_bytes(size, "little") if isinstance(value, int) else value
            ctypes.memmove(start + offset, content.ljust(size, b"\0"), size)

    def choose(self, programs: Iterable[str]) -> None:
        """Loads these programs and no others."""
        chosen = set(programs)
        for handle, name in self._programs():
            self.libbpf.number("bpf_program__set_autoload", handle, name in chosen)

    def set_target(self, program: str, target: str) -> None:
        """Names the kernel function or tracepoint of a program whose source does not."""
        handle = self._program(program)
        self.libbpf.number("bpf_program__set_attach_target", handle, 0, target.encode())

    def resize(self, name: str, entries: int) -> None:
        """Sets a map's number of entries; a ring buffer's number of bytes."""
        self.libbpf.number("bpf_map__set_max_entries", self._map(name), entries)

    def load(self) -> None:
        """Raises OSError if the kernel refuses; see `explain`."""
        self.libbpf.number("bpf_object__load", self._handle)

    def explain(self, error: OSError) -> str:
        """Why `load` failed, with the fix if there is one."""
        if error.errno in (errno.EPERM, errno.EACCES) and not may_load_bpf():
            return "it needs CAP_BPF and CAP_PERFMON: run as root or grant both"
        if not os.path.exists(VMLINUX_BTF):
            return (
                f"the kernel has no BTF ({VMLINUX_BTF} is missing): "
                "use a kernel built with CONFIG_DEBUG_INFO_BTF=y"
            )
        refused = self.libbpf.refused_programs()
        detail = "; ".join(f"{name}: {why}" for name, why in refused.items())
        return f"the kernel refused the programs: {detail or error}"

    # --- programs

    def _programs(self) -> Iterator[tuple[int, str]]:
        handle = None
        while handle := self.libbpf.bpf_object__next_program(self._handle, handle):
            yield handle, self.libbpf.bpf_program__name(handle).decode()

    def _program(self, name: str) -> int:
        return self.libbpf.pointer("bpf_object__find_program_by_name", self._handle, name.encode())

    def programs(self) -> dict[str, int]:
        """The descriptors of the loaded programs, by name."""
        found = {name: self.libbpf.bpf_program__fd(handle) for handle, name in self._programs()}
        return {name: descriptor for name, descriptor in found.items() if descriptor >= 0}

    def names(self) -> list[str]:
        """All programs of the object, loaded or not."""
        return [name for _, name in self._programs()]

    def hook(self, program: str) -> str:
        """Where a program attaches: its section, ``tp_btf/tcp_probe`` …"""
        return str(self.libbpf.bpf_program__section_name(self._program(program)).decode())

    def attach(self, program: str) -> None:
        """Raises OSError."""
        self._links.append(self.libbpf.pointer("bpf_program__attach", self._program(program)))

    def attach_cgroup(self, program: str, folder: int) -> None:
        """Attaches to a cgroup v2, beside other programs; `folder` is its descriptor.

        Raises OSError.
        """
        link = self.libbpf.pointer("bpf_program__attach_cgroup", self._program(program), folder)
        self._links.append(link)

    def attach_iterator(self, program: str) -> int:
        """Returns the link's descriptor, from which ``bpf_iter_create`` makes readers."""
        link = self.libbpf.pointer("bpf_program__attach_iter", self._program(program), None)
        self._links.append(link)
        return self.libbpf.number("bpf_link__fd", link)

    def attach_kprobe(self, program: str, function: str, options: ctypes.Structure) -> None:
        """Attaches a kprobe program, once more, to a function.  Raises OSError."""
        link = self.libbpf.pointer(
            "bpf_program__attach_kprobe_opts",
            self._program(program),
            function.encode(),
            ctypes.byref(options),
        )
        self._links.append(link)

    # --- maps and variables

    def has_map(self, name: str) -> bool:
        return bool(self.libbpf.bpf_object__find_map_by_name(self._handle, name.encode()))

    def _map(self, name: str) -> int:
        return self.libbpf.pointer("bpf_object__find_map_by_name", self._handle, name.encode())

    def map_descriptor(self, name: str) -> int:
        return int(self.libbpf.bpf_map__fd(self._map(name)))

    def value_size(self, name: str) -> int:
        """Bytes of a map's value."""
        return int(self.libbpf.bpf_map__value_size(self._map(name)))

    def memory(self, section: str) -> mmap.mmap:
        """The global variables of a section (``.bss``), shared with the programs."""
        if section not in self._memory:
            descriptor = self.map_descriptor(section)
            self._memory[section] = mmap.mmap(descriptor, self.value_size(section))
        return self._memory[section]

    def close(self) -> None:
        """Detaches and unloads; a second call does nothing."""
        for link in self._links:
            self.libbpf.bpf_link__destroy(link)
        self._links.clear()
        for memory in self._memory.values():
            memory.close()
        self._memory.clear()
        if self._handle:
            self.libbpf.bpf_object__close(self._handle)
            self._handle = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
