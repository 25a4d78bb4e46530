# SPDX-License-Identifier: BSD-3-Clause
"""Capabilities are those that the kernel reports for the calling thread."""

import subprocess
import sys

import pytest

from mptcpd_ebpf.runtime.capabilities import Capability
from tests.tree import ROOT

ASK = "from mptcpd_ebpf.runtime.capabilities import *; print(sorted(effective()), may_load_bpf())"


@pytest.mark.parametrize(
    ("kept", "held", "may_load"),
    [
        ("-all", [], False),
        ("-all,+net_admin", [Capability.CAP_NET_ADMIN], False),
        ("-all,+bpf", [Capability.CAP_BPF], False),
        ("-all,+bpf,+perfmon", [Capability.CAP_PERFMON, Capability.CAP_BPF], True),
        ("-all,+sys_admin", [Capability.CAP_SYS_ADMIN], True),
    ],
)
def test_only_kept_capabilities_are_reported(
    kept: str, held: list[Capability], may_load: bool
) -> None:
    run = ["setpriv", f"--bounding-set={kept}", f"--inh-caps={kept}", sys.executable, "-c", ASK]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode and "setpriv" in done.stderr:
        pytest.skip(f"not root here: {done.stderr.strip()}")
    assert done.stdout == f"{held!r} {may_load}\n", done.stderr
