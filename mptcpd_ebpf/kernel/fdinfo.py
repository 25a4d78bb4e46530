# SPDX-License-Identifier: BSD-3-Clause
"""What the kernel tells of a BPF program through its descriptor (bpf_prog_show_fdinfo)."""

from collections.abc import Iterable


def program_fields(descriptor: int) -> dict[str, str]:
    """By the kernel's names, such as ``run_cnt``.  Raises OSError."""
    with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as file:
        return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}


def skipped_runs(descriptors: Iterable[int]) -> int:
    """How often the kernel did not run a program since it was loaded.

    A program that is interrupted, or preempted, is not begun anew on the same processor:
    what happens meanwhile passes it by (``recursion_misses``, kernel/trace/bpf_trace.c).
    """
    return sum(int(program_fields(each).get("recursion_misses", 0)) for each in descriptors)
