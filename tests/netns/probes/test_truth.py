# SPDX-License-Identifier: BSD-3-Clause
"""What the probes measure is what the kernel, netlink and the wire say.

Counters are compared at a rest point: nothing in flight, and two samples around the
kernel's own answer that agree.  `tcp_probe` fires before a segment is processed, so only
the iterator may be compared exactly.
"""

import os
import socket
from collections.abc import Iterator
from pathlib import Path as Path_

import pytest

from mptcpd_ebpf.core.events import (
    ConnectionEstablished,
    SubflowEnded,
    SubflowEstablished,
)
from mptcpd_ebpf.core.measurement import Measurement
from mptcpd_ebpf.kernel.pm_events import PmEvents
from mptcpd_ebpf.lab import Bulk, Lab, Path
from mptcpd_ebpf.lab.kernel_path_manager import allow_joins
from mptcpd_ebpf.lab.wire import Wire
from mptcpd_ebpf.lab.wire.segment import Flow
from mptcpd_ebpf.probes import Probes
from tests.netns.event_log import EventLog
from tests.netns.mptcp_sockets import Ends, connection, exchange
from tests.netns.probed import QUIET, Listening, TcpInfo, probing, sample, tcp_infos
from tests.waiting import until

NEVER_RESTS = {"at", "idle_us"}


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(paths=[Path(delay_ms=5, rate_mbit=50), Path(delay_ms=15, rate_mbit=50)]) as lab:
        allow_joins(lab)
        yield lab


@pytest.fixture
def probes(lab: Lab) -> Iterator[Probes]:
    with probing(lab.client, thresholds=QUIET) as probes:
        yield probes


def settled(measurement: Measurement) -> dict[str, object]:
    """What of a measurement stays the same while nothing happens."""
    fields = measurement.__struct_fields__
    return {name: getattr(measurement, name) for name in fields if name not in NEVER_RESTS}


def by_address(lab: Lab, probes: Probes) -> dict[str, Measurement]:
    return {each.local.ip: each for each in sample(lab.client, probes)}


def both_paths(lab: Lab, probes: Probes) -> dict[str, Measurement]:
    """The subflows by local address, once the second has joined."""

    def joined() -> dict[str, Measurement] | None:
        found = by_address(lab, probes)
        return found if [each.state for each in found.values()] == [1, 1] else None

    return until(joined, "second subflow")


def at_rest(lab: Lab, probes: Probes, ends: Ends) -> list[tuple[Measurement, TcpInfo]]:
    """Measurement and TCP_INFO of each subflow, read while nothing happened."""

    def resting() -> list[tuple[Measurement, TcpInfo]] | None:
        before = by_address(lab, probes)
        infos = tcp_infos(ends.client)
        after = by_address(lab, probes)
        if any(each.in_flight for each in before.values()) or before.keys() != after.keys():
            return None
        if any(settled(before[ip]) != settled(after[ip]) for ip in before):
            return None
        return [(before[info.local.ip], info) for info in infos]

    return until(resting, "rest point")


def test_every_counter_is_that_of_tcp_info(lab: Lab, probes: Probes) -> None:
    with connection(lab) as ends:
        both_paths(lab, probes)
        lab.paths[0].set(loss_percent=3)
        for _ in range(6):
            exchange(ends, bytes(200_000))
        lab.paths[0].heal()
        exchange(ends, bytes(50_000))
        pairs = at_rest(lab, probes, ends)

    assert len(pairs) == 2
    for seen, told in pairs:
        assert (seen.local, seen.remote) == (told.local, told.remote)
        assert {
            "state": seen.state,
            "segments_out": seen.segments_out,
            "bytes_sent": seen.bytes_sent,
            "bytes_acked": seen.bytes_acked,
            "bytes_retrans": seen.bytes_retrans,
            "delivered": seen.delivered,
            "retransmits": seen.retransmits,
            "timeouts": seen.timeouts,
            "reordering": seen.reordering,
            "cwnd": seen.cwnd,
            "in_flight": seen.in_flight,
            "min_rtt_us": seen.min_rtt_us,
            "rttvar_us": seen.rttvar_us,
        } == {
            "state": told.state,
            "segments_out": told.data_segs_out,
            "bytes_sent": told.bytes_sent,
            "bytes_acked": told.bytes_acked,
            "bytes_retrans": told.bytes_retrans,
            "delivered": told.delivered,
            "retransmits": told.total_retrans,
            "timeouts": told.retransmits,
            "reordering": told.reord_seen,
            "cwnd": told.snd_cwnd,
            "in_flight": told.unacked,
            "min_rtt_us": told.min_rtt,
            "rttvar_us": told.rttvar,
        }
        assert seen.srtt_us == pytest.approx(told.rtt, rel=0.05)
        assert seen.rto_us == pytest.approx(told.rto, rel=0.05)
        assert seen.segments_out
    lossy = next(seen for seen, _ in pairs if seen.local.ip == lab.paths[0].client_ip)
    assert lossy.retransmits, "the test lost nothing and so compared nothing"
    assert lossy.lost


def test_rtt_samples_fall_into_the_slot_of_the_path(lab: Lab, probes: Probes) -> None:
    with connection(lab) as ends:
        for _ in range(20):
            exchange(ends, b"x" * 100)
        seen = by_address(lab, probes)[lab.paths[0].client_ip]
    histogram = seen.rtt_histogram
    assert histogram is not None
    assert sum(histogram) >= 10
    # Twice 5 ms: at least 10 ms, so slot 13 (8.2 ms to 16.4 ms) or above, never below.
    assert sum(histogram[:13]) == 0
    assert seen.rtt_us is not None
    assert seen.rtt_us >= 10_000


def test_identity_is_that_of_the_netlink_events(lab: Lab, probes: Probes) -> None:
    with lab.client.entered(), PmEvents.open() as events:
        log = EventLog(events)
        with connection(lab) as ends:
            subflows = both_paths(lab, probes)
            established = log.wait(ConnectionEstablished)
            joined = log.wait(SubflowEstablished)
            local = ends.client.getsockname()
        first = subflows[lab.paths[0].client_ip]
        second = subflows[lab.paths[1].client_ip]
        assert first.token == second.token == established.token
        assert (first.local, first.remote) == (established.local, established.remote)
        assert first.local == local
        assert (second.local, second.remote) == (joined.local, joined.remote)
        assert (second.local_id, second.remote_id) == (joined.local_id, joined.remote_id)
        assert (first.initial, second.initial) == (True, False)
        assert (first.subflow_id, second.subflow_id) in {(1, 2), (None, None)}
        assert {first.netns, second.netns} == {lab.client.netns}
        names = {
            lab.client.call(socket.if_indextoname, each.if_index or 0) for each in (first, second)
        }
        assert names == {path.client_if for path in lab.paths}


def test_the_opener_owns_it_and_the_listener_on_the_other_side(lab: Lab) -> None:
    with probing(lab.client, everywhere=True, thresholds=QUIET) as probes, connection(lab):
        (client,) = sample_first(lab, probes, "client")
        (server,) = sample_first(lab, probes, "server")
        for seen in (client, server):
            assert seen.owner is not None
            assert seen.owner.pid == os.getpid()
            assert seen.owner.uid == os.getuid()
            assert seen.owner.comm == Path_("/proc/self/comm").read_text().strip()
            assert seen.opened_at is not None


def sample_first(lab: Lab, probes: Probes, host: str) -> list[Measurement]:
    return [each for each in sample(lab.hosts[host], probes) if each.initial]


def test_the_backup_marks_are_ours_and_the_peers(lab: Lab, probes: Probes) -> None:
    path = lab.paths[1]
    with connection(lab) as ends:
        # The kernel passes a subflow over whose join the peer has not yet confirmed: have
        # data go over it first.
        both_paths(lab, probes)
        while (by_address(lab, probes)[path.client_ip].bytes_acked or 0) < 10_000:
            exchange(ends, bytes(100_000))
        lab.client.run(["ip", "mptcp", "endpoint", "change", "id", "1", "backup"])
        marked = until(
            lambda: found if (found := by_address(lab, probes)[path.client_ip]).backup else None,
            "backup mark",
        )
        assert not marked.backup_by_peer
        assert not by_address(lab, probes)[lab.paths[0].client_ip].backup
        with probing(lab.server, thresholds=QUIET) as other:
            seen = {each.remote.ip: each for each in sample(lab.server, other)}
        assert seen[path.client_ip].backup_by_peer


def last_word(listening: Listening, local_ip: str) -> Measurement:
    ended = listening.wait(SubflowEnded, lambda event: event.measurement.local.ip == local_ip)
    return ended.measurement


def test_retransmissions_are_those_on_the_wire(lab: Lab) -> None:
    with probing(lab.client, thresholds=QUIET) as probes, Wire(lab.client.name, snap=160) as wire:
        listening = Listening(probes)
        lab.paths[0].set(loss_percent=5)  # first: a machine may be done before it is told
        lab.start(Bulk(bytes=1_500_000)).result()
        ended = [last_word(listening, path.client_ip) for path in lab.paths]
        on_wire = wire.retransmissions()
    for each in ended:
        # A SYN or FIN that was repeated is one in both counts.
        assert each.retransmits == on_wire.get(Flow(each.local, each.remote), 0)
    assert sum(each.retransmits or 0 for each in ended), "nothing was lost, nothing was compared"


def test_subflows_older_than_the_probes_are_followed_from_then_on(lab: Lab) -> None:
    with connection(lab) as ends, probing(lab.client, thresholds=QUIET) as probes:
        first = both_paths(lab, probes)[lab.paths[0].client_ip]
        assert first.opened_at is None
        assert first.owner is None
        ends.client.close()
        ends.server.close()
        ended = last_word(Listening(probes), first.local.ip)
        assert ended.closed
        assert ended.token == first.token


@pytest.mark.parametrize(
    ("family", "listen_on"),
    [
        pytest.param(socket.AF_INET, "::", id="IPv4 to a dual-stack server"),
        pytest.param(socket.AF_INET6, "::", id="IPv6"),
    ],
)
def test_families(family: int, listen_on: str) -> None:
    with (
        Lab(paths=[Path()], ip="both") as lab,
        probing(lab.client, everywhere=True, thresholds=QUIET) as probes,
        connection(lab, family=family, listen_on=listen_on),
    ):
        (client,) = sample(lab.client, probes)
        (server,) = [each for each in sample(lab.server, probes) if each.initial]
        path = lab.paths[0]
        six = family == socket.AF_INET6
        assert client.local.ip == (path.client_ip6 if six else path.client_ip)
        assert client.remote.ip == (path.server_ip6 if six else path.server_ip)
        # Both ends name the same subflow by the same two addresses.
        assert (server.local, server.remote) == (client.remote, client.local)
        assert server.owner is not None
        assert server.owner.pid == os.getpid()
        assert (client.netns, server.netns) == (lab.client.netns, lab.server.netns)


def test_probes_keep_to_their_namespace(lab: Lab, probes: Probes) -> None:
    with connection(lab):
        both_paths(lab, probes)
        assert sample(lab.server, probes) == []
    with probing(lab.client, everywhere=True, thresholds=QUIET) as all_probes, connection(lab):
        assert {each.netns for each in sample(lab.server, all_probes)} == {lab.server.netns}
