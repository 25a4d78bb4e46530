# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf replay``: recordings that cannot be read, and how differences are shown."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from mptcpd_ebpf.cli import replay
from mptcpd_ebpf.core.commands import Cause, Decision, DestroySubflow
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure
from tests.core.scenario import RADIO, TOKEN


def run(*arguments: object) -> Result:
    return CliRunner().invoke(replay.command, [str(each) for each in arguments])


def failure(*arguments: object) -> Failure:
    error = run(*arguments).exception
    assert isinstance(error, Failure), error
    return error


def test_an_equal_replay_says_so(recording: Path) -> None:
    assert run(recording).output.endswith("decisions: all as recorded\n")


@pytest.mark.parametrize(
    ("line", "old", "new", "message"),
    [
        (1, b'"schema":1', b'"schema":9', "line 1: schema 9"),
        (1, b"{", b"[", "line 1: not the head of a recording"),
        (3, b'"seq":2', b'"seq":7', "line 3: event 7 where 2 was expected"),
        (3, b'{"seq"', b'{"sEq"', "line 3: not a record"),
    ],
)
def test_a_bad_file_is_refused_with_the_line(
    recording: Path, line: int, old: bytes, new: bytes, message: str
) -> None:
    lines = recording.read_bytes().splitlines(keepends=True)
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    recording.write_bytes(b"".join(lines))
    error = failure(recording)
    assert message in str(error)
    assert error.exit_code == ExitCode.CHECK_FAILED


@pytest.mark.parametrize("kept", [0, 1])
def test_a_truncated_file_is_refused_with_the_line(recording: Path, kept: int) -> None:
    lines = recording.read_bytes().splitlines(keepends=True)
    recording.write_bytes(b"".join(lines[:kept]) + lines[kept][:20])
    assert f"line {kept + 1}: " in str(failure(recording))


def test_another_option_shows_the_differences_with_their_path_and_cause(recording: Path) -> None:
    shown = run(recording, "--preset=backup").output.splitlines()
    assert [line[0] for line in shown] == ["-", "+", "-", "+", "="]
    assert "radio  adaptive: create subflow" in shown[0]
    assert "radio  adaptive: create backup subflow" in shown[1]
    assert "(ConnectionEstablished, rule connection_established)" in shown[1]
    assert shown[2:] == [
        "- in the recorded run only: 1 create subflow",
        "+ in the replayed run only: 1 create backup subflow",
        "= in both: 0",
    ]


def test_the_differences_as_json_are_one_object(recording: Path) -> None:
    shown = json.loads(run(recording, "--preset=backup", "--json").output)
    assert shown["options"] == {"preset": "backup"}
    assert [each["only"] for each in shown["differences"]] == ["recorded", "replayed"]
    assert {each["token"] for each in shown["differences"]} == {f"{TOKEN:08x}"}
    assert shown["faults"] == []


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--set=presett=bulk"], "did you mean 'preset'", ExitCode.CONFIG),
        (["--set=preset=bulky"], "none of auto, interactive, bulk", ExitCode.CONFIG),
        (["--plugin=adaptve"], "plugin adaptve: there is none of that name", ExitCode.CONFIG),
        (["--set=preset"], "it is KEY=VALUE", ExitCode.USAGE),
    ],
)
def test_wrong_options_are_refused_as_in_a_configuration(
    recording: Path, arguments: list[str], message: str, code: ExitCode
) -> None:
    error = failure(recording, *arguments)
    assert message in str(error)
    assert error.exit_code == code


def test_equal_differences_are_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    cause = Cause(seq=1, event="Sampled", rule="sampled")
    command = DestroySubflow(token=TOKEN, local=RADIO[0], remote=RADIO[1], reason="slow")
    made = Decision(id=1, at=0, plugin="test", cause=cause, command=command)
    again = replace(made, command=replace(command, reason="still slow"))
    replay._print_text(
        [
            replay.Difference("replayed", 1.0, "radio", made),
            replay.Difference("recorded", 1.5, "radio", made),
            replay.Difference("replayed", 2.0, "radio", again),
        ],
        equal=0,
    )
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in shown[:3]] == [
        ["+", "1.000"],
        ["+", "and"],
        ["-", "1.500"],
    ]
    assert shown[1].endswith("and 1 more until 2.000")
    assert shown[4] == "+ in the replayed run only: 2 destroy"
