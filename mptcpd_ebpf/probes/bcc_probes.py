# SPDX-License-Identifier: BSD-3-Clause
"""The probes compiled by bcc on this host, with the interface of `Probes`.

The programs are bpf/bcc/subflow.c: the same measurements and alarms as the CO-RE object's, at
other hooks.  The base is a ``sock_ops`` program on a cgroup, which every kernel supports; other
hooks are added where the kernel allows them.  Received segments are observed by fentry of
``mptcp_incoming_options``, else by a kprobe there, else by the raw tracepoint tcp_probe.

bcc runs once, in a child process (`bcc_compile`); this process loads only the instructions, to
stay small.  Maps, programs and links are descriptors of this process and end with it.
"""

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Self

from mptcpd_ebpf.core.events import AlarmRaised, SubflowEnded
from mptcpd_ebpf.core.measurement import Measurement, Thresholds
from mptcpd_ebpf.probes import loading
from mptcpd_ebpf.probes.bcc_compile import BccUnavailable, compile_functions
from mptcpd_ebpf.probes.bpf_object import BpfObject, BpfUnavailable
from mptcpd_ebpf.probes.btf import Btf, BtfError
from mptcpd_ebpf.probes.cgroups import root_cgroup
from mptcpd_ebpf.probes.core_probes import (
    FOLLOWED,
    RING_BYTES,
    HookReport,
    ProbeReport,
    tick_us,
)
from mptcpd_ebpf.probes.libbpf import Libbpf
from mptcpd_ebpf.probes.loading import MapFlag, MapType, ProgramType
from mptcpd_ebpf.probes.record_reader import RecordReader, count_entries
from mptcpd_ebpf.runtime.capabilities import may_load_bpf
from mptcpd_ebpf.runtime.resources import bpf_object, bpf_sources

_SUBFLOWS, _LISTENERS, _OPENERS = 65536, 4096, 1024
_GATES = _ARRIVALS = 1024  # bpf/state.h
_POINTER = 8
_SEGMENT = "mptcp_incoming_options"
_MAPS = ("subflows", "connections", "listeners", "openers", "reports", "thresholds",
         "counters", "gates", "arrivals", "blank", "netns")  # fmt: skip
"""In the order of the map numbers in the code, from 1 on."""
_FUNCTIONS = (
    "sock_ops",
    "segment_received",
    "segment_received_kprobe",
    "scheduler_looks",
    "state_changes",
    "sample",
)
_WITHOUT = {
    "segment_received": "nothing is measured on a host that only receives",
    "scheduler_looks": "no stall is detected while no segment is received",
    "state_changes": "the owner is unknown",
}

Way = tuple[str, Callable[[], None]]
"""A hook's name, and what attaches there or raises OSError."""


class BccProbes:
    """The probes, attached.  Made by `open`; a context manager that detaches them.

    Subflows that are older than these probes are not seen: the kernel calls a sock_ops program
    only for sockets that enabled its callbacks.
    """

    sees_all = False

    def __init__(self, libbpf: Libbpf, btf: Btf, netns: int, ring_bytes: int) -> None:
        self._bpf = libbpf
        self._btf = btf
        self._closing = ExitStack()
        self._maps: dict[str, int] = {}
        self._programs: dict[str, int] = {}
        self._thresholds = btf.layout("thresholds")
        self._counters = btf.layout("counters")
        self.report = ProbeReport(hooks=[], netns=netns, way="compiled by bcc")
        with ExitStack() as stack:
            self._closing = stack
            self._make_maps(ring_bytes)
            self._settings = self._map_memory("thresholds", self._thresholds.size)
            self._sums = self._map_memory("counters", self._counters.size)
            self._reader = RecordReader(
                libbpf,
                btf,
                subflows=self._maps["subflows"],
                reports=self._maps["reports"],
                kept=lambda: self.lost["final_records_kept"],
            )
            stack.callback(self._reader.close)
            self._closing = stack.pop_all()

    @classmethod
    def open(
        cls,
        netns: int = 0,
        thresholds: Thresholds | None = None,
        ring_bytes: int = RING_BYTES,
        cgroup: Path | None = None,
    ) -> Self:
        """Compiles, loads and attaches the probes.

        netns, thresholds, ring_bytes: as for `Probes.open`.
        cgroup: a folder of cgroup v2; only sockets created in it or below are followed.  None:
        all sockets, by attaching to its root.

        Raises BpfUnavailable.
        """
        cgroup = cgroup or root_cgroup()
        if cgroup is None:
            raise BpfUnavailable(
                "bcc: no cgroup v2 is mounted to attach sock_ops to: "
                "mount -t cgroup2 none /sys/fs/cgroup"
            )
        if not may_load_bpf():
            raise BpfUnavailable(
                "loading the probes needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN: run as root"
            )
        probes: Self | None = None
        try:
            libbpf = Libbpf()
            probes = cls(libbpf, _record_types(libbpf), netns, ring_bytes)
            probes.set_thresholds(thresholds or Thresholds())
            probes._start(netns, cgroup)
        except (BccUnavailable, BtfError, OSError) as error:
            if probes is not None:
                probes.close()
            raise BpfUnavailable(f"bcc: {error}") from None
        return probes

    def _make_maps(self, ring_bytes: int) -> None:
        size = {name: self._btf.layout(name).size for name in ("subflow", "connection_key",
                "connection", "listener_key", "listener", "owner", "gate", "arrival")}  # fmt: skip
        grows, shared = MapFlag.NO_PREALLOC, MapFlag.MMAPABLE
        kinds = MapType
        for name, kind, key, value, entries, flags in (
            ("subflows", kinds.HASH, 8, size["subflow"], _SUBFLOWS, grows),
            ("connections", kinds.HASH, size["connection_key"], size["connection"], _SUBFLOWS,
             grows),
            ("listeners", kinds.HASH, size["listener_key"], size["listener"], _LISTENERS, grows),
            ("openers", kinds.LRU_HASH, _POINTER, size["owner"], _OPENERS, 0),
            ("reports", kinds.RINGBUF, 0, 0, ring_bytes, 0),
            ("thresholds", kinds.ARRAY, 4, self._thresholds.size, 1, shared),
            ("counters", kinds.ARRAY, 4, self._counters.size, 1, shared),
            ("gates", kinds.ARRAY, 4, size["gate"] * _GATES, 1, 0),
            ("arrivals", kinds.ARRAY, 4, size["arrival"] * _ARRIVALS, 1, 0),
            ("blank", kinds.ARRAY, 4, size["subflow"], 1, 0),
            ("netns", kinds.ARRAY, 4, 4, 1, 0),
        ):  # fmt: skip
            descriptor = loading.create_map(self._bpf, kind, name, key, value, entries, int(flags))
            self._closing.callback(os.close, descriptor)
            self._maps[name] = descriptor

    def _map_memory(self, name: str, size: int) -> mmap.mmap:
        memory = mmap.mmap(self._maps[name], -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
        self._closing.callback(memory.close)
        return memory

    def _start(self, netns: int, cgroup: Path) -> None:
        loading.set_element(self._bpf, self._maps["netns"], netns)
        numbers = {place: self._maps[name] for place, name in enumerate(_MAPS, start=1)}
        codes = {name: loading.with_maps(code, numbers) for name, code in _compiled().items()}
        hooks = self.report.hooks
        raw = ProgramType.RAW_TRACEPOINT
        program = self._load(ProgramType.SOCK_OPS, "sock_ops", codes["sock_ops"])
        self._keep(loading.attach_cgroup(self._bpf, program, cgroup))
        hooks.append(HookReport("sock_ops", f"sock_ops of {cgroup}", True))
        self._load(raw, "sample", codes["sample"])
        hooks.append(self._attach_first("segment_received", self._segment_hooks(codes)))
        for name, tracepoint in (
            ("scheduler_looks", "mptcp_subflow_get_send"),
            ("state_changes", "inet_sock_set_state"),
        ):
            way = self._raw_tracepoint(name, tracepoint, codes[name])
            hooks.append(self._attach_first(name, iter([(f"raw_tp/{tracepoint}", way)])))

    def _load(self, kind: ProgramType, name: str, code: bytes, fentry: str | None = None) -> int:
        program = loading.load_program(self._bpf, kind, name, code, fentry)
        self._keep(program)
        self._programs[name] = program
        return program

    def _keep(self, *descriptors: int) -> None:
        for each in descriptors:
            self._closing.callback(os.close, each)

    def _raw_tracepoint(self, name: str, tracepoint: str, code: bytes) -> Callable[[], None]:
        def attach() -> None:
            program = self._load(ProgramType.RAW_TRACEPOINT, name, code)
            self._keep(loading.attach_raw_tracepoint(self._bpf, program, tracepoint))

        return attach

    def _segment_hooks(self, codes: dict[str, bytes]) -> Iterator[Way]:
        """The hooks that see received segments, the cheapest first."""
        name, code = "segment_received", codes["segment_received"]

        def fentry() -> None:
            program = self._load(ProgramType.TRACING, name, code, fentry=_SEGMENT)
            self._keep(loading.attach_fentry(self._bpf, program))

        def kprobe() -> None:
            program = self._load(ProgramType.KPROBE, name, codes["segment_received_kprobe"])
            self._keep(*loading.attach_kprobe(self._bpf, program, _SEGMENT))

        yield f"fentry/{_SEGMENT}", fentry
        yield f"kprobe/{_SEGMENT}", kprobe
        yield "raw_tp/tcp_probe", self._raw_tracepoint(name, "tcp_probe", code)

    def _attach_first(self, name: str, ways: Iterator[Way]) -> HookReport:
        """Attaches at the first hook that the kernel allows."""
        refused: list[str] = []
        hook = ""
        for hook, attach in ways:
            try:
                attach()
            except OSError as error:
                refused.append(f"{hook}: {error.strerror or error}")
            else:
                return HookReport(name, hook, True, "; ".join(refused))
        return HookReport(name, hook, False, f"{'; '.join(refused)}; without it {_WITHOUT[name]}")

    def fileno(self) -> int:
        """A descriptor that is readable when `read` has something to return."""
        return self._reader.fileno()

    def read(self) -> list[AlarmRaised | SubflowEnded]:
        """What the probes reported since the last call; see `Probes.read`."""
        return self._reader.read()

    def sample(self) -> list[Measurement]:
        """The exact present values of the subflows that these probes follow.

        Each costs one system call, which runs the measuring program (BPF_PROG_TEST_RUN).
        """
        for cookie, _ in list(self._reader.entries()):
            loading.run_raw_tracepoint(self._bpf, self._programs["sample"], cookie)
        decoder = self._reader.decoder
        return [
            decoder.measurement(entry)
            for _, entry in self._reader.entries()
            if not self._reader.is_closed(entry)
        ]

    def set_thresholds(self, thresholds: Thresholds) -> None:
        """Takes effect at the next packet."""
        values = [getattr(thresholds, name) for name in self._thresholds.fields]
        self._thresholds.codec.pack_into(self._settings, 0, *values)

    @property
    def lost(self) -> dict[str, int]:
        """Error counts of the probes since they were loaded, by the names of bpf/records.h."""
        values = self._counters.codec.unpack_from(self._sums, 0)
        return dict(zip(self._counters.fields, values, strict=True))

    def entries(self) -> dict[str, int]:
        """How full the probes' maps are: subflows, connections and listeners followed now."""
        return {name: count_entries(self._bpf, self._maps[name]) for name in FOLLOWED}

    def programs(self) -> dict[str, int]:
        """The descriptors of the loaded programs by name; their fdinfo has id and run time."""
        return dict(self._programs)

    def close(self) -> None:
        """Detaches and unloads; a second call does nothing."""
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@cache
def _compiled() -> dict[str, bytes]:
    """The code of all functions: the same for every namespace, and seconds to compile."""
    return compile_functions(
        (bpf_sources() / "bcc" / "subflow.c").read_text(),
        _FUNCTIONS,
        {f"{name.upper()}_MAP": place for place, name in enumerate(_MAPS, start=1)}
        | {"TICK_US": tick_us()},
        declares=bpf_object("subflow"),
    )


def _record_types(libbpf: Libbpf) -> Btf:
    """The types of the CO-RE object, which is compiled from the same headers."""
    with BpfObject("subflow", libbpf) as compiled:
        return compiled.btf
