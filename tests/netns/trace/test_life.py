# SPDX-License-Identifier: BSD-3-Clause
"""`trace life` reports what was done with real connections."""

import os
from collections.abc import Iterator
from pathlib import Path as FilePath

import pytest

from mptcpd_ebpf.lab import Lab, Path
from mptcpd_ebpf.lab.kernel_path_manager import allow_joins
from tests.netns.mptcp_sockets import abort, connection, exchange
from tests.netns.tracing import tracing
from tests.waiting import SLOWNESS, until


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(paths=[Path(delay_ms=2), Path(delay_ms=4)]) as lab:
        allow_joins(lab)
        yield lab


def test_a_connection_its_join_and_its_end_are_reported(lab: Lab) -> None:
    with tracing(lab.client, "life") as traced:
        with connection(lab) as ends:
            join = traced.event("established", initial=False)
            exchange(ends, b"x" * 10_000)
            port = ends.client.getsockname()[1]
        closed = traced.event("closed")
        traced.end()
    initial = traced.event("established", initial=True)
    assert initial["local"] == f"{lab.paths[0].client_ip}:{port}"
    assert initial["token"] == join["token"] == closed["token"]
    assert join["local"].startswith(lab.paths[1].client_ip + ":")
    assert initial["pid"] == os.getpid()
    assert initial["handshake_ns"] >= 4_000_000
    assert closed["subflows"] == 2
    assert closed["bytes_sent"] >= 10_005
    assert closed["bytes_received"] >= 10_005
    # Both ends close at the same time, and either FIN of a subflow may be first.
    assert {line["why"] for line in traced.all("ended")} <= {
        "closed by the peer",
        "closed by this host",
    }


def test_the_server_reports_a_close_by_the_peer(lab: Lab) -> None:
    with tracing(lab.client, "life") as traced, tracing(lab.server, "life") as server_traced:
        with connection(lab) as ends:
            traced.event("established", initial=False)
            server_traced.event("established", initial=False)
            ends.server.close()
            ends.client.recv(1)
        traced.event("closed")
        server_traced.event("closed")
    assert {line["why"] for line in traced.all("ended")} <= {
        "closed by the peer",
        "closed by this host",
    }
    # The records of an accepted socket begin when it is established, without its SYN.
    assert server_traced.event("established", initial=True)["handshake_ns"] is None


def test_both_ends_report_a_reset(lab: Lab) -> None:
    with tracing(lab.client, "life") as traced, tracing(lab.server, "life") as server_traced:
        with connection(lab) as ends:
            abort(ends.client, ends.server)
        ended = traced.event("ended", initial=True)
        server_ended = server_traced.event("ended", initial=True)
    assert ended["why"].startswith("reset by this host")
    assert server_ended["why"].startswith("reset by the peer")


def test_an_older_connection_stays_open_when_a_subflow_ends(lab: Lab) -> None:
    near, far = lab.paths
    with connection(lab) as ends:
        far.wait_for_subflow(10 * SLOWNESS)
        with (
            tracing(lab.client, "life") as traced,
            tracing(lab.client, "life", "--addr", far.client_ip) as of_far,
        ):
            lab.client.run(["ip", "mptcp", "endpoint", "flush"])
            ended = traced.event("ended")
            of_far.event("ended")
            exchange(ends, b"x")
            assert not traced.all("closed")
            ends.client.close()
            ends.server.close()
            closed = traced.event("closed")
            of_far_closed = of_far.event("closed")
            traced.end()
    assert ended["local"].startswith(far.client_ip + ":")
    assert traced.all("ended")[1]["local"].startswith(near.client_ip + ":")
    assert (closed["subflows"], closed["lasted_ns"]) == (2, None)
    assert len(of_far.all("ended")) == of_far_closed["subflows"] == 1
    assert of_far_closed["bytes_sent"] < closed["bytes_sent"]


def test_only_subflows_that_pass_the_filters_are_counted(lab: Lab) -> None:
    with connection(lab):
        lab.paths[1].wait_for_subflow(10 * SLOWNESS)
        with (
            tracing(lab.client, "life") as traced,
            tracing(lab.client, "life", "--addr", lab.paths[1].client_ip) as of_far,
            tracing(lab.client, "life", "--token", "1") as of_none,
        ):
            summaries = [each.end() for each in (traced, of_far, of_none)]
    assert [each["alive"] for each in summaries] == [2, 1, 0]


def test_a_join_closed_before_its_answer_is_reported(lab: Lab) -> None:
    lab.paths[1].drop_mptcp("mp-join")
    waiting = ["ss", "-tnH", "state", "syn-sent"]
    with tracing(lab.client, "life") as traced:
        with connection(lab):
            until(lambda: lab.client.run(waiting).stdout != "", "a join in SYN_SENT")
        ended = traced.event("ended", initial=False)
        closed = traced.event("closed")
    assert ended["why"] == "closed by this host before the SYN was answered"
    assert not ended["established"]
    assert closed["subflows"] == 1


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [
        (("--pid", str(os.getpid())), True),
        (("--pid", "1"), False),
        (("--comm", "no-such-name"), False),
        (("--addr", "10.1.1.2"), True),
        (("--addr", "10.9.0.0/16"), False),
        (("--token", "1"), False),
    ],
)
def test_filters_pass_only_matching_connections(
    lab: Lab, arguments: tuple[str, ...], seen: bool
) -> None:
    with tracing(lab.client, "life", *arguments) as traced:
        with connection(lab):
            pass
        if seen:
            traced.event("closed")
        summary = traced.end()
    assert bool(summary["ends"]) == seen


def test_a_long_process_name_is_truncated_as_in_the_kernel(lab: Lab) -> None:
    comm = FilePath("/proc/self/comm")
    before = comm.read_text()
    name = "a-rather-long-name"
    comm.write_text(name)
    try:
        with tracing(lab.client, "life", "--comm", name) as traced, connection(lab):
            assert traced.event("established")["comm"] == name[:15]
    finally:
        comm.write_text(before)


def test_a_namespace_is_chosen_by_name(lab: Lab) -> None:
    with tracing(lab.server, "life", "--netns", lab.client.name) as traced:
        assert traced.event("started")["netns"] == lab.client.netns
        with connection(lab):
            pass
        assert traced.event("established", initial=True)["local"].startswith("10.1.1.2:")
