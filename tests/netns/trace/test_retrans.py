# SPDX-License-Identifier: BSD-3-Clause
"""`trace retrans` reports each retransmission and reinjection once, with the right cause."""

from collections.abc import Iterator

import pytest

from mptcpd_ebpf.lab import Bulk, Lab, Path
from mptcpd_ebpf.lab.kernel_path_manager import allow_joins
from mptcpd_ebpf.lab.wire import DSS, Wire
from tests.netns.tracing import tracing
from tests.waiting import SLOWNESS, until


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(paths=[Path(delay_ms=5, rate_mbit=30), Path(delay_ms=10, rate_mbit=30)]) as lab:
        allow_joins(lab)
        yield lab


def unfinished_sockets(lab: Lab) -> str:
    """The client's TCP sockets that await an acknowledgement or may still send, as text."""
    states = ("established", "close-wait", "fin-wait-1", "closing", "last-ack")
    return lab.client.run(
        ["ss", "-Htn", *(word for each in states for word in ("state", each))]
    ).stdout


def test_retransmissions_match_the_packets_of_the_lossy_path(lab: Lab) -> None:
    lossy = lab.paths[0]
    with Wire(lab.client.name, snap=160) as wire, tracing(lab.client, "retrans") as traced:
        lossy.set(loss_percent=8, direction="up")
        lab.start(Bulk(bytes=1_500_000)).result()
        until(lambda: not unfinished_sockets(lab), "no data is left to retransmit")
        traced.end()
        segments = [
            line
            for line in traced.all("retransmitted")
            if line["local"].startswith(lossy.client_ip)
        ]
        assert segments
        # The tool reports a super-packet once; the capture has its segments.
        reported = sum(-(-line["length"] // 1424) for line in segments)

        def captured() -> int:
            return sum(wire.retransmissions(interface=lossy.client_if).values())

        until(lambda: captured() >= reported, "the capture has caught up")
        assert captured() == reported
    assert {line["cause"] for line in segments} & {"fast retransmission", "tail loss probe"}


def test_reinjections_are_attributed_to_the_blackholed_path(lab: Lab) -> None:
    dead, healthy = lab.paths
    with Wire(lab.client.name, snap=160) as wire, tracing(lab.client, "retrans") as traced:
        bulk = lab.start(Bulk())
        healthy.wait_for_subflow(10 * SLOWNESS)
        dead.blackhole()
        traced.until(
            lambda line: line["event"] == "reinjected" and line["blamed_timeouts"] > 0,
            "reinjection after timeouts",
        )
        # Later reinjections may use this path, too, because it works again.
        reinjected = {line["data_seq"] for line in traced.all("reinjected")}
        dead.heal()
        bulk.stop()
        summary = traced.end()
        sent = wire.matching(DSS, interface=healthy.client_if, direction="out")
    # On an emulated machine, a worker that is delayed for a second is no longer recognised.
    assert 10 * summary["reinjections"] >= 9 * summary["counters"]["MPTCPRetrans"] > 0
    mapped = {
        option.dsn
        for segment in sent
        for option in segment.mptcp
        if isinstance(option, DSS) and option.has_map
    }
    assert reinjected <= mapped
    blamed = [line for line in traced.all("reinjected") if line["blamed_timeouts"]]
    for line in blamed:
        assert line["blamed"].startswith(dead.client_ip + ":")
        assert line["local"].startswith(healthy.client_ip + ":")
