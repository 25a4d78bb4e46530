# SPDX-License-Identifier: BSD-3-Clause
"""The lines of `trace sched`, `stalls` and `rtt` match the properties of the paths."""

from collections.abc import Iterator

import pytest

from mptcpd_ebpf.lab import Bulk, Lab, Path, RequestResponse, ShortConnections
from mptcpd_ebpf.lab.kernel_path_manager import allow_joins
from tests.netns.mptcp_sockets import connection
from tests.netns.tracing import Line, Tracing, tracing
from tests.waiting import SLOWNESS

NARROW = 131_072


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(paths=[Path(delay_ms=5, rate_mbit=40), Path(delay_ms=20, rate_mbit=40)]) as lab:
        allow_joins(lab)
        yield lab


def of_path(rows: list[Line], ip: str) -> Line:
    return next(row for row in rows if row["local"].startswith(ip + ":"))


def test_the_bytes_of_each_subflow_match_tcp(lab: Lab) -> None:
    with tracing(lab.client, "sched") as traced:
        bulk = lab.start(Bulk())
        traced.until(
            lambda line: line["event"] == "chosen" and len(line["subflows"]) == 2,
            "both subflows in one line",
        )
        token = f"{bulk.token:08x}"
        result = bulk.stop()
        summary = traced.end()
    assert summary["token"] == token
    sent = sum(row["bytes_sent"] for row in summary["subflows"])
    # inet_diag is read once a second, so the end of the transfer may be missing.
    assert 0 < sent <= result.arrivals[-1][1] * 1.5
    assert sum(row["chosen"] for row in summary["subflows"]) + summary["full"] + summary[
        "unusable"
    ] == pytest.approx(summary["rounds"], abs=len(summary["subflows"]))


def test_a_single_subflow_is_counted_from_its_first_message() -> None:
    alone = Lab(paths=[Path(delay_ms=1)])
    with alone as lab, tracing(lab.client, "sched") as traced, connection(lab):
        summary = traced.end()
    [row] = summary["subflows"]
    assert row["chosen"] == summary["rounds"] > 0
    assert (row["slower"], row["not_ready"], summary["unusable"]) == (0, 0, 0)
    assert row["bytes_sent"] == 5


def test_connections_that_end_between_two_reads_are_reported() -> None:
    with Lab(paths=[Path(delay_ms=1)]) as lab, tracing(lab.client, "sched") as traced:
        lab.start(ShortConnections(count=20, parallel=4)).result()
        traced.end()
    lines = [line for line in traced.all("summary") if "rounds" in line]
    assert len({line["token"] for line in lines}) == 20
    assert {row["bytes_sent"] for line in lines for row in line["subflows"]} == {100}
    for line in lines:
        [row] = line["subflows"]
        assert row["local"].startswith(f"{lab.paths[0].client_ip}:")
        assert row["initial"]


def test_the_reason_against_a_backup_is_reported(lab: Lab) -> None:
    spare = lab.paths[1]
    lab.client.run(["ip", "mptcp", "endpoint", "flush"])
    lab.client.run(
        [
            "ip",
            "mptcp",
            "endpoint",
            "add",
            spare.client_ip,
            "dev",
            spare.client_if,
            "subflow",
            "backup",
        ]
    )
    with tracing(lab.client, "sched") as traced:
        bulk = lab.start(Bulk())
        spare.wait_for_subflow(10 * SLOWNESS)
        line = traced.until(
            lambda line: (
                line["event"] == "chosen"
                and len(line["subflows"]) == 2
                and of_path(line["subflows"], spare.client_ip)["backup"] > 0
            ),
            "a refusal as backup",
        )
        bulk.stop()
    assert of_path(line["subflows"], spare.client_ip)["chosen"] == 0
    assert of_path(line["subflows"], lab.paths[0].client_ip)["chosen"] > 0


def test_round_trip_times_exceed_the_delay_of_each_path(lab: Lab) -> None:
    with tracing(lab.client, "rtt") as traced:
        requests = lab.start(RequestResponse(interval_ms=5))
        lab.paths[1].wait_for_subflow(10 * SLOWNESS)
        requests.stop()
        traced.end()
    rows = traced.all("rtt")
    near = of_path(rows, lab.paths[0].client_ip)
    assert near["samples"] == sum(near["histogram"]) > 0
    assert near["min_rtt_us"] >= 10_000
    assert near["below_us"]["p50"] >= 8_192


def test_a_path_without_samples_has_no_percentiles(lab: Lab) -> None:
    with connection(lab), tracing(lab.client, "rtt") as traced:
        traced.end()
    for row in traced.all("rtt"):
        assert (row["samples"] == 0) == (row["below_us"] is None)


def test_a_stall_is_charged_to_the_slow_path() -> None:
    slow = Path(delay_ms=90, rate_mbit=3, loss_percent=6)
    with Lab(paths=[Path(delay_ms=5, rate_mbit=100), slow]) as lab:
        allow_joins(lab)
        with tracing(lab.client, "stalls") as traced:
            bulk = lab.start(Bulk(send_buffer=NARROW, receive_buffer=NARROW))
            stall = traced.event("stall")
            bulk.stop()
            summary = traced.end()
        slow_ip = lab.paths[1].client_ip
    assert stall["local"].startswith(slow_ip + ":")
    assert stall["stalled_us"] >= 50_000
    assert summary["subflows"][0]["local"].startswith(slow_ip + ":")


def test_a_single_path_is_not_charged() -> None:
    alone = Lab(paths=[Path(delay_ms=5, rate_mbit=40)])
    with alone as lab, tracing(lab.client, "stalls") as traced:
        lab.start(Bulk(bytes=2_000_000)).result()
        summary = traced.end()
    assert not traced.all("stall")
    assert all(row["stalled_us"] == 0 for row in summary["subflows"])


def test_round_trip_times_of_many_connections_are_added_up() -> None:
    with Lab(paths=[Path()]) as lab, tracing(lab.client, "rtt") as traced:
        lab.start(ShortConnections(count=150)).result()
        traced.end()
    lines = traced.all("rtt")
    further = traced.all("further")
    path = lab.paths[0]
    assert len(lines) >= 64
    assert [(line["local"], line["remote"]) for line in further] == [
        (path.client_ip, path.server_ip)
    ]
    assert further[0]["samples"] == sum(further[0]["histogram"]) > 0


def test_connections_that_ended_are_in_the_summary(lab: Lab) -> None:
    tokens = []
    with tracing(lab.client, "sched") as traced:
        for _ in range(2):
            bulk = lab.start(Bulk())
            tokens.append(f"{bulk.token:08x}")
            # Within two reads the counts of a connection that ended have left the kernel.
            for count in (1, 2):
                traced.until(
                    lambda _: len(of_token(traced, tokens[-1])) >= count,  # noqa: B023
                    f"line {count} of {tokens[-1]}",
                )
            bulk.stop()
        traced.end()
    rounds = {line["token"]: line["rounds"] for line in traced.all("summary") if "rounds" in line}
    assert list(rounds) == tokens
    assert all(rounds.values())


def of_token(traced: Tracing, token: str) -> list[Line]:
    return [line for line in traced.all("chosen") if line["token"] == token]
