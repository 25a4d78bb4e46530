# SPDX-License-Identifier: BSD-3-Clause
"""`mptcpd-ebpf mptcpify` on a kernel that allows it, and its error message on one that does not.

Everything happens in the test's own network namespace, the only one in which the BPF program
acts.  The selected program is statically linked.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.ordinary_user import AS_NOBODY
from tests.waiting import SLOWNESS

COMMAND = str(Path(sys.executable).with_name("mptcpd-ebpf"))
CGROUPS = Path("/sys/fs/cgroup")

_PROBE = """
#include <stdio.h>
#include <sys/socket.h>
static int protocol(int family, int type, int asked)
{
    int fd = socket(family, type, asked), got = -1;
    socklen_t length = sizeof(got);
    getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &got, &length);
    return got;
}
int main(void)
{
    printf("%d %d %d\\n", protocol(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0),
           protocol(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 6),
           protocol(AF_INET, SOCK_DGRAM, 0));
}
"""
MPTCP, TCP = "262 262 17", "6 6 17"


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A statically linked program that prints the protocols of its sockets."""
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.c").write_text(_PROBE)
    subprocess.run(["clang", "-static", "-o", folder / "sockprobe", folder / "probe.c"], check=True)
    return folder / "sockprobe"


@pytest.fixture
def namespace() -> Iterator[list[str]]:
    """Command prefix that runs a command in the test's own network namespace."""
    holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec cat"],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        yield ["nsenter", "-t", str(holder.pid), "-n"]
        holder.kill()


@pytest.fixture(scope="module")
def refusal() -> str:
    """The error message of a kernel that refuses `mptcpify`; empty if it is allowed."""
    process = subprocess.Popen(
        ["unshare", "--net", COMMAND, "mptcpify", "--all"], stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stderr is not None
        first = process.stderr.readline()
        if "Ctrl-C" in first:
            process.send_signal(signal.SIGINT)
            return ""
        rest = process.stderr.read()
    assert process.returncode == 71
    return first + rest


@contextmanager
def mptcpify(namespace: list[str], *selection: object) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [*namespace, COMMAND, "mptcpify", *map(str, selection)], stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stderr is not None
            assert "Ctrl-C" in process.stderr.readline()
            yield process
        finally:
            process.kill()


def sockets(namespace: list[str], probe: Path) -> str:
    done = subprocess.run([*namespace, str(probe)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def allowed(namespace: list[str], refusal: str) -> list[str]:
    if refusal:
        pytest.skip(refusal.strip())
    return namespace


def test_a_refusal_by_the_kernel_is_reported_in_one_line(refusal: str) -> None:
    if not refusal:
        pytest.skip("this kernel allows it")
    assert len(refusal.splitlines()) == 1
    assert "update_socket_protocol" in refusal
    assert "mptcpd-ebpf exec" in refusal


def test_selection_by_name_ends_with_the_command(allowed: list[str], probe: Path) -> None:
    other = probe.with_name("other")
    other.write_bytes(probe.read_bytes())
    other.chmod(0o755)
    with mptcpify(allowed, "--comm", probe.name) as process:
        assert sockets(allowed, probe) == MPTCP
        assert sockets(allowed, other) == TCP
        assert sockets([], probe) == TCP, "it changed a socket in another namespace"
        process.send_signal(signal.SIGINT)
        assert process.wait(10 * SLOWNESS) == 0
        assert process.stderr is not None
        assert process.stderr.read() == "2 sockets became MPTCP sockets\n"
    assert sockets(allowed, probe) == TCP


def test_selection_by_process_includes_its_descendants(allowed: list[str], probe: Path) -> None:
    shell = subprocess.Popen([*allowed, "sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             text=True)  # fmt: skip
    with shell, mptcpify(allowed, "--pid", shell.pid) as process:
        assert sockets(allowed, probe) == TCP
        answer, _ = shell.communicate(f"{probe}\n", timeout=10 * SLOWNESS)
        assert answer.strip() == MPTCP
        assert process.wait(10 * SLOWNESS) == 0, "it did not end with the selected process"


def test_selection_by_cgroup_includes_folders_below(allowed: list[str], probe: Path) -> None:
    if not (CGROUPS / "cgroup.procs").exists():
        pytest.skip(f"no cgroup v2 at {CGROUPS}")
    group = CGROUPS / f"mptcpd-ebpf-test-{os.getpid()}"
    inner = group / "inner"
    inner.mkdir(parents=True)
    try:
        with mptcpify(allowed, "--cgroup", group):
            assert sockets(allowed, probe) == TCP
            inside = ["sh", "-ec", f'echo $$ > {inner}/cgroup.procs; exec "$@"', "sh"]
            assert sockets([*inside, *allowed], probe) == MPTCP
    finally:
        inner.rmdir()
        group.rmdir()


def test_it_ends_when_mptcp_is_disabled(allowed: list[str], probe: Path) -> None:
    with mptcpify(allowed, "--all") as process:
        assert sockets(allowed, probe) == MPTCP
        subprocess.run([*allowed, "sh", "-c", "echo 0 > /proc/sys/net/mptcp/enabled"], check=True)
        assert process.wait(10 * SLOWNESS) == 71
    assert sockets(allowed, probe) == TCP


def test_the_program_is_detached_when_the_command_is_killed(
    allowed: list[str], probe: Path
) -> None:
    with mptcpify(allowed, "--all") as process:
        assert sockets(allowed, probe) == MPTCP
        process.kill()
        process.wait(10 * SLOWNESS)
        assert sockets(allowed, probe) == TCP


@pytest.mark.parametrize(
    "selection",
    [
        *([], ["--all", "--pid", "1"]),
        *(["--pid", "0"], ["--pid", "4194303"], ["--comm", "x" * 16]),
        *(["--cgroup", "/tmp"], ["--cgroup", "/nowhere"]),
    ],
)
def test_an_invalid_selection_is_a_usage_error(namespace: list[str], selection: list[str]) -> None:
    done = subprocess.run(
        [*namespace, COMMAND, "mptcpify", *selection], capture_output=True, text=True
    )
    assert done.returncode == 64
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.ordinary_user
def test_missing_privilege_is_reported(namespace: list[str]) -> None:
    done = subprocess.run(
        [*namespace, *AS_NOBODY, COMMAND, "mptcpify", "--all"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 77
    assert "CAP_BPF" in done.stderr
