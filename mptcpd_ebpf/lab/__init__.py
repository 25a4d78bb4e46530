# SPDX-License-Identifier: BSD-3-Clause
"""Hosts, paths, faults and traffic in network namespaces, for tests of MPTCP programs.

    with Lab(paths=[Path(delay_ms=10, rate_mbit=20), Path(delay_ms=40)]) as lab:
        lab.client.run(["ping", "-c1", lab.paths[0].server_ip])
        lab.paths[0].set(loss_percent=30)

docs/lab.md is the guide.  Names are imported when first used: every pytest run loads the
pytest plugin, and a run without labs must not pay for the imports.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mptcpd_ebpf.lab.errors import LabError, UnavailableError
    from mptcpd_ebpf.lab.host import Host
    from mptcpd_ebpf.lab.impairment import Burst, Direction, Impairment
    from mptcpd_ebpf.lab.interfaces import Faults
    from mptcpd_ebpf.lab.lab import Lab
    from mptcpd_ebpf.lab.live import LiveLink, LivePath
    from mptcpd_ebpf.lab.running_schedule import RunningSchedule
    from mptcpd_ebpf.lab.schedule import Step
    from mptcpd_ebpf.lab.topology import Bottleneck, Path, Topology
    from mptcpd_ebpf.lab.traffic import (
        Bulk,
        RequestResponse,
        Running,
        ShortConnections,
        Stream,
    )

_MODULES = {
    "Bottleneck": "topology",
    "Bulk": "traffic",
    "Burst": "impairment",
    "Direction": "impairment",
    "Faults": "interfaces",
    "Host": "host",
    "Impairment": "impairment",
    "Lab": "lab",
    "LabError": "errors",
    "LiveLink": "live",
    "LivePath": "live",
    "Path": "topology",
    "RequestResponse": "traffic",
    "Running": "traffic",
    "RunningSchedule": "running_schedule",
    "ShortConnections": "traffic",
    "Step": "schedule",
    "Stream": "traffic",
    "Topology": "topology",
    "UnavailableError": "errors",
}

__all__ = [
    "Bottleneck",
    "Bulk",
    "Burst",
    "Direction",
    "Faults",
    "Host",
    "Impairment",
    "Lab",
    "LabError",
    "LiveLink",
    "LivePath",
    "Path",
    "RequestResponse",
    "Running",
    "RunningSchedule",
    "ShortConnections",
    "Step",
    "Stream",
    "Topology",
    "UnavailableError",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
