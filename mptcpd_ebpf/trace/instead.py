# SPDX-License-Identifier: BSD-3-Clause
"""What does a trace tool's work, less well, where the kernel refuses its programs."""

WITHOUT_PROGRAMS = frozenset({"fallback", "joins", "pm"})
"""Tools that go on by themselves, with path-manager events and counters alone."""

_SS = "'ss -tiM' shows"
INSTEAD = {
    "life": "'mptcpd-ebpf monitor' tells connections and subflows from the kernel's events",
    "resets": "'mptcpd-ebpf monitor' tells subflows that were reset, "
    "'nstat -az MPTcpExtMPRst* MPTcpExtMPFastclose*' counts",
    "retrans": f"{_SS} retransmissions by subflow, 'nstat -az MPTcpExtMPTCPRetrans' reinjections",
    "rtt": f"{_SS} the smoothed and the least round-trip time by subflow",
    "stalls": f"{_SS} what is unacknowledged, and the timeouts, by subflow",
    "sched": f"{_SS} the bytes sent by subflow, and which are backups",
    "doctor": f"{_SS} round trips, losses and what is unacknowledged by subflow",
}
"""By tool."""


def with_way_out(tool: str, refusal: str) -> str:
    """What is missing, and what would do instead."""
    return f"{refusal}; instead: {INSTEAD[tool]}" if tool in INSTEAD else refusal
