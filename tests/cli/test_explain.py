# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf explain``: which connection, which path, and since when."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mptcpd_ebpf.cli import explain
from mptcpd_ebpf.control.schema import StoryEntry
from mptcpd_ebpf.runtime.exit_codes import Failure
from tests.core.scenario import TOKEN

TEXT = f"{TOKEN:08x}"


def run(recording: Path, *arguments: str) -> Result:
    return CliRunner().invoke(explain.command, [*arguments, "--recording", str(recording)])


@pytest.mark.parametrize("token", [TEXT, TEXT[:3], TEXT.upper(), f"0x{TEXT}"])
def test_a_token_may_be_written_in_any_way_and_shortened(recording: Path, token: str) -> None:
    shown = run(recording, token).output
    assert "established (client side)" in shown
    assert "create subflow" in shown
    assert "configured" not in shown


def test_a_path_is_an_interface_or_an_address(recording: Path) -> None:
    by_name, by_address = (
        json.loads(run(recording, "--path", path, "--json").output)["entries"]
        for path in ("radio", "10.0.2.2")
    )
    assert by_name == by_address
    assert [each["kind"] for each in by_name] == ["decision"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ffff"], "nothing is known of connection ffff"),
        (["--path", "wlan9"], "nothing is known of wlan9"),
    ],
)
def test_what_is_not_known_is_said(recording: Path, arguments: list[str], message: str) -> None:
    error = run(recording, *arguments).exception
    assert isinstance(error, Failure)
    assert message in str(error)


def test_an_ambiguous_prefix_names_the_connections() -> None:
    def entry(token: str) -> StoryEntry:
        return {
            "t": 0.0,
            "kind": "connection",
            "token": token,
            "path": None,
            "local_ip": None,
            "text": "",
            "outcome": None,
            "data": {},
        }

    entries = [entry("ab000001"), entry("ab000002"), entry("cd000003")]
    with pytest.raises(Failure, match="2 connections begin with ab: ab000001, ab000002"):
        explain._whole_token(entries, "ab")
    assert explain._whole_token(entries, "c") == "cd000003"


def test_since_counts_from_the_end_of_a_recording(recording: Path) -> None:
    assert "established (client side)" in run(recording, "--since", "1s").output
    assert "write it as 90s" in run(recording, "--since", "soon").output
