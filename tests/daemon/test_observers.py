# SPDX-License-Identifier: BSD-3-Clause
"""Observers: they see every record in order, and one that fails is dropped."""

import errno
import logging
import os
import resource
import stat
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.commands import (
    AnnounceAddress,
    AnyCommand,
    Cause,
    Decision,
    ReadEndpoints,
    ReportPath,
    RequestSample,
    SetBackup,
)
from mptcpd_ebpf.core.model import SECOND
from mptcpd_ebpf.core.recording import Head, Record, read
from mptcpd_ebpf.core.roles import Role
from mptcpd_ebpf.daemon.observers import LogObserver, Memory, Observers, Recorder, Statistics
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure
from tests.core.scenario import RADIO, TOKEN, measured

HEAD = Head(version="0", epoch_ns=1, netns=2)
DEMOTE = SetBackup(token=TOKEN, local=RADIO[0], remote=RADIO[1], backup=True, reason="slow")
ANNOUNCE = AnnounceAddress(token=TOKEN, ip="10.0.1.2", address_id=3, listen=True, reason="test")


def decision(number: int, command: AnyCommand = DEMOTE, refused: str | None = None) -> Decision:
    cause = Cause(seq=1, event="AlarmRaised", rule="alarm")
    return Decision(
        id=number, at=1, plugin="scripted", cause=cause, command=command, refused=refused
    )


def record(event: ev.AnyEvent, *decisions: Decision, seq: int = 1) -> Record:
    return Record(seq=seq, now=seq, event=event, decisions=list(decisions))


def answer(number: int, errno: int = 0, explanation: str = "", port: int = 0) -> Record:
    return record(
        ev.CommandAnswered(decision_id=number, errno=errno, explanation=explanation, port=port)
    )


class Witness:
    def __init__(self, name: str, notes: list[str], *, fails_at: int = 0) -> None:
        self._name = name
        self._notes = notes
        self._fails_at = fails_at

    def publish(self, record: Record) -> None:
        if record.seq == self._fails_at:
            raise ZeroDivisionError("by the test")
        self._notes.append(f"{self._name} {record.seq}")


# --- all of them


def test_observers_see_each_record_in_the_order_they_were_added() -> None:
    notes: list[str] = []
    observers = Observers(Witness("first", notes), Witness("second", notes))
    observers.add(Witness("third", notes))
    for seq in (1, 2):
        observers.publish(record(ev.Tick(), seq=seq))
    assert notes == ["first 1", "second 1", "third 1", "first 2", "second 2", "third 2"]


def test_an_observer_that_raises_is_dropped_and_named(caplog: pytest.LogCaptureFixture) -> None:
    notes: list[str] = []
    observers = Observers(
        Witness("first", notes), Witness("bad", notes, fails_at=2), Witness("last", notes)
    )
    for seq in (1, 2, 3):
        observers.publish(record(ev.Tick(), seq=seq))
    assert notes == [
        "first 1", "bad 1", "last 1", "first 2", "last 2", "first 3", "last 3"
    ]  # fmt: skip
    (error,) = caplog.records
    assert error.levelname == "ERROR"
    assert "Witness" in error.message
    assert "ZeroDivisionError" in caplog.text


# --- the log


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> LogObserver:
    caplog.set_level(logging.INFO)
    return LogObserver()


def test_a_command_is_logged_before_its_answer(
    log: LogObserver, caplog: pytest.LogCaptureFixture
) -> None:
    log.publish(record(ev.Tick(), decision(1), decision(2, refused="the last one")))
    log.publish(answer(1, errno.ESRCH, "no such subflow"))
    what = "demote 10.0.2.2:40002 → 10.0.9.1:443 of 1a2b3c4d"
    assert [(each.levelname, each.message) for each in caplog.records] == [
        ("INFO", f"scripted: {what}: slow"),
        ("INFO", f"scripted: {what}: slow [not done: the last one]"),
        ("WARNING", f"not done: {what}: no such subflow"),
    ]


def test_the_answer_comes_before_what_is_decided_on_it(
    log: LogObserver, caplog: pytest.LogCaptureFixture
) -> None:
    log.publish(record(ev.Tick(), decision(1)))
    again = record(ev.CommandAnswered(decision_id=1, errno=1, explanation="refused"), decision(2))
    log.publish(again)
    assert [each.levelname for each in caplog.records] == ["INFO", "WARNING", "INFO"]


def test_routine_commands_are_logged_for_debugging_only(
    log: LogObserver, caplog: pytest.LogCaptureFixture
) -> None:
    routine = SetBackup(
        token=TOKEN, local=RADIO[0], remote=RADIO[1], backup=True, reason="trial", routine=True
    )
    log.publish(record(ev.Tick(), decision(1, routine)))
    assert caplog.text == ""
    caplog.set_level(logging.DEBUG)
    log.publish(record(ev.Tick(), decision(2, routine)))
    assert "trial" in caplog.text


def test_reads_are_not_logged(log: LogObserver, caplog: pytest.LogCaptureFixture) -> None:
    for command in (RequestSample(reason="test"), ReadEndpoints(reason="test")):
        log.publish(record(ev.Tick(), decision(1, command)))
    assert caplog.text == ""


def test_a_success_is_logged_only_with_a_chosen_port(
    log: LogObserver, caplog: pytest.LogCaptureFixture
) -> None:
    log.publish(record(ev.Tick(), decision(1), decision(2, ANNOUNCE)))
    before = len(caplog.records)
    log.publish(answer(1))
    assert len(caplog.records) == before
    log.publish(answer(2, port=4711))
    assert caplog.records[-1].message == "announce 10.0.1.2: listening on port 4711"
    log.publish(answer(3, errno.ESRCH, "of an unknown decision"))
    assert len(caplog.records) == before + 1


def test_changes_of_the_daemon_s_state_are_logged(
    log: LogObserver, caplog: pytest.LogCaptureFixture
) -> None:
    for event in (
        ev.EventsLost(source="mptcp_pm"),
        ev.EventsLost(source="rtnetlink"),
        ev.EventsLost(source="mptcp_pm"),
        ev.PluginExcluded(plugin="bad", handler="alarm", error="KeyError: 1", call=1),
        ev.Paused(),
        ev.Resumed(),
    ):
        log.publish(record(event))
    lost, other, again, excluded, paused, resumed = caplog.records
    assert "mptcp_pm" in lost.message
    assert "overflow 1 " in lost.message
    assert "overflow 1 " in other.message
    assert "overflow 2 " in again.message
    assert excluded.levelname == "ERROR"
    for words in ("plugin bad", "alarm", "KeyError: 1", "reload"):
        assert words in excluded.message
    assert "mptcpd-ebpf resume" in paused.message
    assert resumed.message.startswith("resumed")


# --- statistics


def test_statistics_count_decisions_and_losses() -> None:
    statistics = Statistics()
    statistics.publish(record(ev.Tick(), decision(1), decision(2, refused="no")))
    statistics.publish(record(ev.Tick(), decision(3, RequestSample(reason="test"))))
    for source in ("mptcp_pm", "mptcp_pm", "probes"):
        statistics.publish(record(ev.EventsLost(source=source)))
    assert (statistics.decided, statistics.refused) == (3, 1)
    assert statistics.events_lost == {"mptcp_pm": 2, "probes": 1}
    assert [each.id for each in statistics.decisions] == [1, 2]  # a sample is not listed


def test_statistics_keep_the_newest_decisions() -> None:
    statistics = Statistics()
    for number in range(Statistics.REMEMBERED + 2):
        statistics.publish(record(ev.Tick(), decision(number)))
    kept = [each.id for each in statistics.decisions]
    assert kept == list(range(2, Statistics.REMEMBERED + 2))
    assert statistics.decided == Statistics.REMEMBERED + 2


def test_statistics_fill_in_the_port_that_was_chosen() -> None:
    statistics = Statistics()
    statistics.publish(record(ev.Tick(), decision(1, ANNOUNCE), decision(2)))
    statistics.publish(answer(1, port=4711))
    statistics.publish(answer(2, port=4711))
    statistics.publish(answer(9, port=4711))
    first, second = (each.command for each in statistics.decisions)
    assert isinstance(first, AnnounceAddress)
    assert first.port == 4711
    assert second == DEMOTE


# --- the recorder


def test_a_recording_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "recording"
    recorder = Recorder(file, HEAD)
    made = [record(ev.Tick(), decision(1)), record(ev.ConnectionClosed(token=TOKEN), seq=2)]
    for each in made:
        recorder.publish(each)
    # At once: a killed daemon leaves it as it is.
    with file.open("rb") as lines:
        head, records = read(lines)
        assert (head, list(records)) == (HEAD, made)
    recorder.close()


def test_a_recording_is_its_owner_s_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Recorder(tmp_path / "recording", HEAD).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "recording").stat().st_mode) == 0o600


def test_a_recording_overwrites_nothing(tmp_path: Path) -> None:
    file = tmp_path / "recording"
    file.write_text("precious")
    with pytest.raises(Failure, match=r"--record .*recording: the file exists") as caught:
        Recorder(file, HEAD)
    assert caught.value.exit_code is ExitCode.USAGE
    assert file.read_text() == "precious"
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(Failure, match="the file exists"):
        Recorder(tmp_path / "link", HEAD)


def test_a_recording_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"--record .*none/recording: No such file") as caught:
        Recorder(tmp_path / "none" / "recording", HEAD)
    assert caught.value.exit_code is ExitCode.USAGE


def test_a_recording_that_cannot_be_begun_leaves_no_file(tmp_path: Path) -> None:
    """So that the same command works once there is room."""
    file = tmp_path / "recording"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, limit[1]))
    try:
        with pytest.raises(Failure, match=r"--record .*recording: File too large") as caught:
            Recorder(file, HEAD)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert caught.value.exit_code is ExitCode.USAGE
    assert not file.exists()


def test_a_full_disk_ends_the_recording_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "recording"
    recorder, notes = Recorder(file, HEAD), list[str]()
    observers = Observers(recorder, Witness("other", notes))
    observers.publish(record(ev.Tick(), seq=1))
    fill_the_disk_of(file)
    for seq in (2, 3):
        observers.publish(record(ev.Tick(), seq=seq))
    recorder.close()
    assert notes == ["other 1", "other 2", "other 3"]
    (error,) = caplog.records
    assert error.message == (
        f"--record {file}: No space left on device; the daemon continues without it"
    )
    assert "Traceback" not in caplog.text
    with file.open("rb") as lines:
        assert len(list(read(lines)[1])) == 1


def fill_the_disk_of(file: Path) -> None:
    """What this process writes into `file` from now on fails with ENOSPC."""
    for name in os.listdir("/proc/self/fd"):
        if os.path.exists(f"/proc/self/fd/{name}") and file.samefile(f"/proc/self/fd/{name}"):
            full = os.open("/dev/full", os.O_WRONLY)
            os.dup2(full, int(name))
            os.close(full)


# --- the states of paths


def path(state: Role, remote_ip: str = "10.0.9.1", **more: Any) -> AnyCommand:
    fields = {"local_ip": "10.0.1.2", "interface": "fibre", "reason": "silent", **more}
    return ReportPath(remote_ip=remote_ip, state=state, **fields)


def published(*commands: tuple[int, AnyCommand]) -> None:
    observer = LogObserver()
    for now, command in commands:
        made = Record(seq=1, now=now, event=ev.Tick(), decisions=[decision(1, command)])
        observer.publish(made)
    observer.publish(Record(seq=1, now=10 * SECOND, event=ev.Tick(), decisions=[]))


def test_a_path_that_is_left_is_a_warning_and_its_return_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    published(
        (1, path(Role.AWAY)),
        (2, path(Role.AWAY, routine=True, probes_answered=1, probes_needed=10)),
        (3, path(Role.ACTIVE, lasted=1_500_000_000, reason="10 probes answered")),
    )
    assert [(each.levelname, each.getMessage()) for each in caplog.records] == [
        ("WARNING", "fibre (10.0.1.2 → 10.0.9.1) is away: silent"),
        ("INFO", "fibre (10.0.1.2 → 10.0.9.1) is back after 1.5 s: 10 probes answered"),
    ]


def test_a_burst_of_paths_is_one_line_and_a_summary(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    published(*[(number, path(Role.AWAY, f"10.0.9.{number}")) for number in range(1, 50)])
    assert [each.getMessage() for each in caplog.records] == [
        "fibre (10.0.1.2 → 10.0.9.1) is away: silent",
        "fibre: paths to 48 more peers are away",
    ]


def test_states_of_paths_are_no_decisions_to_count() -> None:
    statistics = Statistics()
    statistics.publish(record(ev.Tick(), decision(1, path(Role.AWAY))))
    assert (statistics.decided, statistics.decisions) == (0, [])


def test_the_memory_keeps_what_matters_in_order_and_forgets_the_oldest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Memory, "MEASUREMENTS", 3)
    memory = Memory()
    memory._records = deque(maxlen=2)
    sample = ev.Sampled(measurements=[measured(), measured()])
    asked = decision(1, RequestSample(reason="test"))
    for each in (
        record(ev.Paused(), seq=1),
        record(sample, seq=2),
        record(ev.Tick(), asked, seq=3),
        record(sample, decision(2), seq=4),
        record(ev.Resumed(), seq=5),
    ):
        memory.publish(each)
    kept = [(each.seq, type(each.event), len(each.decisions)) for each in memory.records]
    assert kept == [(4, ev.Sampled, 0), (4, ev.Tick, 1), (5, ev.Resumed, 0)]
