# SPDX-License-Identifier: BSD-3-Clause
"""The lock of a network namespace: one holder, and nothing that another user can take from it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mptcpd_ebpf.control.socket_file import SocketFile
from mptcpd_ebpf.kernel import lock
from mptcpd_ebpf.kernel.errors import NamespaceTaken, NotPermitted
from mptcpd_ebpf.kernel.lock import NamespaceLock
from mptcpd_ebpf.runtime import netns, run_folder
from tests.ordinary_user import AS_NOBODY
from tests.tree import ROOT

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run folder, which every user can look into."""
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o011)
    tmp_path.chmod(0o755)
    monkeypatch.setattr(run_folder, "SYSTEM", tmp_path / "run")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return tmp_path / "run"


def test_a_second_holder_is_refused_and_nothing_stays(folder: Path) -> None:
    assert lock.holder() is None
    with NamespaceLock():
        held = lock.holder()
        assert held is not None
        assert (held[0], held[2]) == (os.getpid(), os.geteuid())
        with pytest.raises(NamespaceTaken, match=rf"process {os.getpid()} "), NamespaceLock():
            pass
        assert [file.name for file in folder.iterdir()] == [f"{netns.inode()}.lock"]
    assert lock.holder() is None
    assert list(folder.iterdir()) == []


def test_a_killed_holder_leaves_a_file_and_no_lock(folder: Path) -> None:
    script = (
        "import os, sys\nfrom pathlib import Path\n"
        "from mptcpd_ebpf.kernel.lock import NamespaceLock\n"
        "from mptcpd_ebpf.runtime import run_folder\n"
        "run_folder.SYSTEM = Path(sys.argv[1])\n"
        "NamespaceLock().__enter__()\nos.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, folder], cwd=ROOT, check=False)
    assert (folder / f"{netns.inode()}.lock").exists()
    assert lock.holder() is None
    with NamespaceLock():
        pass


STRANGER = """
import fcntl, os, socket, sys
file, folder = sys.argv[1:]
socket.socket(socket.AF_UNIX).bind("\\0mptcpd-ebpf/lock")
for attempt in (
    lambda: fcntl.flock(os.open(file, os.O_RDONLY), fcntl.LOCK_SH | fcntl.LOCK_NB),
    lambda: os.open(folder + "/new.lock", os.O_CREAT | os.O_WRONLY),
    lambda: os.unlink(file),
):
    try:
        attempt()
        print("done")
    except PermissionError:
        print("refused")
print(os.path.exists(file), flush=True)
sys.stdin.read()
"""


@needs_root
def test_another_user_can_neither_take_nor_remove_the_lock(folder: Path) -> None:
    run_folder.make()
    file = folder / f"{netns.inode()}.lock"
    os.close(run_folder.open_file(file, os.O_CREAT | os.O_RDWR))
    argv = [*AS_NOBODY, "/usr/bin/python3", "-I", "-c", STRANGER, str(file), str(folder)]
    with subprocess.Popen(
        argv, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/"
    ) as stranger:
        assert stranger.stdout is not None
        assert [stranger.stdout.readline().strip() for _ in range(4)] == ["refused"] * 3 + ["True"]
        with NamespaceLock():
            held = lock.holder()
            assert held is not None
            assert held[0] == os.getpid()


@needs_root
def test_a_folder_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "own", lambda: tmp_path / "theirs")
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 65534, 65534)
    with pytest.raises(NotPermitted, match="only root and the daemon's user"), NamespaceLock():
        pass


@needs_root
def test_a_file_that_root_makes_belongs_to_the_folders_owner(folder: Path) -> None:
    run_folder.make()
    os.chown(folder, 1234, 1234)
    with NamespaceLock():
        control = SocketFile(str(folder / "x.sock"))
        for file in folder.iterdir():
            assert file.stat().st_uid == 1234
            assert file.stat().st_mode & 0o777 == 0o600
        control.close()


def test_a_link_is_not_followed(folder: Path, tmp_path: Path) -> None:
    run_folder.make()
    (folder / f"{netns.inode()}.lock").symlink_to(tmp_path / "target")
    with pytest.raises(NotPermitted), NamespaceLock():
        pass
    assert not (tmp_path / "target").exists()


@needs_root
def test_a_file_that_the_folders_owner_has_linked_there_is_not_given_to_him(
    folder: Path, tmp_path: Path
) -> None:
    run_folder.make()
    (tmp_path / "precious").touch()
    os.link(tmp_path / "precious", folder / "x.kind")
    os.chown(folder, 1234, 1234)
    os.close(run_folder.open_file(folder / "x.kind", os.O_RDWR | os.O_CREAT))
    assert (tmp_path / "precious").stat().st_uid == 0
