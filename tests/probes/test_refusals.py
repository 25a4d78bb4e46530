# SPDX-License-Identifier: BSD-3-Clause
"""The reason for a refused program is reported, even if the verifier's log is long."""

import os
import subprocess
from pathlib import Path

import pytest

from mptcpd_ebpf.probes.libbpf import Libbpf
from mptcpd_ebpf.runtime.capabilities import may_load_bpf

SOURCE = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
char LICENSE[] SEC("license") = "Dual BSD/GPL";
SEC("socket") int talkative(struct __sk_buff *packet)
{
    volatile unsigned long sum = 0;
#pragma unroll
    for (int i = 0; i < 1500; i++)
        sum += packet->len;
    return *(int *)sum;
}
"""


def test_the_reason_is_the_end_of_a_long_verifier_log(tmp_path: Path) -> None:
    if not may_load_bpf():
        pytest.skip("loading programs needs CAP_BPF and CAP_PERFMON")
    source, binary = tmp_path / "talkative.bpf.c", tmp_path / "talkative.bpf.o"
    source.write_text(SOURCE)
    machine = subprocess.run(
        ["clang", "-print-multiarch"], capture_output=True, text=True, check=True
    ).stdout.strip()
    include = ["-idirafter", f"/usr/include/{machine}"]
    compile_it = ["clang", "-O2", "-g", "-target", "bpf", *include, "-c"]
    subprocess.run([*compile_it, str(source), "-o", str(binary)], check=True)
    libbpf = Libbpf()
    handle = libbpf.pointer("bpf_object__open_file", os.fsencode(binary), None)
    try:
        with pytest.raises(OSError, match="bpf_object__load"):
            libbpf.number("bpf_object__load", handle)
    finally:
        libbpf.bpf_object__close(handle)
    refused = libbpf.refused_programs()
    assert refused["talkative"].startswith("BPF program load failed: Permission denied")
    assert "invalid mem access" in refused["talkative"]
