# SPDX-License-Identifier: BSD-3-Clause
"""What a daemon takes of a namespace and gives back: lock, sysctl; and who else is there."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mptcpd_ebpf.kernel import counters, lock, others, sysctl
from mptcpd_ebpf.kernel.errors import NamespaceTaken, NotPermitted
from mptcpd_ebpf.kernel.lock import NamespaceLock
from mptcpd_ebpf.kernel.pm_events import PmEvents
from mptcpd_ebpf.kernel.sysctl import PathManagerSetting
from mptcpd_ebpf.lab import Host, Lab
from mptcpd_ebpf.runtime import netns
from tests.netns.mptcp_peers import connected, peer
from tests.waiting import until


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture
def inside(lab: Lab) -> Iterator[Host]:
    with lab.client.entered():
        yield lab.client


def test_the_namespace_is_the_threads(lab: Lab) -> None:
    assert netns.inode() == os.stat("/proc/self/ns/net").st_ino
    with lab.client.entered():
        assert netns.inode() == lab.client.netns
    assert netns.inode_of(os.getpid()) == netns.inode()
    assert netns.inode_of(2**22) is None


def test_one_holder_per_namespace(lab: Lab) -> None:
    with lab.client.entered(), NamespaceLock():
        held = lock.holder()
        assert held is not None
        assert (held[0], held[2]) == (os.getpid(), 0)
        with (
            pytest.raises(NamespaceTaken, match=rf"process {os.getpid()} \(") as caught,
            NamespaceLock(),
        ):
            pass
        assert caught.value.pid == os.getpid()
        with lab.server.entered(), NamespaceLock():
            assert lock.holder() is not None
    with lab.client.entered():
        assert lock.holder() is None
        with NamespaceLock():
            pass


def test_a_killed_holder_leaves_no_lock(inside: Host) -> None:
    script = (
        "from mptcpd_ebpf.kernel.lock import NamespaceLock\n"
        "with NamespaceLock():\n"
        "    print('held', flush=True)\n"
        "    import signal; signal.pause()\n"
    )
    with inside.popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(NamespaceTaken) as caught, NamespaceLock():
            pass
        assert caught.value.pid == holder.pid
        holder.kill()
        holder.wait()
    with NamespaceLock():
        pass


def test_the_path_manager_is_chosen_and_put_back(inside: Host) -> None:
    setting = PathManagerSetting()
    assert setting.current() == "kernel"
    assert setting.set("userspace") == "kernel"
    assert inside.sysctl("mptcp.pm_type") == "1"
    assert setting.current() == "userspace"
    assert setting.set("userspace") == "userspace"
    assert setting.restore()
    assert inside.sysctl("mptcp.pm_type") == "0"
    assert not setting.restore(), "only once"


def test_what_someone_else_changed_is_left_alone(inside: Host) -> None:
    inside.sysctl("mptcp.pm_type", 1)
    setting = PathManagerSetting()
    setting.set("kernel")
    inside.sysctl("mptcp.pm_type", 1)
    assert not setting.restore()
    setting.set("userspace")
    assert not setting.restore(), "it was so before"
    assert inside.sysctl("mptcp.pm_type") == "1"


def test_a_sysctl_that_cannot_be_written(inside: Host) -> None:
    def unprivileged() -> str:
        os.setresuid(65534, 65534, 65534)
        try:
            PathManagerSetting().set("userspace")
        except NotPermitted as error:
            return str(error)
        return ""

    words = inside.call(unprivileged)
    assert re.search(r"/proc/sys/net/mptcp/(path_manager|pm_type)\b", words)
    assert re.search(r"sysctl -w net\.mptcp\.(path_manager=userspace|pm_type=1)", words)

    script = (
        "mount -t proc -o ro proc /proc && exec "
        f"{sys.executable} -c 'from mptcpd_ebpf.kernel.sysctl import PathManagerSetting\n"
        'PathManagerSetting().set("userspace")\''
    )
    done = inside.run(["unshare", "--mount", "sh", "-c", script], check=False)
    assert "is read-only, as in a container" in done.stderr
    assert inside.sysctl("mptcp.pm_type") == "0"


def test_settings_are_read(inside: Host) -> None:
    inside.sysctl("mptcp.stale_loss_cnt", 7)
    assert sysctl.read_all()["stale_loss_cnt"] == "7"
    assert sysctl.enabled()
    inside.sysctl("mptcp.enabled", 0)
    assert not sysctl.enabled()


def test_counters_are_the_namespaces_own(lab: Lab) -> None:
    with peer(lab.client) as client, peer(lab.server) as server:
        with connected(client, server, lab.paths[0].server_ip):
            pass
        with lab.client.entered():
            assert counters.read()["MPCapableSYNTX"] == 1
            assert counters.read()["MPCapableSYNRX"] == 0
        with lab.server.entered():
            assert counters.read()["MPCapableSYNRX"] == 1


def test_another_listener_is_named(inside: Host) -> None:
    with PmEvents.open():
        assert others.others() == [], "we are no other"
        with inside.popen(["ip", "mptcp", "monitor"], stdout=subprocess.DEVNULL) as monitor:
            (manager,) = until(others.others, "the monitor is found")
            assert (manager.pid, manager.comm, manager.subscribed) == (monitor.pid, "ip", True)
            monitor.terminate()
            monitor.wait()
        assert others.others() == []


def test_a_known_manager_is_named_by_its_command(inside: Host, tmp_path: Path) -> None:
    """mptcpd can set endpoints without receiving events."""
    program = tmp_path / "mptcpd"
    program.symlink_to("/usr/bin/sleep")
    with inside.popen([str(program), "60"]) as impostor:
        (manager,) = until(others.others, "mptcpd is found")
        assert (manager.pid, manager.comm, manager.subscribed) == (impostor.pid, "mptcpd", False)
        assert "systemctl disable" in manager.advice
        impostor.kill()
