# SPDX-License-Identifier: BSD-3-Clause
"""Workloads make the declared traffic and measure their messages."""

import re
import time
from collections.abc import Callable
from typing import Literal

import pytest

from mptcpd_ebpf.lab import (
    Bulk,
    Host,
    Lab,
    LabError,
    Path,
    RequestResponse,
    ShortConnections,
    Stream,
)
from mptcpd_ebpf.lab.traffic.workloads import AnyWorkload
from tests.waiting import SLOWNESS, until

Make = Callable[..., Lab]
Transport = Literal["mptcp", "tcp"]
TRANSPORTS: list[Transport] = ["mptcp", "tcp"]


def counter(host: Host, group: str, name: str) -> int:
    """One of a host's counters in /proc/net/snmp."""

    def read() -> int:
        with open("/proc/net/snmp") as file:
            names, values = (line.split() for line in file if line.startswith(f"{group}:"))
        return int(values[names.index(name)])

    return host.call(read)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_requests_take_a_round_trip(make_mptcp_lab: Make, transport: Transport) -> None:
    lab = make_mptcp_lab([Path(delay_ms=10)])
    before = time.monotonic_ns()
    running = lab.start(RequestResponse(count=20, interval_ms=5, transport=transport))
    result = running.result()
    assert (running.token is not None) == (transport == "mptcp")
    assert running.local[0] == lab.paths[0].client_ip
    assert result.latency.n == 20
    assert result.latency.min_ms is not None
    assert result.latency.min_ms >= 20
    times = [message.sent_at for message in result.messages]
    assert times == sorted(times)
    assert before < times[0] < times[-1] < time.monotonic_ns()


def test_the_first_subflow_uses_the_declared_path_and_family(make_mptcp_lab: Make) -> None:
    lab = make_mptcp_lab([Path(), Path(delay_ms=15, name="lte")], ip="both")
    running = lab.start(RequestResponse(count=3, interval_ms=5, path="lte", family="6"))
    assert running.local[0] == lab.paths[1].client_ip6
    assert running.result().latency.min_ms >= 30  # type: ignore[operator]


def test_congestion_control_reaches_both_ends(make_mptcp_lab: Make) -> None:
    lab = make_mptcp_lab([Path(delay_ms=1)])
    running = lab.start(RequestResponse(interval_ms=10, congestion="reno"))

    def algorithms(host: Host) -> set[str]:
        return set(re.findall(r"\t (\w+) ", host.run(["ss", "-Htin"]).stdout))

    until(lambda: algorithms(lab.client) == {"reno"}, "the client uses reno")
    until(lambda: algorithms(lab.server) == {"reno"}, "the server uses reno")
    running.stop()


def unacknowledged(host: Host) -> int:
    """How many bytes a host's TCP sockets have queued or sent and the peer not acknowledged."""
    lines = host.run(["ss", "-Htn", "state", "established"]).stdout.splitlines()
    return sum(int(line.split()[1]) for line in lines)


def test_requests_in_a_blackhole_are_counted_as_unanswered(make_mptcp_lab: Make) -> None:
    lab = make_mptcp_lab([Path(delay_ms=1)])
    running = lab.start(RequestResponse(interval_ms=10, drain_s=0.5))
    until(lambda: counter(lab.server, "Tcp", "InSegs") >= 20, "requests arrive")
    lab.paths[0].blackhole()
    cut = time.monotonic_ns()
    size = RequestResponse().size
    until(lambda: unacknowledged(lab.client) >= 3 * size, "requests are sent and not answered")
    result = running.stop()
    assert result.unanswered > 0
    assert result.latency.n > 0
    well_before = cut - round(50_000_000 * SLOWNESS)
    assert all(m.latency_ns is not None for m in result.messages if m.sent_at < well_before)
    assert result.between(cut, 1 << 62).n == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("direction", ["up", "down"])
def test_bulk_delivers_every_byte(
    make_mptcp_lab: Make, transport: Transport, direction: Literal["up", "down"]
) -> None:
    lab = make_mptcp_lab([Path(delay_ms=2, rate_mbit=50)])
    workload = Bulk(bytes=1_000_001, direction=direction, transport=transport, chunk=100_000)
    result = lab.start(workload).result()
    assert result.bytes == 1_000_001
    assert 0 < result.mbit <= 50
    totals = [total for _, total in result.arrivals]
    assert totals == sorted(totals)
    first, last = result.arrivals[0][0], result.arrivals[-1][0]
    assert result.mbit_between(result.started_at, last) == pytest.approx(result.mbit)
    assert first > result.started_at


@pytest.mark.parametrize("direction", ["up", "down"])
def test_bulk_stops_on_request(make_mptcp_lab: Make, direction: Literal["up", "down"]) -> None:
    lab = make_mptcp_lab([Path(delay_ms=2, rate_mbit=20)])
    running = lab.start(Bulk(direction=direction))
    receiver = lab.server if direction == "up" else lab.client
    until(lambda: counter(receiver, "Tcp", "InSegs") >= 100, "data arrives")
    result = running.stop()
    assert result.bytes > 0
    assert result.error is None


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_stream_keeps_its_rate_and_times_each_message(
    make_mptcp_lab: Make, direction: Literal["up", "down"]
) -> None:
    lab = make_mptcp_lab([Path(delay_ms=20)])
    result = lab.start(Stream(rate_mbit=1, size=1250, seconds=1, direction=direction)).result()
    assert len(result.messages) == 100
    assert result.latency.n == 100
    assert result.latency.min_ms is not None
    assert result.latency.min_ms >= 20


def test_short_connections_are_each_timed(make_mptcp_lab: Make) -> None:
    lab = make_mptcp_lab([Path(delay_ms=5)])
    result = lab.start(ShortConnections(count=40, parallel=8)).result()
    assert result.latency.n == 40
    # A handshake and a request: two round trips.
    assert result.latency.min_ms is not None
    assert result.latency.min_ms >= 20


def connecting(host: Host) -> int:
    """How many TCP connections (of MPTCP: subflows) of a host wait for an answer to their SYN."""
    return host.run(["ss", "-Htn", "state", "syn-sent"]).stdout.count("\n")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_short_connections_overlap_while_they_connect(
    make_mptcp_lab: Make, transport: Transport
) -> None:
    lab = make_mptcp_lab([Path(delay_ms=1)])
    lab.paths[0].blackhole()
    running = lab.start(ShortConnections(count=20, parallel=8, transport=transport))
    until(lambda: connecting(lab.client) == 8, "eight connect at a time")
    lab.paths[0].heal()
    result = running.result()
    assert len(result.messages) == 20
    assert result.unanswered == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_short_connections_in_a_blackhole_are_counted_and_more_follow(
    make_mptcp_lab: Make, transport: Transport
) -> None:
    lab = make_mptcp_lab([Path(delay_ms=1)])
    lab.paths[0].blackhole()
    workload = ShortConnections(
        count=100_000, parallel=4, drain_s=0.5 * SLOWNESS, transport=transport
    )
    running = lab.start(workload)
    until(lambda: counter(lab.client, "Tcp", "ActiveOpens") >= 8, "the next four begin")
    lab.paths[0].heal()
    until(lambda: counter(lab.server, "Tcp", "PassiveOpens") >= 20, "connections are established")
    result = running.stop()
    assert result.error is None
    assert result.unanswered >= 4
    assert result.latency.n >= 10


def test_short_connections_that_are_refused_are_unanswered(make_mptcp_lab: Make) -> None:
    lab = make_mptcp_lab([Path(delay_ms=1)])
    reject = ["INPUT", "-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset"]
    lab.server.run(["iptables", "-A", *reject])
    result = lab.start(ShortConnections(count=7, parallel=2)).result()
    assert (len(result.messages), result.unanswered, result.error) == (7, 7, None)


@pytest.mark.parametrize(
    ("workload", "words"),
    [
        (Stream(rate_mbit=0), r"Stream: rate_mbit is 0: expected `float` >= 0\.001"),
        (Stream(rate_mbit=float("nan")), "rate_mbit is nan"),
        (Bulk(chunk=0), "Bulk: chunk is 0: expected `int` >= 1"),
        (Bulk(direction="both"), "Bulk: direction is 'both'"),  # type: ignore[arg-type]
        (RequestResponse(size=0), "RequestResponse: size is 0"),
        (RequestResponse(count=-1), "RequestResponse: count is -1"),
        (RequestResponse(interval_ms=0), "RequestResponse: interval_ms is 0"),
        (RequestResponse(transport="sctp"), "transport is 'sctp'"),  # type: ignore[arg-type]
        (RequestResponse(drain_s="1"), "drain_s is '1'"),  # type: ignore[arg-type]
        (ShortConnections(parallel=0), "ShortConnections: parallel is 0"),
    ],
)
def test_an_invalid_workload_is_refused(
    make_mptcp_lab: Make, workload: AnyWorkload, words: str
) -> None:
    lab = make_mptcp_lab([Path()])
    with pytest.raises(LabError, match=f"^traffic: .*{words}"):
        lab.start(workload)


def test_errors_have_a_message(make_mptcp_lab: Make) -> None:
    lab = make_mptcp_lab([Path()])
    with pytest.raises(LabError, match="the lab has no IPv6"):
        lab.start(RequestResponse(family="6"))
    with pytest.raises(LabError, match=r"traffic: .*No such file"):
        lab.start(RequestResponse(congestion="no-such-algorithm"))
    with pytest.raises(LabError, match="there is no path 'dsl'"):
        lab.start(RequestResponse(path="dsl"))
    running = lab.start(Bulk())
    running.kill()
    with pytest.raises(LabError, match="it was killed"):
        running.result()


def test_a_connection_that_ends_early_is_distinguished_from_a_complete_one(
    make_mptcp_lab: Make,
) -> None:
    lab = make_mptcp_lab([Path(delay_ms=1)])
    running = lab.start(RequestResponse(interval_ms=10, transport="tcp"))
    assert lab.paths[0].inject_resets() == 1
    with pytest.raises(LabError, match="reset by peer"):
        running.result()
    assert running.result(allow_error=True).latency.n > 0
