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
from mptcpd_ebpf.core.measurement import AlarmKind
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
