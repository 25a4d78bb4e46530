# SPDX-License-Identifier: BSD-3-Clause
"""``trace func``: which MPTCP functions a pattern names, and how to trace them on this kernel.

Tracing any function by name takes kprobes (CONFIG_KPROBES) and a compiler at hand: that
is bpftrace's trade.  A kernel without kprobes still has its tracepoints, which the other
tools use.
"""

from fnmatch import fnmatchcase
from pathlib import Path

from mptcpd_ebpf.exitcodes import ExitCode, Failure

_SYMBOLS = Path("/proc/kallsyms")
_TRACEPOINT = "__traceiter_"
_OURS = ("mptcp", "subflow", "ack_update_msk", "get_mapping_status")


def way(pattern: str, symbols: list[str]) -> Failure:
    """What is missing here, and what would do instead, in one line."""
    found = [name for name in symbols if fnmatchcase(name, pattern) and "mptcp" in name]
    if not found:
        return Failure(
            f"trace func {pattern}: no MPTCP function of this kernel has such a name",
            ExitCode.USAGE,
        )
    if "register_kprobe" in symbols:
        return Failure(
            f"trace func {pattern}: {len(found)} functions match; they are traced with "
            f"bpftrace -e 'kprobe:{pattern} {{ @[func] = count(); }}'",
            ExitCode.NO_MPTCP,
        )
    points = sorted(
        name.removeprefix(_TRACEPOINT)
        for name in symbols
        if name.startswith(_TRACEPOINT) and name.removeprefix(_TRACEPOINT).startswith(_OURS)
    )
    return Failure(
        f"trace func {pattern}: {len(found)} functions match, but this kernel has no kprobes "
        f"(CONFIG_KPROBES); the other tools use its tracepoints: {', '.join(points)}",
        ExitCode.NO_MPTCP,
    )


def explain(pattern: str) -> Failure:
    """`way` on the running kernel."""
    lines = _SYMBOLS.read_text().splitlines()
    return way(pattern, [line.split()[2] for line in lines])
