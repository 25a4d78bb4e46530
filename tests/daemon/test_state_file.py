# SPDX-License-Identifier: BSD-3-Clause
"""State files: what one daemon writes, the next one in the same namespace and boot reads."""

import json
from pathlib import Path

import pytest

from mptcpd_ebpf.daemon.state_file import StateFile
from mptcpd_ebpf.kernel.errors import NotPermitted
from mptcpd_ebpf.runtime import netns


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One that does not exist yet."""
    return tmp_path / "run"


def written(folder: Path) -> Path:
    """The one file in it."""
    (file,) = folder.iterdir()
    return file


def test_what_is_written_is_read_by_the_next_daemon(folder: Path) -> None:
    assert StateFile(folder, "kind", list[int]).read() is None
    StateFile(folder, "kind", list[int]).write([1, 2])
    assert StateFile(folder, "kind", list[int]).read() == [1, 2]
    assert written(folder).name == f"{netns.inode()}.kind"


def test_a_second_record_replaces_the_first(folder: Path) -> None:
    file = StateFile(folder, "kind", list[int])
    file.write([1])
    file.write([2])
    assert file.read() == [2]
    assert len(list(folder.iterdir())) == 1  # no temporary file stays


def test_kinds_are_files_of_their_own(folder: Path) -> None:
    StateFile(folder, "one", int).write(1)
    StateFile(folder, "two", int).write(2)
    assert StateFile(folder, "one", int).read() == 1


def test_a_removed_record_is_none(folder: Path) -> None:
    file = StateFile(folder, "kind", list[int])
    file.remove()  # there is none
    file.write([1])
    file.remove()
    assert file.read() is None
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("boot", "another"), ("netns_cookie", 1), ("content", "not a list"), ("content", ["x"])],
)
def test_a_record_of_another_boot_namespace_or_type_is_none(
    folder: Path, field: str, value: object
) -> None:
    file = StateFile(folder, "kind", list[int])
    file.write([1])
    path = written(folder)
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    assert file.read() is None


@pytest.mark.parametrize("text", ["", "{}", "[]", "\0", '{"boot": 1}'])
def test_a_broken_file_is_none(folder: Path, text: str) -> None:
    file = StateFile(folder, "kind", list[int])
    file.write([1])
    written(folder).write_text(text)
    assert file.read() is None


def test_a_folder_that_cannot_hold_the_file_is_named_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(NotPermitted, match=f"{tmp_path / 'run'}.*set XDG_RUNTIME_DIR"):
        StateFile(tmp_path / "run", "kind", list[int]).write([1])


def test_a_write_that_fails_leaves_the_earlier_record(folder: Path) -> None:
    file = StateFile(folder, "kind", list[int])
    file.write([1])
    (folder / f"{netns.inode()}.kind.new").mkdir()
    with pytest.raises(NotPermitted):
        file.write([2])
    assert file.read() == [1]
