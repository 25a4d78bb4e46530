# SPDX-License-Identifier: BSD-3-Clause
"""The path-manager sysctl is borrowed and given back, also over a death in between."""

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
    """The test itself is in this host."""
    client = make_mptcp_lab().client
    with client.entered():
        yield client


def sysctl_in(folder: Path) -> PathManagerSysctl:
    """What a daemon has whose notes are in a subfolder of `folder`."""
    return PathManagerSysctl(folder / "run", PathManagerSetting())


def setting(host: Host) -> str:
    return host.sysctl("mptcp.pm_type")


def notes(folder: Path) -> list[Path]:
    return sorted((folder / "run").glob("*"))


def test_it_is_given_back(host: Host, tmp_path: Path) -> None:
    ours = sysctl_in(tmp_path)
    assert ours.set("userspace") == "kernel"
    assert setting(host) == "1"
    assert [note.name for note in notes(tmp_path)] == [f"{host.netns}.path-manager"]
    ours.restore()
    assert setting(host) == "0"
    assert notes(tmp_path) == []
    ours.restore()  # a second time does nothing
    assert setting(host) == "0"


def test_what_stood_there_already_is_left(host: Host, tmp_path: Path) -> None:
    host.sysctl("mptcp.pm_type", 1)
    ours = sysctl_in(tmp_path)
    assert ours.set("userspace") == "userspace"
    ours.restore()
    assert setting(host) == "1"
    assert notes(tmp_path) == []


def test_what_a_killed_one_borrowed_the_next_gives_back(host: Host, tmp_path: Path) -> None:
    sysctl_in(tmp_path).set("userspace")  # and it dies
    second = sysctl_in(tmp_path)
    assert second.set("userspace") == "kernel"
    second.restore()
    assert setting(host) == "0"
    assert notes(tmp_path) == []


def test_one_that_borrows_nothing_gives_back_what_a_killed_one_borrowed(
    host: Host, tmp_path: Path
) -> None:
    sysctl_in(tmp_path).set("userspace")
    sysctl_in(tmp_path).restore()
    assert setting(host) == "0"


def test_what_somebody_else_chose_meanwhile_stays(host: Host, tmp_path: Path) -> None:
    ours = sysctl_in(tmp_path)
    ours.set("userspace")
    host.sysctl("mptcp.pm_type", 0)
    host.sysctl("mptcp.pm_type", 1)
    ours.restore()
    # It reads as what we set, so it counts as ours.
    assert setting(host) == "0"
    ours.set("userspace")
    host.sysctl("mptcp.pm_type", 0)
    ours.restore()
    assert setting(host) == "0"
    assert notes(tmp_path) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("boot", "another"), ("netns_cookie", 1), ("content", {"before": "kernel", "ours": "x"})],
)
def test_a_note_of_another_boot_or_namespace_is_none_of_ours(
    host: Host, tmp_path: Path, field: str, value: object
) -> None:
    """An inode number returns; so a note may be of a namespace that is long gone."""
    sysctl_in(tmp_path).set("userspace")
    (note,) = notes(tmp_path)
    note.write_text(json.dumps(json.loads(note.read_text()) | {field: value}))
    ours = sysctl_in(tmp_path)
    assert ours.set("userspace") == "userspace"
    ours.restore()
    assert setting(host) == "1"
    assert notes(tmp_path) == []


@pytest.mark.parametrize("text", ["", "{}", "[]", "\0", '{"boot": 1}'])
def test_a_broken_note_is_no_note(host: Host, tmp_path: Path, text: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f"{host.netns}.path-manager").write_text(text)
    ours = sysctl_in(tmp_path)
    assert ours.set("userspace") == "kernel"
    ours.restore()
    assert setting(host) == "0"


def test_a_mode_that_this_kernel_does_not_have(host: Host, tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="does not take 'nonsense'"):
        sysctl_in(tmp_path).set("nonsense")
    assert setting(host) == "0"
    assert notes(tmp_path) == []


def test_a_folder_that_cannot_hold_the_note(host: Host, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(NotPermitted, match="set XDG_RUNTIME_DIR"):
        sysctl_in(tmp_path).set("userspace")
    assert setting(host) == "0"
