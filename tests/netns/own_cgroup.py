# SPDX-License-Identifier: BSD-3-Clause
"""A cgroup of the test's own, with the test's process in it, so that sock_ops sees nothing else."""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mptcpd_ebpf.probes.cgroups import root_cgroup
from tests.waiting import until

_numbers = itertools.count()


def _here(root: Path) -> Path:
    """The cgroup v2 of this process."""
    line = next(
        line
        for line in Path("/proc/self/cgroup").read_text().splitlines()
        if line.startswith("0::")
    )
    return root / line.removeprefix("0::/")


@contextmanager
def own_cgroup() -> Iterator[Path]:
    """A new cgroup that holds this process and its children; removed afterwards."""
    root = root_cgroup()
    if root is None:
        pytest.skip("no cgroup v2 is mounted")
    before = _here(root)
    folder = before / f"mptcpd-ebpf-test-{os.getpid()}-{next(_numbers)}"
    folder.mkdir()
    try:
        (folder / "cgroup.procs").write_text(str(os.getpid()))
        try:
            yield folder
        finally:
            (before / "cgroup.procs").write_text(str(os.getpid()))
            # Processes of the test: they may not have ended completely, or the test failed.
            (folder / "cgroup.kill").write_text("1")
            until(
                lambda: not (folder / "cgroup.procs").read_text().split() or None,
                "end of the processes in the test's cgroup",
            )
    finally:
        folder.rmdir()
