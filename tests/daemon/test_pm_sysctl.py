# SPDX-License-Identifier: BSD-3-Clause
"""The path-manager sysctl: what stood there before outlives a killed daemon and a failed change."""

import logging
from pathlib import Path

import pytest

from mptcpd_ebpf.daemon.pm_sysctl import PathManagerSysctl
from mptcpd_ebpf.kernel.errors import NotPermitted
from tests.daemon.fakes import FakeSetting


def state(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in folder.iterdir()]


def test_the_setting_is_borrowed_and_given_back(tmp_path: Path) -> None:
    setting = FakeSetting("bpf_first")
    borrowed = PathManagerSysctl(tmp_path, setting)
    assert borrowed.borrow("userspace") == "bpf_first"
    assert borrowed.borrow("kernel") == "bpf_first"
    assert setting.value == "kernel"
    borrowed.give_back()
    assert setting.value == "bpf_first"
    assert state(tmp_path) == []


def test_the_next_daemon_gives_back_what_a_killed_one_borrowed(tmp_path: Path) -> None:
    setting = FakeSetting()
    PathManagerSysctl(tmp_path, setting).borrow("userspace")
    following = PathManagerSysctl(tmp_path, setting)
    assert following.borrow("userspace") == "kernel"
    following.give_back()
    assert setting.value == "kernel"


def test_what_the_operator_set_since_stays(tmp_path: Path) -> None:
    setting = FakeSetting()
    borrowed = PathManagerSysctl(tmp_path, setting)
    borrowed.borrow("userspace")
    setting.value = "bpf_first"
    borrowed.give_back()
    assert setting.value == "bpf_first"
    assert state(tmp_path) == []


def test_a_failed_first_change_leaves_no_record(tmp_path: Path) -> None:
    setting = FakeSetting()
    setting.refuses = "userspace"
    borrowed = PathManagerSysctl(tmp_path, setting)
    with pytest.raises(NotPermitted):
        borrowed.borrow("userspace")
    assert setting.value == "kernel"
    assert state(tmp_path) == []


def test_a_failed_change_leaves_the_earlier_record(tmp_path: Path) -> None:
    """Else the value of before the first change would be lost."""
    setting = FakeSetting()
    borrowed = PathManagerSysctl(tmp_path, setting)
    borrowed.borrow("userspace")
    before = state(tmp_path)
    setting.refuses = "bpf_first"
    with pytest.raises(NotPermitted):
        borrowed.borrow("bpf_first")
    assert state(tmp_path) == before
    borrowed.give_back()
    assert setting.value == "kernel"


def test_a_setting_that_cannot_be_given_back_keeps_its_record(tmp_path: Path) -> None:
    setting = FakeSetting()
    borrowed = PathManagerSysctl(tmp_path, setting)
    borrowed.borrow("userspace")
    setting.refuses = "kernel"
    with pytest.raises(NotPermitted):
        borrowed.give_back()
    setting.refuses = None
    PathManagerSysctl(tmp_path, setting).give_back()
    assert setting.value == "kernel"


def test_a_record_that_cannot_be_written_prevents_the_change(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    setting = FakeSetting()
    with pytest.raises(NotPermitted, match="set XDG_RUNTIME_DIR"):
        PathManagerSysctl(tmp_path / "run", setting).borrow("userspace")
    assert setting.value == "kernel"


def test_use_logs_a_change_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    setting = FakeSetting()
    path_manager = PathManagerSysctl(tmp_path, setting)
    line = "new connections get the userspace path manager (was: kernel)"
    for count in (1, 1):
        path_manager.use("userspace")
        assert caplog.text.count(line) == count
    path_manager.use(None)
    assert setting.value == "kernel"
    path_manager.use("userspace")
    assert caplog.text.count(line) == 2


def test_use_that_fails_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    setting = FakeSetting()
    setting.refuses = "userspace"
    path_manager = PathManagerSysctl(tmp_path, setting)
    with pytest.raises(NotPermitted):
        path_manager.use("userspace")
    assert caplog.text == ""
    setting.refuses = None
    path_manager.use("userspace")
    assert "new connections get the userspace path manager" in caplog.text
