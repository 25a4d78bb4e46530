# SPDX-License-Identifier: BSD-3-Clause
"""The kernel's MPTCP counters: the MPTcpExt lines of /proc/net/netstat, per network namespace.

They count joins, fallbacks and their reasons, resets, reinjections
(kernel: net/mptcp/mib.c).  Which ones there are grows with the kernel.
"""

from mptcpd_ebpf.runtime import netns

_SECTION = "MPTcpExt:"


def read() -> dict[str, int]:
    """All counters of the calling thread's namespace by their kernel names, MPTcpExt left off.

    Empty on a kernel without MPTCP.
    """
    with open(f"{netns.THREAD_NET}/netstat", encoding="ascii") as file:
        return parse(file.read())


def parse(text: str) -> dict[str, int]:
    """The section is two lines: names, then values."""
    lines = [line.split()[1:] for line in text.splitlines() if line.startswith(_SECTION)]
    if len(lines) != 2:
        return {}
    names, values = lines
    return {name: int(value) for name, value in zip(names, values, strict=True)}
