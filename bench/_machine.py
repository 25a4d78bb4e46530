# SPDX-License-Identifier: BSD-3-Clause
"""The machine beside the figures: what it is, how busy it is, what a process takes of it."""

import os
from pathlib import Path


def load() -> str:
    """The load averages, to be stated beside figures that others' work disturbs."""
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def machine() -> str:
    """Kernel and processor in one line."""
    kernel = os.uname()
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    cpu = f", {models[0]}" if models else ""
    return f"Linux {kernel.release}, {kernel.machine}, {os.cpu_count()} CPUs{cpu}"


def resident_mib(pid: int) -> float:
    """MiB of memory that a process holds: its VmRSS."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmRSS:")).split()[1]) / 1024
