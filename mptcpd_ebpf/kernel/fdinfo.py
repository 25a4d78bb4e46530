# SPDX-License-Identifier: BSD-3-Clause
"""What the kernel reports about a BPF program through its descriptor (bpf_prog_show_fdinfo)."""

from collections.abc import Iterable


def program_fields(descriptor: int) -> dict[str, str]:
    """By the kernel's names, such as ``run_cnt``.  Raises OSError."""
    with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as file:
        return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}


def skipped_runs(descriptors: Iterable[int]) -> int:
    """How often the kernel did not run a program since it was loaded.

    While a program is interrupted or preempted, the kernel does not run it again on the same
    processor, so it misses what happens meanwhile (``recursion_misses``, kernel/trace/bpf_trace.c).
    """
    return sum(int(program_fields(each).get("recursion_misses", 0)) for each in descriptors)
