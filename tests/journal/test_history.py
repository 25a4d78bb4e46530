# SPDX-License-Identifier: BSD-3-Clause
"""The history: incidents of paths, and what filters leave of it."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcpd_ebpf.cli.history import line
from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.commands import Cause, Decision, DestroySubflow, ReportPath
from mptcpd_ebpf.core.filters import Filter, network
from mptcpd_ebpf.core.measurement import Owner
from mptcpd_ebpf.core.recording import Record
from mptcpd_ebpf.core.roles import Role
from mptcpd_ebpf.journal import history
from mptcpd_ebpf.journal.entries import (
    AlarmEntry,
    DecisionEntry,
    Entry,
    NetworkEntry,
    PathEntry,
    SubflowEntry,
)
from mptcpd_ebpf.journal.history import Query
from mptcpd_ebpf.journal.incidents import TOGETHER_S, Change, Move, incidents
from mptcpd_ebpf.journal.store import read_only
from tests.core.scenario import (
    FIBRE,
    MS,
    RADIO,
    SECOND,
    TOKEN,
    alarm,
    created,
    ended,
    joined,
    left,
    measured,
)
from tests.journal.files import NOW, record, written

FIBRE_IP, SERVER_IP = FIBRE[0].ip, FIBRE[1].ip
LINKS: list[ev.AnyEvent] = [
    ev.LinkChanged(if_index=2, name="fibre", up=True, running=True),
    ev.LocalAddressChanged(if_index=2, ip=FIBRE_IP, prefix_len=24),
    ev.LinkChanged(if_index=3, name="radio", up=True, running=True),
    ev.LocalAddressChanged(if_index=3, ip=RADIO[0].ip, prefix_len=24),
]
PROGRAM = str(Path(sys.executable).parent / "mptcpd-ebpf")
CAUSE = Cause(seq=1, event="AlarmRaised", rule="alarm")
WHY = "nothing came back for 262 ms with 4 segments in flight"


def change(t: float, state: str, remote_ip: str = SERVER_IP, local_ip: str = FIBRE_IP) -> Change:
    return Change(t, "adaptive", "fibre", local_ip, remote_ip, state, f"why {state}")


def move(t: float, token: str = "1a2b3c4d", remote_ip: str = SERVER_IP) -> Move:
    return Move(t, token, FIBRE_IP, remote_ip)


# --- incidents


def test_an_incident_has_its_begin_its_end_and_what_moved() -> None:
    moves = [move(100.01), move(100.14, "00000001"), move(100.2), move(148.0, "00000002")]
    (found,) = incidents([change(100.01, "away"), change(147.7, "active")], moves)
    assert (found.t, found.ended, found.lasted_s) == (100.01, 147.7, 47.69)
    assert (found.connections_moved, found.moved_s) == (2, 0.13)
    assert (found.reason, found.ended_reason) == ("why away", "why active")


def test_an_incident_that_lasts_has_no_end() -> None:
    (found,) = incidents([change(1, "away")], [])
    assert (found.ended, found.lasted_s, found.moved_s) == (None, None, None)


def test_a_standby_path_that_is_left_makes_two_incidents() -> None:
    changes = [change(1, "standby"), change(5, "away"), change(9, "active")]
    assert [(each.state, each.lasted_s) for each in incidents(changes, [])] == [
        ("standby", 4),
        ("away", 4),
    ]


def test_all_peers_of_an_interface_are_one_incident() -> None:
    peers = [f"10.0.9.{number}" for number in range(1, 13)]
    changes = [change(1 + n / 100, "away", peer) for n, peer in enumerate(peers)]
    changes += [change(48 + n / 100, "active", peer) for n, peer in enumerate(peers)]
    moves = [move(1 + n / 100, f"{n:08x}", peer) for n, peer in enumerate(peers)]
    (found,) = incidents(changes, moves)
    assert found.peers == peers
    assert (found.connections_moved, found.moved_s) == (12, 0.11)


def test_a_restart_ends_what_the_former_daemon_kept_away() -> None:
    (found,) = incidents([change(10, "away")], [], run_starts=[5, 20])
    assert (found.ended, found.ended_reason) == (20, "the daemon was started again")


@given(
    st.lists(
        st.tuples(
            st.floats(0, 100),
            st.sampled_from(["active", "away", "standby"]),
            st.sampled_from(["10.0.9.1", "10.0.9.2"]),
        ),
        max_size=30,
    )
)
def test_no_time_away_is_lost_or_counted_twice(told: list[tuple[float, str, str]]) -> None:
    changes = [change(t, state, peer) for t, state, peer in sorted(told)]
    found = incidents(changes, [])
    assert found == sorted(found, key=lambda each: each.t)
    assert sum(len(each.peers) for each in found) == sum(e.state != "active" for e in changes)
    for each in found:
        assert each.ended is None or each.ended >= each.t
    last = {each.remote_ip: each.state for each in changes}
    lasting = sorted(peer for each in found if each.ended is None for peer in each.peers)
    assert lasting == sorted(peer for peer, state in last.items() if state != "active")


# --- from a file


def decided(number: int, command: Any, now: int, event: Any = None) -> list[Record]:
    made = Decision(id=number, at=now, plugin="adaptive", cause=CAUSE, command=command)
    answer = ev.CommandAnswered(decision_id=number)
    return [record(event or ev.Tick(), made, now=now), record(answer, now=now + MS)]


def report(state: Role, lasted: int = 0) -> ReportPath:
    away = f"{WHY} (usual RTT 20 ms); 1 other subflow(s) can carry the data"
    return ReportPath(
        local_ip=FIBRE_IP,
        remote_ip=SERVER_IP,
        interface="fibre",
        state=state,
        reason="10 probes answered" if state is Role.ACTIVE else away,
        lasted=lasted,
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two connections; one had a subflow on fibre, which was left and came back."""
    records = [record(event) for event in LINKS]
    owner = Owner(pid=7, comm="curl")
    records += [record(created()), record(joined()), record(created(TOKEN + 1, RADIO))]
    away = alarm(measured(in_flight=4, srtt_us=20_000))
    destroy = DestroySubflow(token=TOKEN, local=FIBRE[0], remote=FIBRE[1], reason=WHY)
    records += decided(1, destroy, NOW + SECOND, away)
    records += decided(2, report(Role.AWAY), NOW + SECOND)
    records += [record(ended(FIBRE, owner=owner, bytes_acked=5000), now=NOW + SECOND)]
    records += decided(3, report(Role.ACTIVE, 47 * SECOND), NOW + 48 * SECOND)
    down = ev.LinkChanged(if_index=3, name="radio", up=True, running=False)
    records += [record(down, now=NOW + 50 * SECOND)]
    path = tmp_path / "journal.db"
    assert written(path, records).problem is None
    return path


def asked(file: Path, since: float = 0, path: str | None = None, **only: Any) -> list[Entry]:
    db = read_only(file)
    try:
        return history.read(db, Query(since=since, path=path, only=Filter(**only)))
    finally:
        db.close()


def kinds(entries: list[Entry]) -> dict[type[Entry], int]:
    found = [type(entry) for entry in entries]
    return {kind: found.count(kind) for kind in found}


def test_without_a_connection_it_is_about_paths_and_the_network(file: Path) -> None:
    found = asked(file)
    (path,) = [entry for entry in found if isinstance(entry, PathEntry)]
    assert (path.interface, path.lasted_s, path.connections_moved) == ("fibre", 47, 1)
    assert [e.what for e in found if isinstance(e, NetworkEntry)][-1] == "down"
    assert not kinds(found).keys() & {SubflowEntry, AlarmEntry, DecisionEntry}
    assert [entry.t for entry in found] == sorted(entry.t for entry in found)


def test_the_line_of_an_incident(file: Path) -> None:
    (path,) = [entry for entry in asked(file) if isinstance(entry, PathEntry)]
    assert path.ended is not None
    began, back = time.localtime(path.t), time.localtime(path.ended)
    assert line(path) == (
        f"{time.strftime('%Y-%m-%d %H:%M:%S', began)}  fibre: away ({WHY} (usual RTT 20 ms)), "
        f"1 connection moved in 0 ms, back {time.strftime('%H:%M:%S', back)} after 47.0 s "
        "(10 probes answered)"
    )


@pytest.mark.parametrize(
    ("query", "paths"),
    [
        ({"path": "fibre"}, 1),
        ({"path": FIBRE_IP}, 1),
        ({"path": "radio"}, 0),
        ({"interface": "fib*"}, 1),
        ({"interface": "radio"}, 0),
        ({"address": network("10.0.9.0/24")}, 1),
        ({"address": network("10.0.2.0/24")}, 0),
        ({"state": "away"}, 1),
        ({"state": "standby"}, 0),
        ({"token": "1a2b"}, 1),
        ({"token": f"{TOKEN + 1:08x}"}, 0),
        ({"process": "curl"}, 1),
        ({"process": "7"}, 1),
        ({"process": "wget"}, 0),
        ({"since": time.time() + 1000}, 0),
    ],
)
def test_each_filter(file: Path, query: dict[str, Any], paths: int) -> None:
    assert kinds(asked(file, **query)).get(PathEntry, 0) == paths


def test_a_connection_has_all_that_happened_to_it(file: Path) -> None:
    found = asked(file, token="1a2b3c4d")
    assert kinds(found)[AlarmEntry] == kinds(found)[DecisionEntry] == 1
    subflows = [entry for entry in found if isinstance(entry, SubflowEntry)]
    assert [(each.what, each.interface, each.bytes_acked) for each in subflows] == [
        ("opened", "fibre", None),
        ("opened", "radio", None),
        ("closed", "fibre", 5000),
    ]
    (decision,) = [entry for entry in found if isinstance(entry, DecisionEntry)]
    assert (decision.cause, decision.errno, decision.reason) == ("AlarmRaised", 0, WHY)


def test_a_join_that_was_not_answered_moves_no_connection(tmp_path: Path) -> None:
    file = tmp_path / "journal.db"
    trial = (SockAddr(FIBRE_IP, 9), FIBRE[1])
    destroy = DestroySubflow(
        token=TOKEN + 1, local=trial[0], remote=trial[1], reason="the join was not answered"
    )
    records = [record(created(TOKEN + 1, RADIO)), *decided(1, report(Role.AWAY), NOW)]
    records += decided(2, destroy, NOW + SECOND)
    records += [record(left(trial, TOKEN + 1), now=NOW + SECOND)]
    assert written(file, records).problem is None
    (path,) = [entry for entry in asked(file) if isinstance(entry, PathEntry)]
    assert (path.connections_moved, path.moved_s) == (0, None)


def test_alarms_of_a_subflow_that_has_ended_are_no_news(tmp_path: Path) -> None:
    file = tmp_path / "journal.db"
    silent = alarm(measured(RADIO))
    events: list[ev.AnyEvent] = [created(), joined(), silent, left(), silent]
    records = [record(event, now=NOW + n * SECOND) for n, event in enumerate(events)]
    written(file, records)
    assert kinds(asked(file, token="1a2b"))[AlarmEntry] == 1


def test_every_entry_has_a_line_and_a_schema(file: Path) -> None:
    found = [*asked(file), *asked(file, token="1a2b3c4d")]
    assert len(kinds(found)) == len(Entry.__subclasses__())
    for entry in found:
        assert len(line(entry)) > len("2026-01-31 03:25:00  ")
        assert msgspec.json.decode(msgspec.json.encode(entry))["schema"] == 1


def test_incidents_together_are_defined_by_time() -> None:
    far = [change(1, "away", "a"), change(1 + 2 * TOGETHER_S, "away", "b")]
    assert len(incidents(far, [])) == 2


def test_watch_continues_with_what_is_new(file: Path) -> None:
    argv = [PROGRAM, "history", "--journal", str(file), "--path", "fibre", "--watch"]
    watching = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert watching.stdout is not None
        before = [watching.stdout.readline() for _ in range(3)]
        assert "fibre: away" in before[-1]
        down = ev.LinkChanged(if_index=2, name="fibre", up=False, running=False)
        written(file, [record(down)])
        assert watching.stdout.readline().endswith("fibre: link down\n")
    finally:
        watching.kill()
        watching.wait()
        if watching.stdout is not None:
            watching.stdout.close()
