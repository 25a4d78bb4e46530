# SPDX-License-Identifier: BSD-3-Clause
"""A start with too few resources or privileges ends in one message that names the fix."""

import subprocess
import sys

import pytest

from tests.tree import ROOT

DAEMON = [sys.executable, "-m", "mptcpd_ebpf", "daemon"]


def refusal(*prefix: str) -> tuple[int, str]:
    """Exit code and the only message of a daemon that must not start."""
    done = subprocess.run(
        [*prefix, *DAEMON],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if "setpriv" in done.stderr:
        pytest.skip(f"not root here: {done.stderr.strip()}")
    (message,) = done.stderr.splitlines()
    assert message.startswith("mptcpd-ebpf: ")
    return done.returncode, message


@pytest.mark.parametrize("files", [10, 16, 24, 32])
def test_too_few_open_files(files: int) -> None:
    code, message = refusal("prlimit", f"--nofile={files}")
    assert code == 77
    assert f"at most {files} files may be open" in message
    assert "LimitNOFILE=" in message


@pytest.mark.parametrize("mebibytes", [24, 28, 30, 60, 127])
def test_too_little_memory(mebibytes: int) -> None:
    code, message = refusal("prlimit", f"--as={mebibytes << 20}")
    assert code == 77
    assert f"at most {mebibytes} MiB of address space" in message


@pytest.mark.parametrize("kept", ["-all", "-all,+bpf,+perfmon,+sys_ptrace"])
def test_without_net_admin(kept: str) -> None:
    code, message = refusal("setpriv", f"--bounding-set={kept}", f"--inh-caps={kept}")
    assert code == 77
    assert "CAP_NET_ADMIN is missing" in message
    assert "AmbientCapabilities=" in message
