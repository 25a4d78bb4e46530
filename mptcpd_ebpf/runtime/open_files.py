# SPDX-License-Identifier: BSD-3-Clause
"""The open files of a process, from /proc/PID/fdinfo (kernel: fs/proc/fd.c, since Linux 5.14)."""

import os
from collections.abc import Iterator


def visible(pid: int | str) -> Iterator[tuple[int, int]]:
    """Mount id and inode of each open file that can be seen, in no order.

    Nothing for a process that has ended or that CAP_SYS_PTRACE would be needed for.
    """
    try:
        yield from required(pid)
    except OSError:
        return


def required(pid: int | str) -> Iterator[tuple[int, int]]:
    """`visible`; raises OSError if they cannot be seen."""
    folder = f"/proc/{pid}/fdinfo"
    for name in os.listdir(folder):
        try:
            with open(f"{folder}/{name}", "rb", buffering=0) as file:
                text = file.read(256)
        except FileNotFoundError:
            continue  # closed meanwhile
        _, _, found = text.partition(b"\nmnt_id:\t")
        mount, _, found = found.partition(b"\nino:\t")
        yield int(mount), int(found.partition(b"\n")[0])
