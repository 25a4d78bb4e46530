# SPDX-License-Identifier: BSD-3-Clause
"""Traffic between hosts of a lab, measured message by message.

`Lab.start(workload)` runs a workload in separate processes and returns a `Running` at once, so
that faults can be injected meanwhile; its `result()` waits for the end.
"""

from mptcpd_ebpf.lab.traffic.results import (
    BulkResult,
    Message,
    Percentiles,
    RequestResponseResult,
    ShortConnectionsResult,
    StreamResult,
    percentiles,
)
from mptcpd_ebpf.lab.traffic.running import Running
from mptcpd_ebpf.lab.traffic.workloads import (
    Bulk,
    RequestResponse,
    ShortConnections,
    Stream,
    Workload,
)

__all__ = [
    "Bulk",
    "BulkResult",
    "Message",
    "Percentiles",
    "RequestResponse",
    "RequestResponseResult",
    "Running",
    "ShortConnections",
    "ShortConnectionsResult",
    "Stream",
    "StreamResult",
    "Workload",
    "percentiles",
]
