# SPDX-License-Identifier: BSD-3-Clause
"""The path-manager sysctl: the value before survives a killed daemon and a failed change."""

import logging
from pathlib import Path

import pytest

from mptcpd_ebpf.daemon.pm_sysctl import PathManagerSysctl
from mptcpd_ebpf.kernel.errors import NotPermitted
from tests.daemon.fakes import FakeSetting


def state(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in folder.iterdir()]


def test_the_value_before_is_restored(tmp_path: Path) -> None:
    setting = FakeSetting("bpf_first")
    sysctl = PathManagerSysctl(tmp_path, setting)
    assert sysctl.set("userspace") == "bpf_first"
    assert sysctl.set("kernel") == "bpf_first"
    assert setting.value == "kernel"
    sysctl.restore()
    assert setting.value == "bpf_first"
    assert state(tmp_path) == []


def test_the_next_daemon_restores_what_a_killed_one_set(tmp_path: Path) -> None:
    setting = FakeSetting()
    PathManagerSysctl(tmp_path, setting).set("userspace")
    following = PathManagerSysctl(tmp_path, setting)
    assert following.set("userspace") == "kernel"
    following.restore()
    assert setting.value == "kernel"


def test_what_the_operator_set_meanwhile_stays(tmp_path: Path) -> None:
    setting = FakeSetting()
    sysctl = PathManagerSysctl(tmp_path, setting)
    sysctl.set("userspace")
    setting.value = "bpf_first"
    sysctl.restore()
    assert setting.value == "bpf_first"
    assert state(tmp_path) == []


def test_a_failed_first_change_leaves_no_record(tmp_path: Path) -> None:
    setting = FakeSetting()
    setting.refuses = "userspace"
    sysctl = PathManagerSysctl(tmp_path, setting)
    with pytest.raises(NotPermitted):
        sysctl.set("userspace")
    assert setting.value == "kernel"
    assert state(tmp_path) == []


def test_a_failed_change_leaves_the_earlier_record(tmp_path: Path) -> None:
    """Else the value of before the first change would be lost."""
    setting = FakeSetting()
    sysctl = PathManagerSysctl(tmp_path, setting)
    sysctl.set("userspace")
    before = state(tmp_path)
    setting.refuses = "bpf_first"
    with pytest.raises(NotPermitted):
        sysctl.set("bpf_first")
    assert state(tmp_path) == before
    sysctl.restore()
    assert setting.value == "kernel"


def test_a_value_that_cannot_be_restored_keeps_its_record(tmp_path: Path) -> None:
    setting = FakeSetting()
    sysctl = PathManagerSysctl(tmp_path, setting)
    sysctl.set("userspace")
    setting.refuses = "kernel"
    with pytest.raises(NotPermitted):
        sysctl.restore()
    setting.refuses = None
    PathManagerSysctl(tmp_path, setting).restore()
    assert setting.value == "kernel"


def test_a_record_that_cannot_be_written_prevents_the_change(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    setting = FakeSetting()
    with pytest.raises(NotPermitted, match="set XDG_RUNTIME_DIR"):
        PathManagerSysctl(tmp_path / "run", setting).set("userspace")
    assert setting.value == "kernel"


def test_use_logs_a_change_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    setting = FakeSetting()
    path_manager = PathManagerSysctl(tmp_path, setting)
    line = "new connections use the userspace path manager until the daemon stops (before: kernel)"
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
    assert "new connections use the userspace path manager" in caplog.text
