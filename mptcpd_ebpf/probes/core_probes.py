# SPDX-License-Identifier: BSD-3-Clause
"""The probes: opens the CO-RE object, attaches what the kernel allows, reads the measurements.

Data leaves the kernel in two ways. The ring buffer pushes alarms and final records: its descriptor
becomes readable, and `Probes.read` returns events. The ``iter/tcp`` program runs on request:
`Probes.sample` returns the current values of every MPTCP subflow in the namespace of the calling
thread, including subflows older than the probes.

Thresholds and counters are global variables of the object, mapped into this process;
writing a threshold takes effect at the next packet.
"""

import mmap
import os
import time

from msgspec import Struct

from mptcpd_ebpf.core.events import AlarmRaised, SubflowEnded
from mptcpd_ebpf.core.measurement import Measurement, Thresholds
from mptcpd_ebpf.probes.bpf_object import BpfObject, BpfUnavailable, load_library
from mptcpd_ebpf.probes.btf import Layout
from mptcpd_ebpf.probes.libbpf import LIBRARY, Libbpf
from mptcpd_ebpf.probes.record_reader import RecordReader, count_entries

RING_BYTES = 1 << 22
"""Some 7000 alarms: five thousand subflows that fall silent together lost as many with a quarter
of it."""
_CLOCK_MONOTONIC_COARSE = 6  # its resolution is the kernel's tick
_ITERATOR = "sample"
_ESSENTIAL = frozenset({"state_changes", "socket_destroyed", _ITERATOR})
_READ_BYTES = 1 << 18
FOLLOWED = ("subflows", "connections", "listeners")
"""The maps with an entry per subflow, connection or listener."""

_WITHOUT = {
    "segment_received": "no RTT histogram, no RTT, loss or stall alarm from received segments",
    "scheduler_looks": "no-progress alarms start only at the next received or repeated segment",
    "segment_retransmitted": "no loss and no timeout alarm",
}
"""What is lost when an optional hook does not attach."""


class HookReport(Struct, frozen=True):
    """Whether one program is attached."""

    program: str
    hook: str
    """Its section: ``tp_btf/tcp_probe`` …"""
    attached: bool
    reason: str = ""
    """Why it is not attached, and what is missing without it."""


class ProbeReport(Struct, frozen=True):
    """What was attached at start."""

    hooks: list[HookReport]
    netns: int
    """Inode of the only network namespace that is followed, 0: all."""
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
        self, libbpf: Libbpf, netns: int, ring_bytes: int, skipped: dict[str, str]
    ) -> None:
        self._bpf = libbpf
        self._object = BpfObject("subflow", libbpf)
        self._reader: RecordReader | None = None
        self._shared: mmap.mmap | None = None
        btf = self._object.btf
        self._thresholds = btf.layout("thresholds")
        self._counters = btf.layout("counters")
        self._variables = btf.variables(".bss")
        self._object.constants({"own_netns": netns, "tick_us": tick_us()})
        self._object.resize("reports", ring_bytes)
        self._object.choose([name for name in self._object.names() if name not in skipped])
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

        Raises BpfUnavailable.
        """
        libbpf = load_library()
        skipped: dict[str, str] = {}
        while True:
            probes = cls(libbpf, netns, ring_bytes, skipped)
            try:
                probes._object.load()
                probes._start(thresholds or Thresholds(), skipped)
                return probes
            except OSError as error:
                refused = libbpf.refused_programs()
                why = probes._object.explain(error)
                probes.close()
                optional = {name: why for name, why in refused.items() if name in _WITHOUT}
                if not optional or skipped.keys() >= optional.keys():
                    raise BpfUnavailable(
                        f'loading the probes: {why}; see docs/probes.md, "Kernels"'
                    ) from None
                skipped |= optional

    def _start(self, thresholds: Thresholds, skipped: dict[str, str]) -> None:
        self._shared = self._object.memory(".bss")
        self.set_thresholds(thresholds)
        self._reader = RecordReader(
            self._bpf,
            self._object.btf,
            subflows=self._object.map_descriptor("subflows"),
            reports=self._object.map_descriptor("reports"),
            kept=lambda: self.lost["final_records_kept"],
        )
        self.report.hooks.extend(self._attach(name, skipped) for name in self._object.names())
        essential = [
            f"{hook.hook}: {hook.reason}"
            for hook in self.report.hooks
            if hook.program in _ESSENTIAL and not hook.attached
        ]
        if essential:
            self.close()
            raise BpfUnavailable(
                f"the kernel does not let the probes attach to {'; '.join(essential)}"
            )
        self.sample()  # registers the subflows that are older than the probes

    def _attach(self, name: str, skipped: dict[str, str]) -> HookReport:
        hook = self._object.hook(name)
        without = f"; without it {_WITHOUT[name]}" if name in _WITHOUT else ""
        if name in skipped:
            return HookReport(name, hook, False, skipped[name] + without)
        try:
            if name == _ITERATOR:
                self._iterator = self._object.attach_iterator(name)
            else:
                self._object.attach(name)
        except OSError as error:
            return HookReport(name, hook, False, (error.strerror or str(error)) + without)
        return HookReport(name, hook, True)

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
        """What the probes reported since the last call, in order; never blocks. Final records that
        found the ring buffer full come last.
        """
        return self._out.read()

    def sample(self) -> list[Measurement]:
        """The current values of every MPTCP subflow in the calling thread's namespace."""
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
        """Error counts of the probes since they were loaded, by the names of bpf/records.h."""
        shared, offset = self._global("counters", self._counters)
        values = self._counters.codec.unpack_from(shared, offset)
        return dict(zip(self._counters.fields, values, strict=True))

    def entries(self) -> dict[str, int]:
        """How full the probes' maps are: subflows, connections and listeners followed now."""
        return {
            name: count_entries(self._bpf, self._object.map_descriptor(name)) for name in FOLLOWED
        }

    def programs(self) -> dict[str, int]:
        """The descriptors of the loaded programs by hook; their fdinfo has id and run time."""
        return {
            self._object.hook(name): descriptor
            for name, descriptor in self._object.programs().items()
        }

    def close(self) -> None:
        """Detaches and unloads; a second call does nothing."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        self._shared = None
        self._object.close()

    def __enter__(self) -> "Probes":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def tick_us() -> int:
    """Length of a jiffy in microseconds."""
    return round(time.clock_getres(_CLOCK_MONOTONIC_COARSE) * 1e6)
