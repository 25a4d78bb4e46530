# SPDX-License-Identifier: BSD-3-Clause
"""The kernel functions that a pattern matches, and their arguments.

The names are those of /proc/kallsyms.  A pattern with wildcards matches only names that contain
mptcp, subflow or msk, and functions with an MPTCP tracepoint.  A complete name may be any function.
The kernel's BTF has the prototypes.
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
# Symbols that the compiler and the kernel's macros generate beside a function.
_GENERATED = re.compile(
    r"^(__pfx_|__cfi_|__traceiter_|__probestub_|__SC[TK]__|__bpf_trace_|__bpf_prog|bpf_prog_"
    r"|trace_event_raw_event_|trace_raw_output_|trace_event_get_offsets_|perf_trace_)|\.cold"
)
_MPTCP = re.compile("mptcp|subflow|msk")
MPTCP_TRACEPOINTS = (
    "mptcp_subflow_get_send", "mptcp_sendmsg_frag", "get_mapping_status",
    "ack_update_msk", "subflow_check_data_avail",
)  # fmt: skip
"""include/trace/events/mptcp.h; each is in the function of the same name."""

MOST_ARGUMENTS = 6


class SubjectKind(IntEnum):
    """enum subject of bpf/trace_func.bpf.c: the argument that identifies a call's connection."""

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
    """The kind and the index of the argument that identifies a call's connection.

    A subflow is preferred to a socket, and the first argument of a kind to later ones.
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
    """None if the BTF lacks it, as it does if the compiler changed the arguments."""
    tracepoint: Prototype | None = None
    """The arguments of a BTF tracepoint of the same name."""

    def seen_by(self, attach: str) -> Prototype | None:
        """The arguments that a program attached in this way gets."""
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
        """The names that a pattern matches, sorted."""
        if not re.search(r"[*?\[]", pattern):
            return [pattern] if pattern in self.names | self.tracepoints else []
        names = {name for name in self.names if _MPTCP.search(name) and not _GENERATED.search(name)}
        names |= self.tracepoints.intersection(MPTCP_TRACEPOINTS)
        return sorted(name for name in names if fnmatchcase(name, pattern))


def find(pattern: str, symbols: Symbols) -> list[Function]:
    """The functions that a pattern matches, with their prototypes as far as the BTF has them."""
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
