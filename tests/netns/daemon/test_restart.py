# SPDX-License-Identifier: BSD-3-Clause
"""The daemon starts and stops while connections are open, and leaves nothing behind."""

import contextlib
import ctypes
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mptcpd_ebpf.lab import Lab, RequestResponse
from mptcpd_ebpf.lab import Path as LabPath
from mptcpd_ebpf.lab.kernel_path_manager import add_endpoint, raise_limits
from mptcpd_ebpf.lab.wire import MPJoinSyn, Wire
from mptcpd_ebpf.runtime.run_folder import SYSTEM
from tests.netns.daemon_host import (
    PATIENCE_S,
    adaptive_in,
    bpf_programs,
    connections,
    daemon_in,
    kept_alive,
    subflows,
    until_carried_by,
    until_decided,
)
from tests.netns.daemon_process import refusal
from tests.waiting import INTERVAL_MS, until

MakeLab = Callable[..., Lab]
TALK = RequestResponse(interval_ms=INTERVAL_MS)

_NR_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
_BPF_PROG_GET_FD_BY_ID = 13  # include/uapi/linux/bpf.h, enum bpf_cmd


@pytest.fixture
def lab(make_mptcp_lab: MakeLab) -> Iterator[Lab]:
    lab = make_mptcp_lab([LabPath(delay_ms=2), LabPath(delay_ms=5)])
    raise_limits(lab.server)
    yield lab
    state_file(lab).unlink(missing_ok=True)


def state_file(lab: Lab) -> Path:
    """Where a daemon saves the path manager that it restores."""
    return SYSTEM / f"{lab.client.netns}.path-manager"


def loaded(program: int) -> bool:
    """Whether the kernel still holds a BPF program."""
    request = (ctypes.c_uint32 * 32)(program)
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(_NR_BPF, _BPF_PROG_GET_FD_BY_ID, ctypes.byref(request), 128)
    if fd >= 0:
        os.close(fd)
    return bool(fd >= 0)


def test_connections_older_than_the_daemon_are_known_and_served(lab: Lab, tmp_path: Path) -> None:
    lab.client.sysctl("mptcp.pm_type", 1)
    with Wire(lab.client.name, snap=200) as wire:
        traffic = lab.start(TALK)
        with adaptive_in(lab.client, tmp_path) as running:
            assert "existing connections: 1" in running.log
            until_carried_by(running, traffic.token, *lab.paths)
            (connection,) = connections(running)
            assert connection["server_side"] is False
            assert connection["pid"] == traffic.pid
            assert connection["comm"] == Path(f"/proc/{traffic.pid}/comm").read_text().strip()
            assert connection["local"] == f"{traffic.local[0]}:{traffic.local[1]}"
            (join,) = wire.matching(MPJoinSyn, direction="out")
            assert join.interface == lab.paths[1].client_if
            # The daemon serves an older connection as any other.
            lab.paths[0].blackhole()
            until_decided(running, "DestroySubflow", lab.paths[0].client_ip)
            lab.paths[0].heal()
            until_carried_by(running, traffic.token, *lab.paths)
        assert traffic.stop().unanswered == 0
    # It was userspace before the daemon started.
    assert lab.client.sysctl("mptcp.pm_type") == "1"


def test_a_server_connection_shows_the_owner_of_its_listener(lab: Lab, tmp_path: Path) -> None:
    traffic = lab.start(TALK)
    with daemon_in(lab.server, tmp_path) as running:
        (connection,) = connections(running)
        assert connection["server_side"] is True
        assert connection["pid"] not in (None, traffic.pid)
        assert Path(f"/proc/{connection['pid']}/comm").read_text().strip() == connection["comm"]
    traffic.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_and_nothing_is_left(
    lab: Lab, tmp_path: Path, number: signal.Signals
) -> None:
    with adaptive_in(lab.client, tmp_path) as running:
        traffic = lab.start(TALK)
        until_carried_by(running, traffic.token, *lab.paths)
        pid = running.process.pid
        programs = bpf_programs(pid)
        assert programs
        assert all(map(loaded, programs))
        assert state_file(lab).exists()
        assert lab.client.sysctl("mptcp.pm_type") == "1"
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        assert children == ""
        running.process.send_signal(number)
        assert running.process.wait(PATIENCE_S) == 0
        assert running.log.endswith("INFO stopped\n")
        assert not running.control.exists()
        assert not state_file(lab).exists()
        assert lab.client.sysctl("mptcp.pm_type") == "0"
        until(lambda: not any(map(loaded, programs)), "its BPF programs are gone")
        # The connection continues unchanged.
        assert [path.subflows() for path in lab.paths] == [1, 1]
        assert traffic.stop().unanswered == 0


def test_after_sigkill_the_next_daemon_restores_everything(lab: Lab, tmp_path: Path) -> None:
    with kept_alive(lab.client), contextlib.ExitStack() as stack:
        first = stack.enter_context(adaptive_in(lab.client, tmp_path))
        traffic = lab.start(TALK)
        until_carried_by(first, traffic.token, *lab.paths)
        before = {(s["local"], s["remote"]) for s in subflows(first, traffic.token)}
        programs = bpf_programs(first.process.pid)
        first.process.kill()
        first.process.wait()
        assert lab.client.sysctl("mptcp.pm_type") == "1"
        assert first.control.exists()
        assert state_file(lab).exists()
        assert refusal("ls", "--control", str(first.control))[0] == 69
        until(lambda: not any(map(loaded, programs)), "its BPF programs are gone")

        second = stack.enter_context(adaptive_in(lab.client, tmp_path))
        assert "existing connections: 1" in second.log
        assert "(before: kernel)" in second.log
        until_carried_by(second, traffic.token, *lab.paths)
        assert {(s["local"], s["remote"]) for s in subflows(second, traffic.token)} == before
        assert second.stop() == 0
        assert lab.client.sysctl("mptcp.pm_type") == "0"
        assert not second.control.exists()
        assert not state_file(lab).exists()
        assert traffic.stop().unanswered == 0


def test_what_another_program_set_meanwhile_stays(lab: Lab, tmp_path: Path) -> None:
    with adaptive_in(lab.client, tmp_path) as running:
        lab.client.sysctl("mptcp.pm_type", 0)
        lab.client.sysctl("mptcp.stale_loss_cnt", 7)
        assert running.stop() == 0
        assert lab.client.sysctl("mptcp.pm_type") == "0"
        assert lab.client.sysctl("mptcp.stale_loss_cnt") == "7"
        assert not state_file(lab).exists()


def test_endpoints_of_others_stay(lab: Lab, tmp_path: Path) -> None:
    add_endpoint(lab.client, "10.9.9.9", "id", "7", "signal")
    before = lab.client.run(["ip", "mptcp", "endpoint", "show"]).stdout
    with adaptive_in(lab.client, tmp_path) as running:
        traffic = lab.start(TALK)
        until_carried_by(running, traffic.token, *lab.paths)
        assert traffic.stop().unanswered == 0
        assert running.stop() == 0
    assert lab.client.run(["ip", "mptcp", "endpoint", "show"]).stdout == before


def test_a_control_socket_that_was_replaced_is_not_removed(lab: Lab, tmp_path: Path) -> None:
    with adaptive_in(lab.client, tmp_path) as running:
        running.control.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(running.control))
            running.process.send_signal(signal.SIGTERM)
            assert running.process.wait(PATIENCE_S) == 0
            assert running.control.exists()
