# SPDX-License-Identifier: BSD-3-Clause
"""Which kernel functions a pattern names, and what their arguments are.

The names are those of /proc/kallsyms.  A pattern with wildcards looks among MPTCP's own:
names with mptcp, subflow or msk in them, and functions with a tracepoint of MPTCP's.  A
whole name may be any function.  Arguments and their types are the prototypes of the
kernel's BTF.
"""

import re
from dataclasses import dataclass
from enum import IntEnum
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from mptcpd_ebpf.probes.kernel_types import TRACE_ITERATOR, KernelTypes, Prototype

SYMBOLS = Path("/proc/kallsyms")
_FUNCTION = re.compile(r"^([0-9a-f]+) [tTwW] (\S+)", re.MULTILINE)
# What the compiler and the kernel's macros make beside a function.
_MADE = re.compile(
    r"^(__pfx_|__cfi_|__traceiter_|__probestub_|__SC[TK]__|__bpf_trace_|__bpf_prog|bpf_prog_"
    r"|trace_event_raw_event_|trace_raw_output_|trace_event_get_offsets_|perf_trace_)|\.cold"
)
_OURS = re.compile("mptcp|subflow|msk")
OUR_TRACEPOINTS = (
    "mptcp_subflow_get_send", "mptcp_sendmsg_frag", "get_mapping_status",
    "ack_update_msk", "subflow_check_data_avail",
)  # fmt: skip
"""include/trace/events/mptcp.h; each stands in the function of its name."""

MOST_ARGUMENTS = 6


class SubjectKind(IntEnum):
    """enum subject of bpf/trace_func.bpf.c: what says whose call it is."""

    NONE = 0
    SOCK = 1
    SUBFLOW = 2
    SOCKET = 3


_SUBJECTS = {
    "mptcp_subflow_context": SubjectKind.SUBFLOW,
    "mptcp_sock": SubjectKind.SOCK,
    "sock": SubjectKind.SOCK,
    "tcp_sock": SubjectKind.SOCK,
    "inet_connection_sock": SubjectKind.SOCK,
    "socket": SubjectKind.SOCKET,
}


def subject(prototype: Prototype) -> tuple[SubjectKind, int]:
    """What kind of argument says whose call it is, and which one it is.

    A subflow says more than a socket does, and a later argument no more than a first.
    """
    found = [
        (kind, index)
        for index, parameter in enumerate(prototype.parameters[:MOST_ARGUMENTS])
        if (kind := _SUBJECTS.get(parameter.type.pointed or ""))
    ]
    ranking = (SubjectKind.SUBFLOW, SubjectKind.SOCK, SubjectKind.SOCKET)
    return min(found, key=lambda each: ranking.index(each[0]), default=(SubjectKind.NONE, 0))


@dataclass(frozen=True)
class Function:
    """A function of the running kernel."""

    name: str
    prototype: Prototype | None
    """None if the BTF leaves it out, as it does where the compiler changed the arguments."""
    tracepoint: Prototype | None = None
    """What a BTF tracepoint of the same name hands over."""

    def seen_by(self, attach: str) -> Prototype | None:
        return self.tracepoint if attach == "tp_btf" else self.prototype


class Symbols:
    """The kernel's functions by name and by address, from the text of /proc/kallsyms."""

    def __init__(self, text: str) -> None:
        self._listed: list[tuple[str, str]] = _FUNCTION.findall(text)
        self.names = {name for _, name in self._listed}
        self.tracepoints = {
            name.removeprefix(TRACE_ITERATOR)
            for name in self.names
            if name.startswith(TRACE_ITERATOR)
        }

    @cached_property
    def places(self) -> list[tuple[int, str]]:
        """Address and name of all functions, ascending."""
        return sorted((int(address, 16), name) for address, name in self._listed)

    def matching(self, pattern: str) -> list[str]:
        """What a pattern names, sorted."""
        if not re.search(r"[*?\[]", pattern):
            return [pattern] if pattern in self.names | self.tracepoints else []
        ours = {name for name in self.names if _OURS.search(name) and not _MADE.search(name)}
        ours |= self.tracepoints.intersection(OUR_TRACEPOINTS)
        return sorted(name for name in ours if fnmatchcase(name, pattern))


def find(pattern: str, symbols: Symbols) -> list[Function]:
    """The functions that a pattern names, with what is known of their arguments."""
    names = symbols.matching(pattern)
    try:
        with KernelTypes() as types:
            return [
                Function(
                    name,
                    types.function(name) if name in symbols.names else None,
                    types.tracepoint(name) if name in symbols.tracepoints else None,
                )
                for name in names
            ]
    except OSError:
        return [Function(name, None) for name in names]
