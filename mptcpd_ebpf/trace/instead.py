# SPDX-License-Identifier: BSD-3-Clause
"""Alternatives to the trace tools where the kernel refuses the BPF programs."""

WITHOUT_PROGRAMS = frozenset({"fallback", "joins", "pm"})
"""Tools that then use path-manager events and counters instead."""

_SS = "'ss -tiM' shows"
ALTERNATIVES = {
    "life": "'mptcpd-ebpf monitor' prints connections and subflows from the kernel's events",
    "resets": "'mptcpd-ebpf monitor' prints subflows that were reset, "
    "'nstat -az MPTcpExtMPRst* MPTcpExtMPFastclose*' counts resets",
    "retrans": f"{_SS} retransmissions by subflow, 'nstat -az MPTcpExtMPTCPRetrans' reinjections",
    "rtt": f"{_SS} the smoothed and the minimum round-trip time by subflow",
    "stalls": f"{_SS} unacknowledged data and timeouts by subflow",
    "sched": f"{_SS} the bytes sent by subflow, and which are backups",
    "doctor": f"{_SS} round-trip times, losses and unacknowledged data by subflow",
}
"""By tool: the command to use instead, and what it shows."""


def with_alternative(tool: str, refusal: str) -> str:
    """A refusal, with the command to use instead if there is one."""
    return f"{refusal}; instead: {ALTERNATIVES[tool]}" if tool in ALTERNATIVES else refusal
