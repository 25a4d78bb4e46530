# SPDX-License-Identifier: BSD-3-Clause
"""The path-manager sysctl is set and restored, also after a daemon was killed in between."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mptcpd_ebpf.daemon.pm_sysctl import PathManagerSysctl
from mptcpd_ebpf.kernel.errors import KernelError, NotPermitted
from mptcpd_ebpf.kernel.sysctl import PathManagerSetting
from mptcpd_ebpf.lab import Host, Lab


@pytest.fixture
def host(
    make_mptcp_lab: Callable[..., Lab],
) -> Iterator[Host]:
    """The test runs in the namespace of this host."""
    client = make_mptcp_lab().client
    with client.entered():
        yield client


def sysctl_in(folder: Path) -> PathManagerSysctl:
    """That of a daemon whose state files are in a subfolder of `folder`."""
    return PathManagerSysctl(folder / "run", PathManagerSetting())


def setting(host: Host) -> str:
    return host.sysctl("mptcp.pm_type")


def state_files(folder: Path) -> list[Path]:
    return sorted((folder / "run").glob("*"))


def test_it_is_restored(host: Host, tmp_path: Path) -> None:
    sysctl = sysctl_in(tmp_path)
    assert sysctl.set("userspace") == "kernel"
    assert setting(host) == "1"
    assert [file.name for file in state_files(tmp_path)] == [f"{host.netns}.path-manager"]
    sysctl.restore()
    assert setting(host) == "0"
    assert state_files(tmp_path) == []
    sysctl.restore()  # a second time does nothing
    assert setting(host) == "0"


def test_a_value_that_is_set_already_stays(host: Host, tmp_path: Path) -> None:
    host.sysctl("mptcp.pm_type", 1)
    sysctl = sysctl_in(tmp_path)
    assert sysctl.set("userspace") == "userspace"
    sysctl.restore()
    assert setting(host) == "1"
    assert state_files(tmp_path) == []


def test_the_next_daemon_restores_what_a_killed_one_set(host: Host, tmp_path: Path) -> None:
    sysctl_in(tmp_path).set("userspace")  # killed
    second = sysctl_in(tmp_path)
    assert second.set("userspace") == "kernel"
    second.restore()
    assert setting(host) == "0"
    assert state_files(tmp_path) == []


def test_a_daemon_that_sets_nothing_restores_what_a_killed_one_set(
    host: Host, tmp_path: Path
) -> None:
    sysctl_in(tmp_path).set("userspace")
    sysctl_in(tmp_path).restore()
    assert setting(host) == "0"


def test_a_value_that_another_program_set_meanwhile_stays(host: Host, tmp_path: Path) -> None:
    sysctl = sysctl_in(tmp_path)
    sysctl.set("userspace")
    host.sysctl("mptcp.pm_type", 0)
    host.sysctl("mptcp.pm_type", 1)
    sysctl.restore()
    # It is the value that the daemon set, so it counts as the daemon's.
    assert setting(host) == "0"
    sysctl.set("userspace")
    host.sysctl("mptcp.pm_type", 0)
    sysctl.restore()
    assert setting(host) == "0"
    assert state_files(tmp_path) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("boot", "another"), ("netns_cookie", 1), ("content", {"before": "kernel", "ours": "x"})],
)
def test_a_state_file_of_another_boot_or_namespace_is_ignored(
    host: Host, tmp_path: Path, field: str, value: object
) -> None:
    """Inode numbers are used again, so a file may belong to a namespace that does not exist."""
    sysctl_in(tmp_path).set("userspace")
    (file,) = state_files(tmp_path)
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    sysctl = sysctl_in(tmp_path)
    assert sysctl.set("userspace") == "userspace"
    sysctl.restore()
    assert setting(host) == "1"
    assert state_files(tmp_path) == []


@pytest.mark.parametrize("text", ["", "{}", "[]", "\0", '{"boot": 1}'])
def test_a_broken_state_file_is_ignored(host: Host, tmp_path: Path, text: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f"{host.netns}.path-manager").write_text(text)
    sysctl = sysctl_in(tmp_path)
    assert sysctl.set("userspace") == "kernel"
    sysctl.restore()
    assert setting(host) == "0"


def test_a_path_manager_that_the_kernel_does_not_have_is_an_error(
    host: Host, tmp_path: Path
) -> None:
    with pytest.raises(KernelError, match="does not take 'nonsense'"):
        sysctl_in(tmp_path).set("nonsense")
    assert setting(host) == "0"
    assert state_files(tmp_path) == []


def test_a_folder_that_cannot_hold_the_state_file_is_an_error(host: Host, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(NotPermitted, match="set XDG_RUNTIME_DIR"):
        sysctl_in(tmp_path).set("userspace")
    assert setting(host) == "0"
