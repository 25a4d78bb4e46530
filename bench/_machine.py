# SPDX-License-Identifier: BSD-3-Clause
"""The machine of the figures: its type, its load, the memory of a process."""

import os
from pathlib import Path


def load() -> str:
    """The load averages, because other work on the machine disturbs figures."""
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
