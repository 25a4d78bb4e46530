# SPDX-License-Identifier: BSD-3-Clause
"""The probes: opens the CO-RE object, attaches what the kernel lets it, reads.

Two ways lead out of the kernel.  The ring buffer pushes alarms and last words: its
descriptor becomes readable, `Probes.read` returns events.  The ``iter/tcp`` program is
pulled: `Probes.sample` returns the exact present values of every MPTCP subflow in the
namespace of the calling thread, those older than the probes too.

Thresholds and counters are global variables of the object, mapped into this process;
writing a threshold takes effect at the next packet.
"""

import ctypes
import errno
import mmap
import os
import time
from ctypes import c_size_t
from typing import NoReturn

from msgspec import Struct

from mptcpd_ebpf.core.events import AlarmRaised, SubflowEnded
from mptcpd_ebpf.core.measurement import Measurement, Thresholds
from mptcpd_ebpf.probes.btf import Layout
from mptcpd_ebpf.probes.libbpf import LIBRARY, Libbpf
from mptcpd_ebpf.probes.record_reader import RecordReader, count_entries
from mptcpd_ebpf.probes.records import object_btf
from mptcpd_ebpf.runtime.resources import bpf_object

VMLINUX_BTF = "/sys/kernel/btf/vmlinux"
RING_BYTES = 1 << 20
_CLOCK_MONOTONIC_COARSE = 6  # its resolution is the kernel's tick
_ITERATOR = "sample"
_ESSENTIAL = frozenset({"state_changes", "socket_destroyed", _ITERATOR})
_READ_BYTES = 1 << 18
FOLLOWED = ("subflows", "connections", "listeners")
"""The maps that fill."""

_WITHOUT = {
    "segment_received": "no RTT histogram, no RTT, loss or stall alarm from received segments",
    "scheduler_looks": "no-progress alarms start only at the next received or repeated segment",
    "segment_retransmitted": "no loss and no timeout alarm",
}
"""What is lost when a hook that can be done without does not attach."""


class ProbesUnavailable(Exception):  # noqa: N818 — a state of the machine, not a bug
    """The probes cannot run here; the text says why and what to do."""


class HookReport(Struct, frozen=True):
    """How one program fared."""

    program: str
    hook: str
    """Its section: ``tp_btf/tcp_probe`` …"""
    attached: bool
    reason: str = ""
    """Why it is not attached, and what is missing without it."""


class ProbeReport(Struct, frozen=True):
    """What was tried at start, and what came of it."""

    hooks: list[HookReport]
    netns: int
    """The namespace the probes keep to, 0: all."""
    way: str = f"CO-RE through {LIBRARY}"

    @property
    def complete(self) -> bool:
        return all(hook.attached for hook in self.hooks)

    def __str__(self) -> str:
        attached = [hook.hook for hook in self.hooks if hook.attached]
        missing = [f"{hook.hook}: {hook.reason}" for hook in self.hooks if not hook.attached]
        text = f"{self.way}, attached to {', '.join(attached)}"
        return text + (f"; not attached: {'; '.join(missing)}" if missing else "")


class Probes:
    """The probes, attached.  Made by `open`; a context manager that detaches them."""

    sees_all = True

    def __init__(
        self, libbpf: Libbpf, handle: int, netns: int, ring_bytes: int, skipped: dict[str, str]
    ) -> None:
        self._bpf = libbpf
        self._object = handle
        self._links: list[int] = []
        self._reader: RecordReader | None = None
        self._shared: mmap.mmap | None = None
        self._btf = object_btf(libbpf, handle)
        self._thresholds = self._btf.layout("thresholds")
        self._counters = self._btf.layout("counters")
        self._variables = self._btf.variables(".bss")

        self._set_constants(own_netns=netns, tick_us=tick_us())
        libbpf.number("bpf_map__set_max_entries", self._map("reports"), ring_bytes)
        for name in skipped:
            program = libbpf.pointer("bpf_object__find_program_by_name", handle, name.encode())
            libbpf.number("bpf_program__set_autoload", program, False)
        self.report = ProbeReport(hooks=[], netns=netns)

    @classmethod
    def open(
        cls,
        netns: int = 0,
        thresholds: Thresholds | None = None,
        ring_bytes: int = RING_BYTES,
    ) -> "Probes":
        """Loads and attaches the probes.

        netns: inode of the only network namespace to follow, 0 for all.
        ring_bytes: size of the ring buffer, a power of two and a multiple of the page size.

        Raises ProbesUnavailable.
        """
        if not os.path.exists(VMLINUX_BTF):
            raise ProbesUnavailable(
                f"the kernel has no BTF ({VMLINUX_BTF} is missing): "
                "use a kernel built with CONFIG_DEBUG_INFO_BTF=y"
            )
        try:
            path = bpf_object("subflow")
            libbpf = Libbpf()
        except FileNotFoundError as error:
            raise ProbesUnavailable(str(error)) from None
        except (OSError, AttributeError) as error:
            raise ProbesUnavailable(
                f"{LIBRARY} cannot be used ({error}): install Debian's libbpf1"
            ) from None
        skipped: dict[str, str] = {}
        while True:
            libbpf.log.clear()
            try:
                handle = libbpf.pointer("bpf_object__open_file", os.fsencode(path), None)
            except OSError as error:
                raise ProbesUnavailable(f"{path}: {error.strerror}: run 'make bpf'") from None
            probes = cls(libbpf, handle, netns, ring_bytes, skipped)
            try:
                libbpf.number("bpf_object__load", handle)
                probes._start(thresholds or Thresholds(), skipped)
                return probes
            except OSError as error:
                probes.close()
                refused = libbpf.refused_programs()
                optional = {name: why for name, why in refused.items() if name in _WITHOUT}
                if error.errno in (errno.EPERM, errno.EACCES) and not may_load():
                    _refuse_privilege()
                if not optional or skipped.keys() >= optional.keys():
                    detail = "; ".join(f"{name}: {why}" for name, why in refused.items())
                    raise ProbesUnavailable(
                        f"the kernel refused the probes ({detail or error.strerror}): "
                        'see docs/probes.md, "Kernels"'
                    ) from None
                skipped |= optional

    def _start(self, thresholds: Thresholds, skipped: dict[str, str]) -> None:
        bpf = self._bpf
        self._shared = mmap.mmap(
            self._descriptor(".bss"), bpf.bpf_map__value_size(self._map(".bss"))
        )
        self.set_thresholds(thresholds)
        self._reader = RecordReader(
            bpf,
            self._btf,
            subflows=self._descriptor("subflows"),
            reports=self._descriptor("reports"),
            kept=lambda: self.lost["last_words_kept"],
        )
        program = None
        while program := bpf.bpf_object__next_program(self._object, program):
            self.report.hooks.append(self._attach(program, skipped))
        essential = [
            f"{hook.hook}: {hook.reason}"
            for hook in self.report.hooks
            if hook.program in _ESSENTIAL and not hook.attached
        ]
        if essential:
            self.close()
            raise ProbesUnavailable(
                f"the kernel does not let the probes attach to {'; '.join(essential)}"
            )
        self.sample()  # follow what is older than us from now on

    def _attach(self, program: int, skipped: dict[str, str]) -> HookReport:
        bpf = self._bpf
        name = bpf.bpf_program__name(program).decode()
        hook = bpf.bpf_program__section_name(program).decode()
        without = f"; without it {_WITHOUT[name]}" if name in _WITHOUT else ""
        if name in skipped:
            return HookReport(name, hook, False, skipped[name] + without)
        try:
            if name == _ITERATOR:
                link = bpf.pointer("bpf_program__attach_iter", program, None)
                self._iterator = bpf.number("bpf_link__fd", link)
            else:
                link = bpf.pointer("bpf_program__attach", program)
        except OSError as error:
            return HookReport(name, hook, False, (error.strerror or str(error)) + without)
        self._links.append(link)
        return HookReport(name, hook, True)

    def _map(self, name: str) -> int:
        return self._bpf.pointer("bpf_object__find_map_by_name", self._object, name.encode())

    def _descriptor(self, name: str) -> int:
        return int(self._bpf.bpf_map__fd(self._map(name)))

    def _set_constants(self, **values: int) -> None:
        size = c_size_t()
        start = self._bpf.pointer("bpf_map__initial_value", self._map(".rodata"), size)
        for name, value in values.items():
            offset, width = self._btf.variables(".rodata")[name]
            ctypes.memmove(start + offset, value.to_bytes(width, "little"), width)

    def _global(self, name: str, layout: Layout) -> tuple[mmap.mmap, int]:
        if self._shared is None:
            raise ValueError("the probes are closed")
        assert self._variables[name][1] == layout.size
        return self._shared, self._variables[name][0]

    @property
    def _out(self) -> RecordReader:
        if self._reader is None:
            raise ValueError("the probes are closed")
        return self._reader

    def fileno(self) -> int:
        """A descriptor that is readable when `read` has something to return."""
        return self._out.fileno()

    def read(self) -> list[AlarmRaised | SubflowEnded]:
        """What the probes reported since the last call, in their order; never blocks.

        Last words that found the ring buffer full come after the others.
        """
        return self._out.read()

    def sample(self) -> list[Measurement]:
        """The exact present values of every MPTCP subflow in the calling thread's namespace."""
        descriptor = self._bpf.number("bpf_iter_create", self._iterator)
        try:
            chunks = []
            while chunk := os.read(descriptor, _READ_BYTES):
                chunks.append(chunk)
        finally:
            os.close(descriptor)
        data = b"".join(chunks)
        decoder = self._out.decoder
        return [decoder.measurement(data, at) for at in range(0, len(data), decoder.size)]

    def set_thresholds(self, thresholds: Thresholds) -> None:
        """Takes effect at the next packet."""
        shared, offset = self._global("thresholds", self._thresholds)
        values = [getattr(thresholds, name) for name in self._thresholds.fields]
        self._thresholds.codec.pack_into(shared, offset, *values)

    @property
    def lost(self) -> dict[str, int]:
        """What went wrong inside the probes since they were loaded, by bpf/records.h's names."""
        shared, offset = self._global("counters", self._counters)
        values = self._counters.codec.unpack_from(shared, offset)
        return dict(zip(self._counters.fields, values, strict=True))

    def entries(self) -> dict[str, int]:
        """How full the probes' maps are: subflows, connections and listeners followed now."""
        return {name: count_entries(self._bpf, self._descriptor(name)) for name in FOLLOWED}

    def programs(self) -> dict[str, int]:
        """The descriptors of the loaded programs by hook; their fdinfo tells id and run time."""
        found = {}
        program = None
        while program := self._bpf.bpf_object__next_program(self._object, program):
            descriptor = self._bpf.bpf_program__fd(program)
            if descriptor >= 0:
                found[self._bpf.bpf_program__section_name(program).decode()] = descriptor
        return found

    def close(self) -> None:
        """Detaches and unloads; a second call does nothing."""
        for link in self._links:
            self._bpf.bpf_link__destroy(link)
        self._links.clear()
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if self._shared is not None:
            self._shared.close()
            self._shared = None
        if self._object:
            self._bpf.bpf_object__close(self._object)
            self._object = 0

    def __enter__(self) -> "Probes":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def tick_us() -> int:
    """How long a jiffy lasts."""
    return round(time.clock_getres(_CLOCK_MONOTONIC_COARSE) * 1e6)


def may_load() -> bool:
    """Whether this process holds CAP_SYS_ADMIN, or CAP_BPF and CAP_PERFMON."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("CapEff:"))
    capabilities = int(line.split()[1], 16)
    return bool(capabilities >> 21 & 1 or (capabilities >> 39 & 1 and capabilities >> 38 & 1))


def _refuse_privilege() -> NoReturn:
    raise ProbesUnavailable(
        "loading the probes needs CAP_BPF and CAP_PERFMON: run as root or grant both"
    ) from None
