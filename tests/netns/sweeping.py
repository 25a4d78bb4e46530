# SPDX-License-Identifier: BSD-3-Clause
"""Ends namespaces in several ways and prints as JSON which files are removed after each.

It runs in a PID namespace of its own and takes that for the whole machine: on the machine
itself there may be processes that not even root can inspect.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mptcpd_ebpf.runtime import netns, run_folder


@contextmanager
def namespace() -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """A process in a network namespace of its own, and the namespace's inode."""
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        inode = netns.inode_of(process.pid)
        assert inode is not None
        yield process, inode
        end(process)


def end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()


def swept() -> list[str]:
    return sorted(file.suffix for file in run_folder.sweep())


def entered(folder: Path) -> Iterator[list[str]]:
    with namespace() as (process, inode):
        for name in (f"{inode}.endpoints", f"{inode}.sock", f"{netns.inode()}.mine", "others.txt"):
            (folder / name).touch()
        yield swept()
        end(process)
        yield swept()


def opened(folder: Path) -> Iterator[list[str]]:
    with namespace() as (process, inode):
        (folder / f"{inode}.endpoints").touch()
        with open(f"/proc/{process.pid}/ns/net"):
            end(process)
            yield swept()
        yield swept()


def mounted(folder: Path) -> Iterator[list[str]]:
    with namespace() as (process, inode):
        (folder / f"{inode}.endpoints").touch()
        place = folder / "mounted"
        place.touch()
        subprocess.run(["mount", "--bind", f"/proc/{process.pid}/ns/net", place], check=True)
        try:
            end(process)
            yield swept()
        finally:
            subprocess.run(["umount", place], check=True)
        yield swept()


if __name__ == "__main__":
    netns._INITIAL_PID_NAMESPACE = os.stat("/proc/self/ns/pid").st_ino
    run_folder.SYSTEM = Path(sys.argv[1])
    story = {each.__name__: list(each(run_folder.SYSTEM)) for each in (entered, opened, mounted)}
    print(json.dumps(story))
