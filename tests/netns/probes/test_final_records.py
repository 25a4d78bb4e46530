# SPDX-License-Identifier: BSD-3-Clause
"""No last word is lost, nothing is left behind, and what cannot be is said clearly."""

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path as Path_

import pytest

from mptcpd_ebpf.core.events import SubflowEnded
from mptcpd_ebpf.kernel.fdinfo import skipped_runs
from mptcpd_ebpf.lab import Lab, Path, RequestResponse, ShortConnections
from mptcpd_ebpf.probes import Probes
from tests.netns.mptcp_sockets import connection, mptcp_socket
from tests.netns.probed import QUIET, Listening, compile_probes_with, probing, sample, tcp_infos
from tests.waiting import until

CONNECTIONS = 1000
SMALL_RING = 4096


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(paths=[Path()]) as lab:
        yield lab


def test_a_full_ring_buffer_loses_no_final_record(lab: Lab) -> None:
    with probing(lab.client, thresholds=QUIET, ring_bytes=SMALL_RING) as probes:
        lab.start(ShortConnections(count=CONNECTIONS)).result()
        until(lambda: not sample(lab.client, probes), "end of all subflows")
        events = probes.read()
        lost, skipped = probes.lost, skipped_runs(probes.programs().values())
        assert probes.entries() == {"subflows": 0, "connections": 0, "listeners": 0}
        assert probes.read() == []
    assert all(isinstance(event, SubflowEnded) for event in events)
    seen = [event.measurement for event in events]
    assert len(seen) == CONNECTIONS
    assert set(Counter(each.local for each in seen).values()) == {1}
    assert len({each.cookie for each in seen}) == CONNECTIONS
    assert not [each for each in seen if not (each.closed and each.bytes_sent)]
    # Who waits behind a run that was interrupted is first seen when it has been opened.
    assert sum(each.opened_at is None for each in seen) <= skipped
    assert lost["final_records_kept"] > CONNECTIONS // 2, "the ring was not small enough to test"
    assert lost["subflows_refused"] == lost["connections_refused"] == 0


def test_values_that_the_kernel_clears_before_close_are_reported(lab: Lab) -> None:
    with probing(lab.client, thresholds=QUIET) as probes:
        with connection(lab) as ends:
            ends.server.shutdown(socket.SHUT_WR)
            assert not ends.client.recv(1)
            ends.client.shutdown(socket.SHUT_WR)
            # MPTCP's worker disconnects the closed socket, which clears its counters.
            until(lambda: not tcp_infos(ends.client)[0].bytes_sent, "disconnection")
        listening = Listening(probes)
        ended = listening.wait(SubflowEnded)
    assert ended.measurement.bytes_sent == len(b"hello")
    assert ended.measurement.srtt_us


def test_skipped_program_runs_lose_no_final_record(
    lab: Lab, tmp_path: Path_, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it had run none of the programs at the moments when subflows are established."""
    compile_probes_with("established(sk)=", tmp_path, monkeypatch)
    with probing(lab.client, thresholds=QUIET) as probes:
        lab.start(ShortConnections(count=20)).result()
        until(lambda: not sample(lab.client, probes), "end of all subflows")
        events = probes.read()
    seen = [event.measurement for event in events if isinstance(event, SubflowEnded)]
    assert len(seen) == 20
    assert all(each.local.port and each.bytes_sent for each in seen)


def test_a_connection_that_was_refused_leaves_nothing(lab: Lab) -> None:
    with probing(lab.client, thresholds=QUIET) as probes:
        with connection(lab) as ends:
            port = ends.listener.getsockname()[1]
        with mptcp_socket(lab.client) as client, pytest.raises(ConnectionRefusedError):
            client.connect((lab.paths[0].server_ip, port))
        listening = Listening(probes)
        listening.wait(SubflowEnded)
        until(lambda: not any(probes.entries().values()), "empty maps")
        # Only the established one had something to say.
        assert len(listening.events + probes.read()) == 1


def test_a_listener_is_forgotten_when_it_closes(lab: Lab) -> None:
    with probing(lab.server, thresholds=QUIET) as probes:
        with connection(lab):
            assert probes.entries()["listeners"] == 1
        until(lambda: not any(probes.entries().values()), "empty maps")


def ids_of(programs: Iterable[int], pid: int | str = "self") -> set[int]:
    """The kernel's ids of programs, from their descriptors in a process."""
    found = set()
    for descriptor in programs:
        for line in Path_(f"/proc/{pid}/fdinfo/{descriptor}").read_text().splitlines():
            if line.startswith("prog_id:"):
                found.add(int(line.split()[1]))
    return found


def loaded_programs() -> set[int]:
    shown = subprocess.run(["bpftool", "-j", "prog", "show"], capture_output=True, check=True)
    return {program["id"] for program in json.loads(shown.stdout)}


def test_a_killed_reader_leaves_no_program() -> None:
    script = (
        "import sys; from mptcpd_ebpf.probes import Probes;"
        "probes = Probes.open(); print(*probes.programs().values(), flush=True);"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None
        ids = ids_of(map(int, reader.stdout.readline().split()), reader.pid)
        assert ids
        assert ids <= loaded_programs()
        reader.kill()
    until(lambda: not ids & loaded_programs(), "end of the programs")


def test_closing_twice_is_harmless_and_releases_descriptors(lab: Lab) -> None:
    with lab.client.entered():
        Probes.open(thresholds=QUIET).close()
        before = set(os.listdir("/proc/self/fd"))
        probes = Probes.open(thresholds=QUIET)
        probes.sample()
        probes.close()
        probes.close()
        assert set(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def all_tokens_equal(tmp_path: Path_, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probes, compiled so that every connection's token reads as 1."""
    compile_probes_with("token_of(ctx)=1", tmp_path, monkeypatch)


@pytest.mark.usefixtures("all_tokens_equal")
def test_the_same_token_in_two_namespaces_does_not_mix(lab: Lab) -> None:
    with probing(lab.client, everywhere=True, thresholds=QUIET) as probes:
        running = lab.start(RequestResponse())
        (client,) = sample(lab.client, probes)
        (server,) = [each for each in sample(lab.server, probes) if each.initial]
        assert client.token == server.token == 1
        assert client.owner is not None
        assert server.owner is not None
        assert client.owner.pid == running.pid
        assert server.owner.pid != running.pid
        running.kill()
