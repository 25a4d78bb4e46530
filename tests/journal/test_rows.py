# SPDX-License-Identifier: BSD-3-Clause
"""What the journal writes about connections, subflows, alarms, decisions and the network."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.commands import Cause, Decision, ReportPath, SetBackup
from mptcpd_ebpf.core.measurement import Owner
from mptcpd_ebpf.core.recording import Record
from mptcpd_ebpf.core.roles import Role
from mptcpd_ebpf.core.tracker import Tracker
from mptcpd_ebpf.journal.rows import LINGER, OpenRows, Rows
from tests.core.scenario import (
    FIBRE,
    RADIO,
    SATELLITE,
    SECOND,
    TOKEN,
    alarm,
    created,
    ended,
    established,
    gone,
    joined,
    left,
    measured,
    truth,
)
from tests.core.storms import EVENTS
from tests.journal.files import NOW, record, records, rows, written

LINK = ev.LinkChanged(if_index=2, name="fibre", up=True, running=True)
ADDRESS = ev.LocalAddressChanged(if_index=2, ip=FIBRE[0].ip, prefix_len=24)
CAUSE = Cause(seq=1, event="AlarmRaised", rule="alarm")
DEMOTE = SetBackup(token=TOKEN, local=RADIO[0], remote=RADIO[1], backup=True, reason="slow")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def test_a_connection_and_its_subflows_have_their_final_values(file: Path) -> None:
    owner = Owner(pid=7, comm="curl")
    end = ended(
        srtt_us=20_000, bytes_acked=5000, retransmits=3, connection_bytes_acked=9000, owner=owner
    )
    written(file, records([LINK, ADDRESS, created(), established(), joined(), left(), end, gone()]))
    assert rows(file, "SELECT token, pid, comm, bytes_acked, bytes_received FROM connections") == [
        ("1a2b3c4d", 7, "curl", 9000, None)
    ]
    assert rows(
        file,
        "SELECT local, interface, initial, failed, srtt_us, bytes_acked, retransmits, lost "
        "FROM subflows ORDER BY id",
    ) == [
        ("10.0.1.2:40001", "fibre", 1, 0, None, None, None, None),
        ("10.0.2.2:40002", None, 0, 0, 20_000, 5000, 3, None),
    ]
    assert rows(file, "SELECT count(*) FROM subflows WHERE closed IS NULL OR opened IS NULL") == [0]


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 0, 1), (1, 0, 2)])
def test_the_final_record_may_come_before_or_after_what_netlink_reports(
    file: Path, order: tuple[int, ...]
) -> None:
    events = [joined(), left(), ended(bytes_acked=5000)]
    if order[:2] == (1, 0):
        events = [joined(), ended(bytes_acked=5000), left()]
        order = (0, 1, 2)
    written(file, records([created(), *(events[number] for number in order), gone()]))
    assert rows(file, "SELECT failed, bytes_acked FROM subflows WHERE NOT initial") == [(0, 5000)]


def test_a_final_record_that_comes_before_its_connection_is_kept(file: Path) -> None:
    written(file, records([ended(FIBRE, bytes_acked=5000), created(), gone()]))
    assert rows(file, "SELECT bytes_acked FROM subflows") == [5000]


def test_a_join_that_failed_is_no_subflow_that_was_open(file: Path) -> None:
    written(file, records([created(), left(error=111, reset_reason=2)]))
    assert rows(
        file, "SELECT failed, opened, error, reset_reason FROM subflows WHERE NOT initial"
    ) == [(1, None, 111, 2)]


def test_the_final_record_of_a_dead_path_may_come_minutes_later(file: Path) -> None:
    late = record(ended(bytes_acked=5000), now=NOW + 120 * SECOND)
    written(file, [*records([created(), joined(), left()]), late])
    assert rows(file, "SELECT bytes_acked, round(closed - opened, 1) FROM subflows") == [
        (None, None),
        (5000, 0.0),
    ]


def test_a_final_record_of_a_subflow_that_was_forgotten_makes_no_row(file: Path) -> None:
    """It would look like a subflow that was opened twice."""
    much_later = NOW + 2 * LINGER
    events = [created(), joined(), left()]
    other = record(left(SATELLITE), now=much_later)
    late = record(ended(opened_at=NOW, bytes_acked=5000), now=much_later + 1)
    written(file, [*records(events), other, late])
    assert rows(file, "SELECT local, bytes_acked FROM subflows ORDER BY id") == [
        (str(FIBRE[0]), None),
        (str(RADIO[0]), None),
        (str(SATELLITE[0]), None),
    ]


def test_what_happens_to_a_row_between_two_transactions_is_one_statement() -> None:
    nothing = OpenRows([], [], 0.0)
    ids = dict.fromkeys(("connections", "subflows", "alarms", "decisions", "paths", "events"), 0)
    made = Rows(1, ids, nothing, str)
    events = [created(), established(), joined(), ended(bytes_acked=7), left(), gone()]
    for each in records(events):
        made.of(each, 0)
    assert len(list(made.changes.take())) == 3
    assert list(made.changes.take()) == []


def test_a_decision_has_its_cause_and_the_kernels_answer(file: Path) -> None:
    decisions = [
        Decision(id=1, at=NOW, plugin="adaptive", cause=CAUSE, command=DEMOTE),
        Decision(id=2, at=NOW, plugin="adaptive", cause=CAUSE, command=DEMOTE, refused="last"),
    ]
    answer = ev.CommandAnswered(decision_id=1, errno=3, explanation="no such subflow")
    for _ in range(2):  # the ids of decisions start again with each run
        written(file, [record(ev.Tick(), *decisions), record(answer, now=NOW + SECOND)])
    found = rows(
        file,
        "SELECT run, plugin, cause_event, cause_rule, action, token, local_ip, reason, refused, "
        "errno, explanation, round(answered - t, 3) FROM decisions ORDER BY id",
    )
    common = ("adaptive", "AlarmRaised", "alarm", "SetBackup", "1a2b3c4d", "10.0.2.2", "slow")
    assert found == [
        (run, *common, refused, *answered)
        for run in (1, 2)
        for refused, answered in ((None, (3, "no such subflow", 1.0)), ("last", (None,) * 3))
    ]


def test_the_changes_of_a_path_are_kept_and_the_progress_of_its_probes_is_not(file: Path) -> None:
    def report(state: Role, *, routine: bool = False, lasted: int = 0) -> Decision:
        command = ReportPath(
            local_ip=FIBRE[0].ip,
            remote_ip=FIBRE[1].ip,
            interface="fibre",
            state=state,
            reason="silent",
            routine=routine,
            lasted=lasted,
        )
        return Decision(id=1, at=NOW, plugin="adaptive", cause=CAUSE, command=command)

    states = [
        report(Role.AWAY),
        report(Role.AWAY, routine=True),
        report(Role.ACTIVE, lasted=1500_000_000),
    ]
    written(file, [record(ev.Tick(), *states)])
    assert rows(file, "SELECT interface, state, reason, lasted_s FROM paths") == [
        ("fibre", "away", "silent", None),
        ("fibre", "active", "silent", 1.5),
    ]


def test_changes_of_the_network_are_kept_once(file: Path) -> None:
    down = ev.LinkChanged(if_index=2, name="fibre", up=True, running=False)
    route = ev.DefaultRouteAdded(if_index=2, ipv6=False, gateway="10.0.1.1")
    same = truth(links=[LINK], addresses=[ADDRESS], routes=[route])
    gone_address = ev.LocalAddressRemoved(if_index=2, ip=FIBRE[0].ip)
    written(file, records([LINK, ADDRESS, LINK, route, same, down, gone_address, ev.Paused()]))
    assert rows(file, "SELECT kind, what, interface, ip FROM events ORDER BY id") == [
        ("link", "up", "fibre", None),
        ("address", "added", "fibre", "10.0.1.2"),
        ("route", "added", "fibre", "10.0.1.1"),
        ("link", "down", "fibre", None),
        ("address", "removed", "fibre", "10.0.1.2"),
        ("daemon", "paused", None, None),
    ]


def test_a_flood_of_alarms_is_cut_and_counted(file: Path) -> None:
    written(file, records([created(), *[alarm(measured())] * 500]))
    assert rows(file, "SELECT count(*) FROM alarms") == [100]
    assert rows(file, "SELECT alarms_left_out FROM runs") == [400]


def test_the_next_run_continues_the_connections_that_still_exist(file: Path) -> None:
    other = (TOKEN + 1, RADIO)
    written(file, records([created(), created(*other)]))
    found = ev.Resynchronised(
        connections=[ev.LiveConnection(token=TOKEN, local=FIBRE[0], remote=FIBRE[1])],
        subflows=[measured(state=1), measured(RADIO, state=1)],
        links=[],
        addresses=[],
        routes=[],
        at_start=True,
    )
    written(file, records([found, gone()], start=NOW + SECOND))
    assert rows(file, "SELECT token, closed IS NOT NULL FROM connections ORDER BY id") == [
        ("1a2b3c4d", 1),
        ("1a2b3c4e", 1),
    ]
    ended_unseen = "SELECT closed = (SELECT last_written FROM runs WHERE id = 1) FROM connections"
    assert rows(file, f"{ended_unseen} ORDER BY id") == [0, 1]
    assert rows(file, "SELECT count(*), count(closed) FROM subflows") == [(3, 3)]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(EVENTS, max_size=40), st.sampled_from([1, SECOND, 20 * SECOND]))
def test_any_stream_of_records_can_be_read_and_its_totals_match(
    tmp_path_factory: pytest.TempPathFactory, events: list[ev.Event], step: int
) -> None:
    file = tmp_path_factory.mktemp("storm") / "journal.db"
    published: list[Record] = records(events, step=step)
    journal = written(file, published)
    assert (journal.problem, journal.dropped) == (None, 0)
    tracker = Tracker()
    for each in published:
        tracker.apply(each.event, each.now)
        tracker.expire(each.now)
    assert rows(file, "PRAGMA integrity_check") == ["ok"]
    live = sorted(f"{token:08x}" for token in tracker.world.connections)
    assert sorted(rows(file, "SELECT token FROM connections WHERE closed IS NULL")) == live
    orphans = "SELECT count(*) FROM subflows WHERE connection NOT IN (SELECT id FROM connections)"
    assert rows(file, orphans) == [0]
    alarms = sum(isinstance(event, ev.AlarmRaised) for event in events)
    assert rows(file, "SELECT count(*) FROM alarms") == [alarms]
    open_in_closed = (
        "SELECT count(*) FROM subflows WHERE closed IS NULL AND connection IN "
        "(SELECT id FROM connections WHERE closed IS NOT NULL)"
    )
    assert rows(file, open_in_closed) == [0]
    if not any(isinstance(event, ev.Resynchronised) for event in events):
        joins = sum(isinstance(event, ev.SubflowEstablished) for event in events)
        initials = rows(file, "SELECT count(*) FROM connections")[0]
        found = rows(file, "SELECT count(*) FROM subflows WHERE opened IS NOT NULL")[0]
        assert found <= joins + initials + sum(isinstance(e, ev.SubflowEnded) for e in events)


def test_a_final_record_beats_the_last_sample_in_the_same_transaction() -> None:
    ids = dict.fromkeys(("connections", "subflows", "alarms", "decisions", "paths", "events"), 0)
    made = Rows(1, ids, OpenRows([], [], 0.0), str)
    for each in records([created(), joined()]):
        made.of(each, 0)
    made.sampled([measured(RADIO, state=1)], 0)
    list(made.changes.take())
    for each in records([left(), ended(bytes_acked=7)]):
        made.of(each, 0)
    assert [statement.sql.split()[:2] for statement in made.changes.take()] == [
        ["UPDATE", "subflows"]
    ]
