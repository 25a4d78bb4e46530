# SPDX-License-Identifier: BSD-3-Clause
"""The story of a run: each thing once, with what came of it."""

from mptcpd_ebpf.cli import explain
from mptcpd_ebpf.control import story
from mptcpd_ebpf.control.schema import StoryEntry
from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.commands import (
    Cause,
    CreateSubflow,
    Decision,
    DestroySubflow,
    SteerNewConnections,
)
from mptcpd_ebpf.core.measurement import AlarmKind, Measurement
from mptcpd_ebpf.core.recording import Record
from tests.core.scenario import (
    FIBRE,
    MS,
    RADIO,
    SERVER,
    START,
    TOKEN,
    alarm,
    created,
    established,
    joined,
    left,
    measured,
)

CREATE = CreateSubflow(
    token=TOKEN, local_ip=RADIO[0].ip, local_id=1, remote=SERVER, reason="radio has no subflow"
)
DESTROY = DestroySubflow(token=TOKEN, local=RADIO[0], remote=SERVER, reason="nothing came back")


def decided(
    number: int,
    command: CreateSubflow | DestroySubflow | SteerNewConnections,
    refused: str | None = None,
) -> Decision:
    cause = Cause(seq=number, event="AlarmRaised", rule="alarm")
    return Decision(
        id=number, at=START, plugin="adaptive", cause=cause, command=command, refused=refused
    )


def told(*steps: tuple[int, ev.AnyEvent, list[Decision]]) -> list[StoryEntry]:
    records = [
        Record(seq=number, now=START + at * MS, event=event, decisions=decisions)
        for number, (at, event, decisions) in enumerate(steps, start=1)
    ]
    return story.tell(records, epoch_ns=0)


def run() -> list[StoryEntry]:
    silent = alarm(measured(RADIO, srtt_us=80_000, in_flight=4), AlarmKind.NO_PROGRESS)
    return told(
        (0, ev.LinkChanged(if_index=2, name="radio", up=True, running=True), []),
        (0, ev.LocalAddressChanged(if_index=2, ip=RADIO[0].ip, prefix_len=24), []),
        (1, created(), []),
        (2, established(), [decided(1, CREATE)]),
        (3, ev.CommandAnswered(decision_id=1), []),
        (43, joined(), []),
        (500, silent, [decided(2, DESTROY), decided(3, DESTROY, "the subflow is gone")]),
        (501, ev.CommandAnswered(decision_id=2), []),
        (502, left(), []),
    )


def test_a_decision_carries_its_rule_the_answer_and_its_effect() -> None:
    create, destroy, refused = [each for each in run() if each["kind"] == "decision"]
    assert create["text"].endswith("radio has no subflow (adaptive, rule alarm)")
    assert create["outcome"] == "established after 41 ms"
    assert (create["path"], create["token"]) == ("radio", f"{TOKEN:08x}")
    assert destroy["outcome"] == "done"
    assert refused["outcome"] == "not sent: the subflow is gone"
    assert create["data"]["command"]["remote"] == str(SERVER)


def test_alarms_have_numbers_and_subflows_times() -> None:
    texts = {each["kind"]: each["text"] for each in run()}
    assert texts["alarm"].startswith(
        "alarm no-progress: nothing came back for 0 ms with 4 segments"
    )
    assert texts["alarm"].endswith("srtt 80 ms, 4 in flight")
    assert texts["subflow"] == f"subflow {RADIO[0]} → {SERVER} closed after 0.5 s"


def test_a_refused_command_and_a_failed_join_say_so() -> None:
    entries = told(
        (0, established(), [decided(1, CREATE)]),
        (1, ev.CommandAnswered(decision_id=1, errno=101, explanation="no route"), []),
        (2, established(), [decided(2, CREATE)]),
        (3, left(), []),
    )
    outcomes = [each["outcome"] for each in entries if each["kind"] == "decision"]
    assert outcomes == ["the kernel refused: no route", "the join failed"]


def test_the_story_of_a_connection_includes_its_paths() -> None:
    entries = told(
        (0, ev.LinkChanged(if_index=1, name="fibre", up=True, running=True), []),
        (0, ev.LinkChanged(if_index=2, name="radio", up=True, running=True), []),
        (0, ev.LocalAddressChanged(if_index=1, ip=FIBRE[0].ip, prefix_len=24), []),
        (1, established(), []),
        (1, established(token=7, key=RADIO), []),
        (2, ev.LinkChanged(if_index=1, name="fibre", up=True, running=False), []),
        (2, ev.LinkChanged(if_index=2, name="radio", up=True, running=False), []),
        (3, ev.ConnectionClosed(token=TOKEN), []),
    )
    mine = story.about(entries, token=f"{TOKEN:08x}"[:3])
    assert [each["text"] for each in mine][1:] == ["fibre has no carrier", "connection closed"]
    assert story.about(entries, token="ffff") == []
    by_path = story.about(entries, path="radio")
    assert [each["text"] for each in by_path][-1] == "radio has no carrier"
    assert all(each["path"] == "radio" for each in by_path)


def counted(at: int, carried: int, stalled_us: int = 0) -> Measurement:
    return measured(
        RADIO, at=START + at * MS, connection_bytes_acked=carried, stalled_us=stalled_us
    )


def test_a_decision_tells_what_was_measured_before_and_after_it() -> None:
    entries = told(
        (0, ev.Sampled(measurements=[counted(0, 0)]), []),
        (1000, ev.Sampled(measurements=[counted(1000, 250_000, 400_000)]), [decided(1, DESTROY)]),
        (1001, ev.CommandAnswered(decision_id=1), []),
        (3000, ev.Sampled(measurements=[counted(3000, 1_500_000, 400_000)]), []),
    )
    (destroy,) = [each for each in entries if each["kind"] == "decision"]
    assert destroy["outcome"] == (
        "done; 2.0 Mbit/s in the 1.0 s before, 5.0 Mbit/s in the 2.0 s after; the connection "
        "waited for subflows 40% of the time before, 0% after"
    )
    assert destroy["data"]["effect"]["after"]["goodput_bit_s"] == 5e6


def test_a_final_record_tells_what_the_closed_subflow_carried_in_any_order() -> None:
    final = ev.SubflowEnded(
        measurement=measured(
            RADIO, bytes_acked=48_000, bytes_received=2_000, retransmits=9, segments_out=57
        )
    )
    for entries in (
        told((0, left(), []), (1, final, [])),
        told((0, final, []), (1, left(), [])),
    ):
        (closed,) = [each for each in entries if each["kind"] == "subflow"]
        assert closed["outcome"] is not None
        assert closed["outcome"].startswith("sent 48 kB, received 2 kB")
        assert closed["outcome"].endswith("9 of 57 segments retransmitted")


def test_an_alarm_says_its_limit_and_that_its_subflow_was_closed_already() -> None:
    late = ev.AlarmRaised(kind=AlarmKind.TIMEOUTS, measurement=measured(RADIO), value=3, limit=2)
    texts = [each["text"] for each in told((0, late, []), (1, left(), []), (2, late, []))]
    assert "limit 2" in texts[0]
    assert "closed" not in texts[0]
    assert texts[2].startswith("alarm timeouts of the closed subflow: 3 retransmission timeouts")


def test_a_prefix_finds_each_connection_once() -> None:
    entries = told((0, established(token=0xAB000001), []), (1, established(token=0xAB000002), []))
    assert story.tokens(entries, "ab") == ["ab000001", "ab000002"]
    assert story.tokens(entries + entries, "ab000001") == ["ab000001"]


def test_samples_and_timers_tell_nothing() -> None:
    assert told((0, ev.Tick(), []), (1, ev.Sampled(measurements=[measured()]), [])) == []


def test_each_entry_is_a_line_and_each_outcome_one_more() -> None:
    entries = run()
    shown = explain.lines(entries)
    outcomes = [each for each in entries if each["outcome"] is not None]
    assert len(shown) == 1 + len(entries) + len(outcomes)
    assert sum(line.endswith("→ established after 41 ms") for line in shown) == 1


def test_where_new_connections_start_belongs_to_the_story_of_the_path() -> None:
    steer = SteerNewConnections(
        ipv6=False, local_ip=RADIO[0].ip, interface="radio", reason="fibre does not work"
    )
    entries = told(
        (0, ev.LinkChanged(if_index=2, name="radio", up=True, running=True), []),
        (0, ev.LocalAddressChanged(if_index=2, ip=RADIO[0].ip, prefix_len=24), []),
        (1, ev.StartUnanswered(local_ip=FIBRE[0].ip, remote=SERVER, began_at=START), []),
        (2, ev.Tick(), [decided(1, steer)]),
        (3, ev.CommandAnswered(decision_id=1), []),
    )
    assert [each["text"] for each in story.about(entries, path=FIBRE[0].ip)] == [
        f"a new connection to {SERVER} got no answer"
    ]
    chosen = story.about(entries, path="radio")[-1]
    assert chosen["text"].startswith(
        "start new IPv4 connections on radio (10.0.2.2): fibre does not work (adaptive, rule "
    )
    assert chosen["outcome"] == "done"


def test_equal_alarms_in_a_row_are_counted() -> None:
    silent = alarm(measured(RADIO), AlarmKind.NO_PROGRESS)
    slow = alarm(measured(RADIO), AlarmKind.RTT)
    other = alarm(measured(FIBRE), AlarmKind.RTT)
    events: list[ev.AnyEvent] = [silent, silent, silent, slow, other, silent]
    entries = told(*((at * 1000, event, []) for at, event in enumerate(events)))
    shown = explain.lines(entries)[1:]
    assert len(shown) == 5
    assert shown[1].strip() == "and 2 more until +2.000"
