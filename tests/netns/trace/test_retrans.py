# SPDX-License-Identifier: BSD-3-Clause
"""`trace retrans` tells each retransmission and reinjection, once, with the right path to blame."""

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


def may_repeat(lab: Lab) -> str:
    """The client's TCP sockets that wait for an acknowledgement, or may still send."""
    states = ("established", "close-wait", "fin-wait-1", "closing", "last-ack")
    return lab.client.run(
        ["ss", "-Htn", *(word for each in states for word in ("state", each))]
    ).stdout


def test_loss_on_one_path_is_repeated_there_as_on_the_wire(lab: Lab) -> None:
    lossy = lab.paths[0]
    with Wire(lab.client.name, snap=160) as wire, tracing(lab.client, "retrans") as told:
        lossy.set(loss_percent=8, direction="up")
        lab.start(Bulk(bytes=1_500_000)).result()
        until(lambda: not may_repeat(lab), "nothing is left to be repeated")
        told.end()
        segments = [
            line for line in told.all("retransmitted") if line["local"].startswith(lossy.client_ip)
        ]
        assert segments
        # A super-packet counts once here, by its segments on the wire.
        told_of = sum(-(-line["length"] // 1424) for line in segments)

        def captured() -> int:
            return sum(wire.retransmissions(interface=lossy.client_if).values())

        until(lambda: captured() >= told_of, "the capture has caught up")
        assert captured() == told_of
    assert {line["cause"] for line in segments} & {"fast retransmission", "probe of the tail"}


def test_a_dead_path_is_blamed_for_reinjections(lab: Lab) -> None:
    dead, alive = lab.paths
    with Wire(lab.client.name, snap=160) as wire, tracing(lab.client, "retrans") as told:
        bulk = lab.start(Bulk())
        alive.wait_for_subflow(10 * SLOWNESS)
        dead.blackhole()
        told.until(
            lambda line: line["event"] == "reinjected" and line["blamed_timeouts"] > 0,
            "reinjection after timeouts",
        )
        # Later ones go over the dead path, too, which has healed then.
        reinjected = {line["data_seq"] for line in told.all("reinjected")}
        dead.heal()
        bulk.stop()
        summary = told.end()
        sent = wire.matching(DSS, interface=alive.client_if, direction="out")
    # A worker that is held up for a second is no longer known for one (an emulated machine).
    assert 10 * summary["reinjections"] >= 9 * summary["counters"]["MPTCPRetrans"] > 0
    mapped = {
        option.dsn
        for segment in sent
        for option in segment.mptcp
        if isinstance(option, DSS) and option.has_map
    }
    assert reinjected <= mapped
    blamed = [line for line in told.all("reinjected") if line["blamed_timeouts"]]
    for line in blamed:
        assert line["blamed"].startswith(dead.client_ip + ":")
        assert line["local"].startswith(alive.client_ip + ":")
