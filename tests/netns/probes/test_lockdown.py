# SPDX-License-Identifier: BSD-3-Clause
"""The probes read the kernel by plain loads that the verifier checked, never by a helper.

Under lockdown=confidentiality the kernel refuses every program that may call
bpf_probe_read and its kin (LOCKDOWN_BPF_READ_KERNEL, kernel/bpf/helpers.c).  Lockdown
cannot be lifted once it is on, so this looks at what would be refused: the calls left in
the programs after the verifier has removed what can never run.
"""

import re
import subprocess
from pathlib import Path

import pytest

from mptcpd_ebpf.lab import Lab
from mptcpd_ebpf.lab import Path as LabPath
from tests.netns.probed import probing

CAST = "bpf_rdonly_cast"
"""The kfunc (Linux 6.2) that makes plain loads possible; without it 6.1 uses the helper."""


def translated(descriptor: int) -> str:
    """A loaded program's instructions as the verifier left them."""
    info = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    found = re.search(r"^prog_id:\t(\d+)$", info, re.MULTILINE)
    assert found is not None
    dump = ["bpftool", "prog", "dump", "xlated", "id", found[1]]
    return subprocess.run(dump, capture_output=True, text=True, check=True).stdout


def test_no_program_calls_a_helper_that_lockdown_refuses() -> None:
    if f" {CAST}\n" not in Path("/proc/kallsyms").read_text():
        pytest.skip(f"this kernel has no {CAST}: the probes need bpf_probe_read_kernel")
    with Lab(paths=[LabPath()]) as lab, probing(lab.client) as probes:
        assert probes.report.complete, str(probes.report)
        for hook, descriptor in probes.programs().items():
            calls = re.findall(r"\bcall (\S+)", translated(descriptor))
            # Names and not bare offsets, or the next line would hold of anything.
            assert any("bpf_ktime_get_ns" in call for call in calls), (hook, calls)
            assert not [call for call in calls if "probe_read" in call], hook
