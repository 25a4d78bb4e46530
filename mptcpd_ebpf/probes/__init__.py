# SPDX-License-Identifier: BSD-3-Clause
"""Loads the eBPF probes (bpf/) and reads what they measure.

No compiler, no headers and no Python BPF library at run time: ctypes on libbpf, and
record layouts from the BPF object itself.
"""

from mptcpd_ebpf.probes.bpf_object import BpfUnavailable
from mptcpd_ebpf.probes.core_probes import HookReport, ProbeReport, Probes

__all__ = ["BpfUnavailable", "HookReport", "ProbeReport", "Probes"]
