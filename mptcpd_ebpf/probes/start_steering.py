# SPDX-License-Identifier: BSD-3-Clause
"""The programs that start new connections on another path (bpf/steer.bpf.c), attached to cgroups.

They are attached by links, beside other programs of a cgroup, and end with this process, however
that ends.  They act in the network namespace of the calling thread only.
"""

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from mptcpd_ebpf.core.address import SockAddr, unmapped
from mptcpd_ebpf.core.events import StartUnanswered
from mptcpd_ebpf.probes.bpf_object import BpfObject, BpfUnavailable
from mptcpd_ebpf.probes.btf import Layout
from mptcpd_ebpf.probes.cgroups import root_cgroup
from mptcpd_ebpf.probes.libbpf import RING_CALLBACK
from mptcpd_ebpf.runtime import netns
from mptcpd_ebpf.runtime.capabilities import may_load_bpf

_MAPPED = bytes(10) + b"\xff\xff"
_FAMILIES = {False: socket.AF_INET, True: socket.AF_INET6}

Prefix = tuple[str, int]
"""An address and the number of its bits that count."""


class StartSteering:
    """The programs, attached.  A context manager that detaches them; an event source."""

    def __init__(self, bpf: BpfObject) -> None:
        self._object = bpf
        self._sources = bpf.map_descriptor("sources")
        self._prefixes = bpf.map_descriptor("specific_routes")
        self._present: dict[bytes, None] = {}
        self._report = bpf.btf.layout("unanswered")
        self._answered = bpf.btf.layout("answered")
        self._counters = bpf.btf.layout("steer_counters")
        self._records: list[bytes] = []
        self._callback = RING_CALLBACK(self._on_record)  # kept: libbpf holds the address
        self._ring: int | None = bpf.libbpf.pointer(
            "ring_buffer__new", bpf.map_descriptor("reports"), self._callback, None, None
        )

    @classmethod
    def open(cls, cgroups: Sequence[Path] = ()) -> Self:
        """Attaches to these folders of cgroup v2; none: to its root.

        Raises BpfUnavailable.
        """
        folders = list(cgroups) or [_root()]
        bpf = _loaded()
        try:
            for folder in folders:
                _attach(bpf, folder)
            return cls(bpf)
        except BaseException:
            bpf.close()
            raise

    @classmethod
    def check(cls) -> None:
        """Loads the programs, but attaches them to no cgroup; raises BpfUnavailable as `open`."""
        _root()
        with _loaded():
            pass

    def set_source(self, *, ipv6: bool, ip: str | None, interface: str = "") -> None:
        """Starts new connections of a family from `ip` on `interface`; None: as the routes say.

        Raises OSError.
        """
        key = ctypes.c_uint32(_FAMILIES[ipv6])
        if ip is None:
            with suppress(FileNotFoundError):
                self._call("bpf_map_delete_elem", self._sources, ctypes.byref(key))
            return
        value = _address(ip) + interface.encode("utf-8", "surrogateescape").ljust(16, b"\0")
        self._call("bpf_map_update_elem", self._sources, ctypes.byref(key), value, 0)

    def set_specific_routes(self, prefixes: Iterable[Prefix]) -> None:
        """Leaves connections to these destinations alone, and no others.  Raises OSError."""
        wanted = {_key(prefix): None for prefix in prefixes}
        for key in wanted:
            if key not in self._present:
                self._call("bpf_map_update_elem", self._prefixes, key, bytes(4), 0)
                self._present[key] = None
        for key in [each for each in self._present if each not in wanted]:
            self._call("bpf_map_delete_elem", self._prefixes, key)
            del self._present[key]

    def fileno(self) -> int:
        """A descriptor that is readable when `read` has something to return."""
        return int(self._object.libbpf.ring_buffer__epoll_fd(self._ring))

    def read(self) -> list[StartUnanswered]:
        """The unanswered starts since the last call, in order; never blocks."""
        self._call("ring_buffer__consume", self._ring)
        records, self._records = self._records, []
        return [self._decode(each) for each in records]

    @property
    def counters(self) -> dict[str, int]:
        """What the programs have done, by the names of bpf/steer.bpf.c."""
        offset, _size = self._object.btf.variables(".bss")["counters"]
        shared = self._object.memory(".bss")
        return _fields(self._counters, shared[offset : offset + self._counters.size])

    def programs(self) -> dict[str, int]:
        """The descriptors of the loaded programs by hook."""
        return {self._object.hook(name): fd for name, fd in self._object.programs().items()}

    def close(self) -> None:
        """Detaches and unloads; a second call does nothing."""
        if self._ring is not None:
            self._object.libbpf.ring_buffer__free(self._ring)
            self._ring = None
        self._object.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, name: str, *arguments: object) -> None:
        self._object.libbpf.number(name, *arguments)

    def _on_record(self, _context: int, data: int, size: int) -> int:
        self._records.append(ctypes.string_at(data, size))
        return 0

    def _decode(self, data: bytes) -> StartUnanswered:
        report = _fields(self._report, data)
        last = _fields(self._answered, report["last"])
        return StartUnanswered(
            local_ip=_text(report["local_ip"]),
            remote=SockAddr(_text(report["remote_ip"]), report["remote_port"]),
            began_at=report["began_at"],
            last_answered=(
                SockAddr(_text(last["remote_ip"]), last["remote_port"]) if last["at"] else None
            ),
        )


def _fields(layout: Layout, data: bytes) -> dict[str, Any]:
    return dict(zip(layout.fields, layout.codec.unpack(data), strict=True))


def _root() -> Path:
    root = root_cgroup()
    if root is None:
        raise BpfUnavailable("cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup")
    return root


def _loaded() -> BpfObject:
    cookie = netns.cookie()
    if not cookie:
        raise BpfUnavailable("network namespaces have no cookie: it needs Linux 5.14 or newer")
    bpf = BpfObject("steer")
    try:
        bpf.constants({"own_netns": cookie})
        bpf.load()
    except OSError as error:
        bpf.close()
        raise BpfUnavailable(_explain(bpf, error)) from None
    return bpf


def _attach(bpf: BpfObject, folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BpfUnavailable(f"{folder}: {error.strerror}") from None
    try:
        for program in bpf.names():
            bpf.attach_cgroup(program, descriptor)
    except OSError as error:
        raise BpfUnavailable(_refusal(folder, error)) from None
    finally:
        os.close(descriptor)


def _refusal(folder: Path, error: OSError) -> str:
    if error.errno == errno.EBADF:
        return f"{folder} is not a folder of cgroup v2"
    if error.errno == errno.EPERM:
        return (
            f"attaching to {folder}: {error.strerror}: a program that is attached there or above "
            "allows none beside it ('bpftool cgroup tree' lists them)"
        )
    return f"attaching to {folder}: {error.strerror}"


def _explain(bpf: BpfObject, error: OSError) -> str:
    if error.errno in (errno.EPERM, errno.EACCES) and not may_load_bpf():
        return "it needs CAP_BPF and CAP_NET_ADMIN: run as root or grant both"
    return bpf.explain(error)


def _address(ip: str) -> bytes:
    """16 bytes, an IPv4 address mapped (RFC 4291, 2.5.5.2)."""
    if ":" in ip:
        return socket.inet_pton(socket.AF_INET6, ip)
    return _MAPPED + socket.inet_pton(socket.AF_INET, ip)


def _key(prefix: Prefix) -> bytes:
    ip, bits = prefix
    return struct.pack("=I", bits if ":" in ip else 8 * len(_MAPPED) + bits) + _address(ip)


def _text(packed: bytes) -> str:
    return unmapped(socket.inet_ntop(socket.AF_INET6, packed))
