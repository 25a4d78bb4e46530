# SPDX-License-Identifier: BSD-3-Clause
"""A lab leaves nothing behind, however it ends, and does not touch other labs."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path as FilePath

import pytest

from mptcpd_ebpf.lab import (
    Bottleneck,
    Host,
    Lab,
    LabError,
    Path,
    RequestResponse,
    UnavailableError,
    namespaces,
)
from tests.ordinary_user import AS_NOBODY
from tests.waiting import SLOWNESS, runs, until

HOLD = """
import signal
from mptcpd_ebpf.lab import Lab, Path, RequestResponse
with Lab([Path(delay_ms=5)], backend="nfqueue") as lab:
    child = lab.client.popen(["sleep", "600"])
    lab.start(RequestResponse())
    print(lab.client.name, child.pid, lab.backend.emulation.process.pid, flush=True)
    signal.pause()
"""


class Holder:
    """A process of its own that holds a lab."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.process.stdout is not None
        name, child, emulator = self.process.stdout.readline().split()
        self.name, self.child, self.emulator = name, int(child), int(emulator)
        self.prefix = name.removesuffix("client")

    def end(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        self.process.wait(20 * SLOWNESS)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def namespaces(self) -> list[str]:
        return [n for n in os.listdir(namespaces.RUN_NETNS) if n.startswith(self.prefix)]


def test_ctrl_c_ends_everything() -> None:
    holder = Holder()
    assert len(holder.namespaces()) == 4
    holder.end(signal.SIGINT)
    assert holder.namespaces() == []
    until(lambda: not runs(holder.child), "the process on the client ends")
    until(lambda: not runs(holder.emulator), "the emulator ends")


def test_the_next_lab_removes_only_what_a_killed_owner_left() -> None:
    killed, alive = Holder(), Holder()
    try:
        assert len(killed.namespaces()) == 4
        assert runs(killed.child)
        killed.end(signal.SIGKILL)
        until(lambda: not runs(killed.emulator), "the emulator ends with its lab")
        with Lab():
            assert killed.namespaces() == []
            until(lambda: not runs(killed.child), "the left process ends")
            assert len(alive.namespaces()) == 4
            assert runs(alive.child)
    finally:
        alive.end(signal.SIGINT)


def test_sigterm_takes_the_demo_s_lab_down(tmp_path: FilePath) -> None:
    argv = [sys.executable, "-c", "from mptcpd_ebpf.cli import main; main()", "demo"]
    # This module is found before the real one, which only the picture needs.
    (tmp_path / "matplotlib.py").write_text("raise RuntimeError('not on this machine')")
    with subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.DEVNULL) as demo:
        prefix = f"{namespaces.PREFIX}-{demo.pid}-"

        def there() -> list[str]:
            everyone = FilePath(namespaces.RUN_NETNS)
            return [path.name for path in everyone.glob(f"{prefix}*")]

        until(lambda: any(name.endswith("client") for name in there()), "the demo has a lab", 30)
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(30 * SLOWNESS) == 128 + signal.SIGTERM
        assert there() == []


def test_a_failing_test_takes_its_lab_down() -> None:
    names = []
    with suppress(ZeroDivisionError), Lab() as lab:
        names = [host.name for host in (lab.client, lab.server)]
        raise ZeroDivisionError
    assert names
    assert not any(os.path.exists(namespaces.path_of(name)) for name in names)


def test_two_labs_do_not_affect_each_other() -> None:
    with Lab([Path(delay_ms=1)]) as one, Lab([Path(delay_ms=1)]) as other:
        assert one.client.netns != other.client.netns
        one.paths[0].blackhole()
        done = other.client.run(["ping", "-c", "1", "-W", "1", other.paths[0].server_ip])
        assert done.returncode == 0


def interfaces(host: Host) -> set[str]:
    return set(host.call(lambda: [name for _, name in socket.if_nameindex()]))


def test_a_lab_has_no_link_to_the_outside() -> None:
    paths = [Path(name="fibre"), Path(name="lte", bottleneck="isp")]
    with Lab(paths, bottlenecks=[Bottleneck(name="isp")]) as lab:
        inside = {label: interfaces(host) for label, host in lab.hosts.items()}
        inside |= {label: interfaces(host) for label, host in lab.routers.items()}
        # Both ends of each veth pair are in the lab, and there is nothing else.
        assert {label: names - {"lo"} for label, names in inside.items()} == {
            "client": {"fibre", "lte"},
            "server": {"fibre", "isp"},
            "router-fibre": {"near", "far"},
            "router-lte": {"near", "far"},
            "neck-isp-near": {"lte", "far"},
            "neck-isp-far": {"near", "far"},
        }
        done = lab.client.run(["ping", "-c", "1", "-W", "1", "192.0.2.1"], check=False)
        assert done.returncode != 0


def test_the_emulator_ends_with_the_lab() -> None:
    with Lab([Path(delay_ms=1)], backend="nfqueue") as lab:
        process = lab.backend.emulation.process  # type: ignore[attr-defined]
        assert runs(process.pid)
    assert process.returncode == 0


def test_traffic_that_still_runs_ends_with_the_lab() -> None:
    with Lab([Path(delay_ms=1)]) as lab:
        running = lab.start(RequestResponse())
        assert runs(running.pid)
    assert not runs(running.pid)


def test_a_host_runs_callables_commands_and_threads() -> None:
    with Lab() as lab:
        assert lab.client.call(lambda: os.stat("/proc/self/ns/net").st_ino) == lab.client.netns
        assert namespaces.inode(lab.client.name) == lab.client.netns
        here = os.stat("/proc/thread-self/ns/net").st_ino
        with lab.server.entered():
            assert os.stat("/proc/thread-self/ns/net").st_ino == lab.server.netns
        assert os.stat("/proc/thread-self/ns/net").st_ino == here
        with pytest.raises(KeyError) as caught:
            lab.client.call(dict[str, int]().__getitem__, "missing")
        assert "in the child process" in caught.value.__notes__[0]
        with pytest.raises(LabError, match=r"no-such-tool: no such command"):
            lab.client.run(["no-such-tool"])
        with pytest.raises(LabError, match=r"exit 3 on client: oh"):
            lab.client.run(["sh", "-c", "echo oh >&2; exit 3"])
        with pytest.raises(LabError, match="ended without an answer"):
            lab.client.call(os._exit, 7)
        # /sys is still the machine's: `ip netns exec` would have mounted another.
        assert lab.client.run(["stat", "-c", "%d", "/sys"]).stdout == (
            f"{os.stat('/sys').st_dev}\n"
        )


def test_hosts_start_with_mptcp_and_without_endpoints() -> None:
    with Lab() as lab:
        assert lab.client.sysctl("mptcp.enabled") == "1"
        assert lab.client.run(["ip", "mptcp", "endpoint"]).stdout == ""


def test_the_pytest_plugin_imports_nothing_for_other_tests(tmp_path: FilePath) -> None:
    test = tmp_path / "test_stranger.py"
    test.write_text(
        "import sys\n"
        "def test_nothing_of_ours_is_loaded():\n"
        "    loaded = {n for n in sys.modules if n.startswith('mptcpd_ebpf')}\n"
        "    assert loaded <= {'mptcpd_ebpf', 'mptcpd_ebpf.lab', 'mptcpd_ebpf.lab.pytest_plugin'}\n"
        "    assert 'msgspec' not in sys.modules and 'pyroute2' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.ordinary_user
def test_without_root_the_fixture_skips_with_the_reason(tmp_path: FilePath) -> None:
    os.chmod(tmp_path, 0o777)
    for parent in list(tmp_path.parents)[:2]:
        os.chmod(parent, 0o755)
    test = tmp_path / "test_lab.py"
    test.write_text("def test_lab(mptcp_lab):\n    pass\n")
    run = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", str(test)]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([*AS_NOBODY, *run], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert "no lab here: a lab needs root" in done.stdout
    (tmp_path / "pytest.ini").write_text("[pytest]\nmptcp_lab_required = true\n")
    done = subprocess.run([*AS_NOBODY, *run], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert "a lab needs root" in done.stdout


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("ip", "ip: no such command; install Debian's package iproute2"),
        ("tc", "tc: no such command; install Debian's package iproute2"),
        (
            "iptables-restore",
            "iptables-restore: no such command; install Debian's package iptables",
        ),
    ],
)
def test_a_missing_tool_makes_a_lab_unavailable(
    tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch, missing: str, words: str
) -> None:
    for tool in {"ip", "tc", "iptables-restore"} - {missing}:
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / tool).symlink_to(found)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match=words), Lab(backend="nfqueue") as lab:
        lab.paths[0].set(rate_mbit=10)


def test_where_iptables_has_no_nfqueue_a_lab_is_unavailable(
    tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "iptables-restore"
    tool.write_text("#!/bin/sh\necho 'Extension NFQUEUE revision 0 not supported' >&2\nexit 4\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    words = "NFQUEUE does not work here: Extension NFQUEUE revision 0 not supported$"
    with pytest.raises(UnavailableError, match=words), Lab(backend="nfqueue"):
        pass


@pytest.mark.mptcp_lab([{"delay_ms": 3, "name": "fibre"}], ip="6")
def test_the_marker_describes_the_lab(mptcp_lab: Lab) -> None:
    assert mptcp_lab.path("fibre").path.delay_ms == 3
    assert ":" in mptcp_lab.paths[0].client_ip
