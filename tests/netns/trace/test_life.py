# SPDX-License-Identifier: BSD-3-Clause
"""What `trace life` tells of real connections is what was done with them."""

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


def test_a_connection_its_join_and_its_end(lab: Lab) -> None:
    with tracing(lab.client, "life") as told:
        with connection(lab) as ends:
            join = told.event("established", initial=False)
            exchange(ends, b"x" * 10_000)
            port = ends.client.getsockname()[1]
        closed = told.event("closed")
        told.end()
    initial = told.event("established", initial=True)
    assert initial["local"] == f"{lab.paths[0].client_ip}:{port}"
    assert initial["token"] == join["token"] == closed["token"]
    assert join["local"].startswith(lab.paths[1].client_ip + ":")
    assert initial["pid"] == os.getpid()
    assert initial["handshake_ns"] >= 4_000_000
    assert closed["subflows"] == 2
    assert closed["bytes_sent"] >= 10_005
    assert closed["bytes_received"] >= 10_005
    # Both ends close at once: whose FIN is first, each subflow decides for itself.
    assert {line["why"] for line in told.all("ended")} <= {
        "closed by the peer",
        "closed by this host",
    }


def test_the_peer_closes_and_the_server_sees_its_side(lab: Lab) -> None:
    with tracing(lab.client, "life") as told, tracing(lab.server, "life") as server_told:
        with connection(lab) as ends:
            told.event("established", initial=False)
            server_told.event("established", initial=False)
            ends.server.close()
            ends.client.recv(1)
        told.event("closed")
        server_told.event("closed")
    assert {line["why"] for line in told.all("ended")} <= {
        "closed by the peer",
        "closed by this host",
    }
    # An accepted socket appears when it is established: its SYN is not known, and not made up.
    assert server_told.event("established", initial=True)["handshake_ns"] is None


def test_a_reset_is_told_on_both_sides(lab: Lab) -> None:
    with tracing(lab.client, "life") as told, tracing(lab.server, "life") as server_told:
        with connection(lab) as ends:
            abort(ends.client, ends.server)
        ended = told.event("ended", initial=True)
        server_ended = server_told.event("ended", initial=True)
    assert ended["why"].startswith("reset by this host")
    assert server_ended["why"].startswith("reset by the peer")


def test_a_connection_older_than_the_trace_lives_on_when_a_subflow_goes(lab: Lab) -> None:
    near, far = lab.paths
    with connection(lab) as ends:
        far.wait_for_subflow(10 * SLOWNESS)
        with (
            tracing(lab.client, "life") as told,
            tracing(lab.client, "life", "--addr", far.client_ip) as of_far,
        ):
            lab.client.run(["ip", "mptcp", "endpoint", "flush"])
            ended = told.event("ended")
            of_far.event("ended")
            exchange(ends, b"x")
            assert not told.all("closed")
            ends.client.close()
            ends.server.close()
            closed = told.event("closed")
            of_far_closed = of_far.event("closed")
            told.end()
    assert ended["local"].startswith(far.client_ip + ":")
    assert told.all("ended")[1]["local"].startswith(near.client_ip + ":")
    assert (closed["subflows"], closed["lasted_ns"]) == (2, None)
    assert len(of_far.all("ended")) == of_far_closed["subflows"] == 1
    assert of_far_closed["bytes_sent"] < closed["bytes_sent"]


def test_what_lives_is_counted_through_the_filters(lab: Lab) -> None:
    with connection(lab):
        lab.paths[1].wait_for_subflow(10 * SLOWNESS)
        with (
            tracing(lab.client, "life") as told,
            tracing(lab.client, "life", "--addr", lab.paths[1].client_ip) as of_far,
            tracing(lab.client, "life", "--token", "1") as of_none,
        ):
            summaries = [each.end() for each in (told, of_far, of_none)]
    assert [each["alive"] for each in summaries] == [2, 1, 0]


def test_a_join_that_this_host_takes_back(lab: Lab) -> None:
    lab.paths[1].drop_mptcp("mp-join")
    waiting = ["ss", "-tnH", "state", "syn-sent"]
    with tracing(lab.client, "life") as told:
        with connection(lab):
            until(lambda: lab.client.run(waiting).stdout != "", "a join on its way")
        ended = told.event("ended", initial=False)
        closed = told.event("closed")
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
def test_filters_let_through_what_fits(lab: Lab, arguments: tuple[str, ...], seen: bool) -> None:
    with tracing(lab.client, "life", *arguments) as told:
        with connection(lab):
            pass
        if seen:
            told.event("closed")
        summary = told.end()
    assert bool(summary["ends"]) == seen


def test_a_name_that_the_kernel_cuts(lab: Lab) -> None:
    comm = FilePath("/proc/self/comm")
    before = comm.read_text()
    name = "a-rather-long-name"
    comm.write_text(name)
    try:
        with tracing(lab.client, "life", "--comm", name) as told, connection(lab):
            assert told.event("established")["comm"] == name[:15]
    finally:
        comm.write_text(before)


def test_another_namespace_by_name(lab: Lab) -> None:
    with tracing(lab.server, "life", "--netns", lab.client.name) as told:
        assert told.event("started")["netns"] == lab.client.netns
        with connection(lab):
            pass
        assert told.event("established", initial=True)["local"].startswith("10.1.1.2:")
