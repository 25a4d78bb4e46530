# SPDX-License-Identifier: BSD-3-Clause
"""Capabilities are those that the kernel reports for the calling thread."""

import subprocess
import sys
import threading

import pytest

from mptcpd_ebpf.runtime.capabilities import Capability, effective, keep_only
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


GIVE_UP = """
from mptcpd_ebpf.runtime.capabilities import *
keep_only({Capability.CAP_NET_ADMIN, Capability.CAP_NET_RAW})
import subprocess
for file in ("/proc/self/status", None):
    text = open(file).read() if file else subprocess.check_output(["cat", "/proc/self/status"])
    text = text if file else text.decode()
    print(*[line.split()[1] for line in text.splitlines()
            if line.startswith(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"))])
"""


@pytest.mark.parametrize("held", ["-all,+net_admin,+setpcap,+bpf", "-all,+net_admin,+bpf"])
def test_what_is_given_up_does_not_come_back_in_a_child(held: str) -> None:
    run = ["setpriv", f"--bounding-set={held}", f"--inh-caps={held}", sys.executable, "-c", GIVE_UP]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode and "setpriv" in done.stderr:
        pytest.skip(f"not root here: {done.stderr.strip()}")
    net_admin, none = f"{1 << Capability.CAP_NET_ADMIN:016x}", f"{0:016x}"
    for line in done.stdout.splitlines():
        inherited, permitted, effective, bounding, ambient, privileges = line.split()
        assert (inherited, permitted, effective, ambient) == (none, net_admin, net_admin, none)
        assert privileges == "1"
        if "setpcap" in held:
            assert bounding == net_admin
    assert len(done.stdout.splitlines()) == 2, done.stderr


def test_a_process_with_threads_gives_up_nothing() -> None:
    stop = threading.Event()
    other = threading.Thread(target=stop.wait)
    other.start()
    try:
        with pytest.raises(OSError, match="other threads"):
            keep_only(effective())
    finally:
        stop.set()
        other.join()
