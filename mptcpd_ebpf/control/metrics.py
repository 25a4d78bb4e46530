# SPDX-License-Identifier: BSD-3-Clause
"""Status and connections as Prometheus metrics.

Nothing is counted here: every scrape reads the daemon's own numbers.  Subflows are summed by
interface, because a label for the connection would create a time series for every connection.
Names follow https://prometheus.io/docs/practices/naming/.
"""

from collections import Counter
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from mptcpd_ebpf.control.schema import Connections, Status, SubflowView

CONTENT_TYPE = CONTENT_TYPE_LATEST

Family = CounterMetricFamily | GaugeMetricFamily


def exposition(status: Status, connections: Connections) -> bytes:
    """The text of the answer to a scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(status, connections))
    return generate_latest(registry)


class _Snapshot(Collector):
    """Status and connections as metric families, for a `CollectorRegistry`."""

    def __init__(self, status: Status, connections: Connections) -> None:
        self._status = status
        self._connections = connections

    def collect(self) -> Iterator[Family]:
        yield from _daemon(self._status)
        yield from _paths(self._connections)


def _daemon(status: Status) -> Iterator[Family]:
    yield GaugeMetricFamily(
        "mptcpd_ebpf_start_time_seconds",
        "When the daemon started, seconds since 1970.",
        status["started_at"],
    )
    yield GaugeMetricFamily(
        "mptcpd_ebpf_paused", "1 while plugins are paused.", float(status["paused"])
    )
    yield CounterMetricFamily(
        "mptcpd_ebpf_decisions",
        "Commands that plugins or operators requested.",
        status["decisions"],
    )
    yield CounterMetricFamily(
        "mptcpd_ebpf_decisions_refused",
        "Commands that the daemon did not send to the kernel.",
        status["decisions_refused"],
    )
    yield CounterMetricFamily(
        "mptcpd_ebpf_log_messages_dropped",
        "Log messages dropped because nothing read the log.",
        status["log_messages_dropped"],
    )
    lost = CounterMetricFamily(
        "mptcpd_ebpf_event_overflows", "Overflows of an event source.", labels=["source"]
    )
    for source, count in status["events_lost"].items():
        lost.add_metric([source], count)
    yield lost
    new = status["new_connections"]
    if new["count"] is not None:
        steered = GaugeMetricFamily(
            "mptcpd_ebpf_steering",
            "1 while new connections start here, and not on the default route.",
            labels=["family", "interface"],
        )
        for each in new["steered"]:
            steered.add_metric([each["family"], each["interface"]], 1.0)
        yield steered
        yield CounterMetricFamily(
            "mptcpd_ebpf_connections_steered", "New connections that were steered.", new["count"]
        )
    states = GaugeMetricFamily(
        "mptcpd_ebpf_paths_not_active",
        "Paths that a plugin keeps away or on standby.",
        labels=["interface", "state"],
    )
    counts = Counter((path["interface"] or "", path["state"]) for path in status["paths"])
    for (interface, state), number in counts.items():
        states.add_metric([interface, state], number)
    yield states
    journal = status["journal"]
    if journal is not None:
        yield GaugeMetricFamily(
            "mptcpd_ebpf_journal_size_bytes", "Size of the journal.", journal["bytes"]
        )
        yield CounterMetricFamily(
            "mptcpd_ebpf_journal_records_dropped",
            "Events that could not be written to the journal.",
            journal["records_dropped"],
        )
    if status["probes"]["lost"] is not None:
        records = CounterMetricFamily(
            "mptcpd_ebpf_probe_records_lost", "Records that the probes lost.", labels=["cause"]
        )
        for cause, count in status["probes"]["lost"].items():
            records.add_metric([cause], count)
        yield records


def _paths(connections: Connections) -> Iterator[Family]:
    yield GaugeMetricFamily(
        "mptcpd_ebpf_connections", "Live MPTCP connections.", len(connections["connections"])
    )
    by_interface: dict[str, list[SubflowView]] = {}
    for connection in connections["connections"]:
        for subflow in connection["subflows"]:
            by_interface.setdefault(subflow["interface"] or "", []).append(subflow)
    count = GaugeMetricFamily(
        "mptcpd_ebpf_subflows", "Live subflows.", labels=["interface", "backup"]
    )
    srtt = GaugeMetricFamily(
        "mptcpd_ebpf_subflow_srtt_seconds",
        "Mean smoothed round-trip time of the live subflows.",
        labels=["interface"],
    )
    for interface, subflows in by_interface.items():
        for backup in (False, True):
            number = sum(subflow["backup"] is backup for subflow in subflows)
            count.add_metric([interface, str(backup).lower()], number)
        known = [subflow["srtt_us"] for subflow in subflows if subflow["srtt_us"] is not None]
        if known:
            srtt.add_metric([interface], sum(known) / len(known) / 1e6)
    yield count
    yield srtt
