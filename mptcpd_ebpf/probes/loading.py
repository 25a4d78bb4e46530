# SPDX-License-Identifier: BSD-3-Clause
"""Loads maps, programs and links from bare instructions, for programs without an object file.

Only programs compiled by bcc take this way; `bpf_object` loads object files. The steps that libbpf
performs for an object are made here by its low-level functions (bpf.h of libbpf 1.x; numbers from
include/uapi/linux/bpf.h). Closing a descriptor ends the map, program or link, so nothing outlives
the process, however it ends.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Mapping
from ctypes import POINTER, Structure, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from enum import IntEnum
from pathlib import Path

from mptcpd_ebpf.probes.libbpf import Libbpf

_LICENSE = b"Dual BSD/GPL"
_INSTRUCTION_BYTES = 8
_LOAD_64 = 0x18  # BPF_LD | BPF_IMM | BPF_DW; its second half has operation code 0
_MAP_SOURCES = (1, 2)  # BPF_PSEUDO_MAP_FD, BPF_PSEUDO_MAP_VALUE
_LOG_BYTES = 1 << 20
_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_KPROBE_TYPE = Path("/sys/bus/event_source/devices/kprobe/type")
_PERF_ATTR_BYTES = 112


class MapType(IntEnum):
    HASH = 1
    ARRAY = 2
    LRU_HASH = 9
    RINGBUF = 27


class MapFlag(IntEnum):
    NO_PREALLOC = 1
    MMAPABLE = 1 << 10


class ProgramType(IntEnum):
    KPROBE = 2
    SOCK_OPS = 13
    RAW_TRACEPOINT = 17
    TRACING = 26


class AttachType(IntEnum):
    SOCK_OPS = 3
    FENTRY = 24
    PERF_EVENT = 41


class _MapOptions(Structure):
    _fields_ = [
        ("sz", c_size_t),
        ("btf_fd", c_uint32),
        ("btf_key_type_id", c_uint32),
        ("btf_value_type_id", c_uint32),
        ("btf_vmlinux_value_type_id", c_uint32),
        ("inner_map_fd", c_uint32),
        ("map_flags", c_uint32),
        ("map_extra", c_uint64),
        ("numa_node", c_uint32),
        ("map_ifindex", c_uint32),
    ]


class _ProgramOptions(Structure):
    _fields_ = [
        ("sz", c_size_t),
        ("attempts", c_int),
        ("expected_attach_type", c_int),
        ("prog_btf_fd", c_uint32),
        ("prog_flags", c_uint32),
        ("prog_ifindex", c_uint32),
        ("kern_version", c_uint32),
        ("attach_btf_id", c_uint32),
        ("attach_prog_fd", c_uint32),
        ("attach_btf_obj_fd", c_uint32),
        ("fd_array", POINTER(c_int)),
        ("func_info", c_void_p),
        ("func_info_cnt", c_uint32),
        ("func_info_rec_size", c_uint32),
        ("line_info", c_void_p),
        ("line_info_cnt", c_uint32),
        ("line_info_rec_size", c_uint32),
        ("log_level", c_uint32),
        ("log_size", c_uint32),
        ("log_buf", c_char_p),
    ]


class _RunOptions(Structure):
    _fields_ = [
        ("sz", c_size_t),
        ("data_in", c_void_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_void_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    ]


def create_map(
    libbpf: Libbpf, kind: MapType, name: str, key: int, value: int, entries: int, flags: int = 0
) -> int:
    """A new map's descriptor; key and value in bytes.  Raises OSError."""
    options = _MapOptions(sz=ctypes.sizeof(_MapOptions), map_flags=flags)
    return libbpf.number(
        "bpf_map_create", kind, name.encode()[:15], key, value, entries, ctypes.byref(options)
    )


def set_element(libbpf: Libbpf, descriptor: int, value: int) -> None:
    """Sets the one element of an array of 32-bit numbers."""
    key, number = c_uint32(0), c_uint32(value)
    libbpf.number("bpf_map_update_elem", descriptor, ctypes.byref(key), ctypes.byref(number), 0)


def with_maps(code: bytes, descriptors: Mapping[int, int]) -> bytes:
    """The code with each map number replaced by the map's descriptor."""
    done = bytearray(code)
    for at in range(0, len(code), _INSTRUCTION_BYTES):
        if code[at] == _LOAD_64 and code[at + 1] >> 4 in _MAP_SOURCES:
            (number,) = struct.unpack_from("=i", code, at + 4)
            struct.pack_into("=i", done, at + 4, descriptors[number])
    return bytes(done)


def load_program(
    libbpf: Libbpf, kind: ProgramType, name: str, code: bytes, fentry: str | None = None
) -> int:
    """A program's descriptor; `fentry` names the kernel function of a TRACING one.

    Raises OSError, with the verifier's last line if the verifier refuses.
    """
    options = _ProgramOptions(sz=ctypes.sizeof(_ProgramOptions))
    if fentry is not None:
        options.expected_attach_type = AttachType.FENTRY
        options.attach_btf_id = libbpf.number(
            "libbpf_find_vmlinux_btf_id", fentry.encode(), AttachType.FENTRY
        )
    arguments = (kind, name.encode()[:15], _LICENSE, code, len(code) // 8, ctypes.byref(options))
    try:
        return libbpf.number("bpf_prog_load", *arguments)
    except OSError as error:
        refusal = error
    log = ctypes.create_string_buffer(_LOG_BYTES)
    options.log_level, options.log_size = 1, len(log)
    options.log_buf = ctypes.cast(log, c_char_p)
    try:
        return libbpf.number("bpf_prog_load", *arguments)
    except OSError:
        said = log.value.decode(errors="replace").strip().splitlines()
    words = [line for line in said if not line.startswith(("processed ", "--"))]
    raise OSError(refusal.errno, words[-1] if words else os.strerror(refusal.errno or 0))


def attach_cgroup(libbpf: Libbpf, program: int, cgroup: Path) -> int:
    """A link of a sock_ops program to a cgroup v2; other programs attached there stay.

    Raises OSError that names the folder.
    """
    folder = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return libbpf.number("bpf_link_create", program, folder, AttachType.SOCK_OPS, None)
    except OSError as error:
        if error.errno == errno.EBADF:
            raise OSError(error.errno, f"{cgroup} is not a folder of cgroup v2") from None
        raise
    finally:
        os.close(folder)


def attach_fentry(libbpf: Libbpf, program: int) -> int:
    """A link of a TRACING program to the function it was loaded for."""
    return libbpf.number("bpf_link_create", program, 0, AttachType.FENTRY, None)


def attach_raw_tracepoint(libbpf: Libbpf, program: int, name: str) -> int:
    """A link of a raw tracepoint program."""
    return libbpf.number("bpf_raw_tracepoint_open", name.encode(), program)


def attach_kprobe(libbpf: Libbpf, program: int, function: str) -> tuple[int, int]:
    """A kprobe's two descriptors: its perf event and the link of the program to it.

    Needs no tracefs.  Raises OSError; FileNotFoundError if the kernel has no kprobes.
    """
    kind = int(_KPROBE_TYPE.read_text())
    name = ctypes.create_string_buffer(function.encode())
    # struct perf_event_attr: type, size, config, sample_period, sample_type, read_format,
    # flags, wakeup_events, bp_type, kprobe_func, probe_offset.
    attr = struct.pack("=IIQQQQQIIQQ", kind, _PERF_ATTR_BYTES, 0, 1, 0, 0, 0, 0, 0,
                       ctypes.addressof(name), 0)  # fmt: skip
    buffer = ctypes.create_string_buffer(attr, _PERF_ATTR_BYTES)
    libc = ctypes.CDLL(None, use_errno=True)
    number = _PERF_EVENT_OPEN[os.uname().machine]
    close_on_exec = 8
    event = libc.syscall(number, buffer, -1, 0, -1, ctypes.c_ulong(close_on_exec))
    if event < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"perf_event_open: {os.strerror(error)}")
    try:
        return event, libbpf.number("bpf_link_create", program, event, AttachType.PERF_EVENT, None)
    except OSError:
        os.close(event)
        raise


def run_raw_tracepoint(libbpf: Libbpf, program: int, argument: int) -> None:
    """Runs a raw tracepoint program once, with one argument (BPF_PROG_TEST_RUN)."""
    context = ctypes.c_uint64(argument)
    options = _RunOptions(
        sz=ctypes.sizeof(_RunOptions),
        ctx_in=ctypes.addressof(context),
        ctx_size_in=ctypes.sizeof(context),
    )
    libbpf.number("bpf_prog_test_run_opts", program, ctypes.byref(options))
