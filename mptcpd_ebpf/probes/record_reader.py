# SPDX-License-Identifier: BSD-3-Clause
"""Reads the probes' maps, for CO-RE probes and for those compiled by bcc.

The ring buffer pushes alarms and final records. A final record that finds it full stays in the map
of subflows, marked closed, and the next `RecordReader.read` collects it.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Callable, Iterator
from ctypes import c_uint32

from mptcpd_ebpf.core.events import AlarmRaised, SubflowEnded
from mptcpd_ebpf.probes.btf import Btf
from mptcpd_ebpf.probes.libbpf import RING_CALLBACK, Libbpf
from mptcpd_ebpf.probes.records import Decoder

_BATCH = 256
_KEY_BYTES = 64  # more than the largest key takes


class RecordReader:
    """Reads the maps with these descriptors; `kept` returns how many final records were kept in
    the map so far.

    Raises OSError if the ring buffer cannot be mapped.
    """

    def __init__(
        self, libbpf: Libbpf, btf: Btf, *, subflows: int, reports: int, kept: Callable[[], int]
    ) -> None:
        self._bpf = libbpf
        self._subflows = subflows
        self._kept = kept
        self._collected = 0
        self._records: list[bytes] = []
        layout = btf.layout("subflow")
        self._entry_bytes = layout.size
        self._closed = struct.Struct(f"{layout.fields['closed'].offset}xI")
        self.decoder = Decoder(btf)
        self._callback = RING_CALLBACK(self._on_record)  # kept: libbpf holds the address
        self._ring: int | None = libbpf.pointer(
            "ring_buffer__new", reports, self._callback, None, None
        )

    def fileno(self) -> int:
        """A descriptor that is readable when the ring buffer is not empty."""
        return int(self._bpf.ring_buffer__epoll_fd(self._ring))

    def _on_record(self, _context: int, data: int, size: int) -> int:
        self._records.append(ctypes.string_at(data, size))
        return 0

    def read(self) -> list[AlarmRaised | SubflowEnded]:
        """The records since the last call, in order, then the final records kept in the map."""
        self._bpf.number("ring_buffer__consume", self._ring)
        records, self._records = self._records, []
        events: list[AlarmRaised | SubflowEnded] = [self.decoder.report(each) for each in records]
        kept = self._kept()
        if kept != self._collected:
            self._collected = kept
            events += self._collect_kept()
        return events

    def entries(self) -> Iterator[tuple[int, bytes]]:
        """The cookies and entries of the map of subflows, including closed ones."""
        keys = (ctypes.c_uint64 * _BATCH)()
        values = ctypes.create_string_buffer(_BATCH * self._entry_bytes)
        place = ctypes.create_string_buffer(8)
        start: object = None
        while True:
            number = c_uint32(_BATCH)
            result = self._bpf.bpf_map_lookup_batch(
                self._subflows, start, place, keys, values, number, None
            )
            if result < 0 and result != -errno.ENOENT:
                raise OSError(-result, f"reading the map of subflows: {os.strerror(-result)}")
            whole = values.raw
            for i in range(number.value):
                yield keys[i], whole[i * self._entry_bytes : (i + 1) * self._entry_bytes]
            if result < 0:
                return
            start = place

    def is_closed(self, entry: bytes) -> bool:
        return bool(self._closed.unpack_from(entry)[0])

    def _collect_kept(self) -> list[SubflowEnded]:
        found = {key: entry for key, entry in self.entries() if self.is_closed(entry)}
        for key in found:
            self._bpf.bpf_map_delete_elem(self._subflows, ctypes.byref(ctypes.c_uint64(key)))
        return [
            SubflowEnded(measurement=self.decoder.measurement(entry, closed=True))
            for entry in found.values()
        ]

    def close(self) -> None:
        """Frees the ring buffer; a second call does nothing."""
        if self._ring is not None:
            self._bpf.ring_buffer__free(self._ring)
            self._ring = None


def count_entries(libbpf: Libbpf, descriptor: int) -> int:
    """The number of entries of a map, by walking its keys."""
    key, last = ctypes.create_string_buffer(_KEY_BYTES), None
    number = 0
    while not libbpf.bpf_map_get_next_key(descriptor, last, key):
        number, last = number + 1, key
    return number
