# SPDX-License-Identifier: BSD-3-Clause
"""The options that several commands share: times, and filters that are no filters."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mptcpd_ebpf.cli._filters import duration_or_time

PROGRAM = str(Path(sys.executable).parent / "mptcpd-ebpf")


@pytest.fixture(autouse=True)
def utc() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("text", "ago"), [("90s", 90), ("15m", 900), ("2h", 7200), ("7d", 604_800), ("0s", 0)]
)
def test_a_duration_is_so_long_ago(text: str, ago: int) -> None:
    assert duration_or_time(text) == pytest.approx(time.time() - ago, abs=60)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2026-01-31 03:25", 1_769_829_900),
        ("2026-01-31T03:25:07", 1_769_829_907),
        ("2026-01-31", 1_769_817_600),
    ],
)
def test_a_date_is_a_local_time(text: str, at: int) -> None:
    assert duration_or_time(text) == at


def test_a_time_is_today() -> None:
    assert time.gmtime(duration_or_time("03:25"))[:5] == (*time.gmtime()[:3], 3, 25)


@pytest.mark.parametrize("text", ["", "h", "yesterday", "15", "-3h", "25:00"])
def test_another_text_is_a_mistake(text: str) -> None:
    with pytest.raises(ValueError, match="give a duration such as"):
        duration_or_time(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("history", "xyz"), "'xyz' is no token: give the first of its eight hexadecimal digits"),
        (("history", "--since", "soon"), "give a duration such as"),
        (("ls", "--address", "fibre"), "'fibre' does not appear to be an IPv4 or IPv6"),
        (("paths", "--netns", "../x"), "is not a name: give a name that 'ip netns' lists"),
        (("monitor", "--netns", "4194305"), "No such file or directory; give a name"),
    ],
)
def test_a_mistake_is_one_line_and_exits_64(arguments: tuple[str, ...], message: str) -> None:
    ended = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (64, "")
    assert message in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_journal_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    ended = subprocess.run(
        [PROGRAM, "history", "--journal", str(tmp_path / "none.db")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 69
    assert ended.stderr.startswith("mptcpd-ebpf: no journal: ")
    assert ended.stderr.count("\n") == 1
