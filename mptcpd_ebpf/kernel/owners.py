# SPDX-License-Identifier: BSD-3-Clause
"""The process that has a socket open: from the socket's inode, through /proc.

There is no index from sockets to processes; the fdinfo folder of every process must be read.
(The links of its fd folder show the same, but another user's can only be read with
CAP_DAC_READ_SEARCH, with which a process can read every file.)  The work is bounded: processes of
our own network namespace come first, the search ends when every inode is found, and after
`MAX_DESCRIPTORS` descriptors it gives up.  Without CAP_SYS_PTRACE (or in another PID namespace)
other users' processes are not visible; what is not visible is left out.
"""

import functools
import os
import socket
from collections.abc import Iterator

from mptcpd_ebpf.core.measurement import Owner
from mptcpd_ebpf.core.names import name_of
from mptcpd_ebpf.runtime import netns, open_files

MAX_DESCRIPTORS = 100_000
"""Read at most: about a second's work."""
_CGROUP2 = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
"""Where the cgroup v2 hierarchy is mounted: alone, or beside v1 (systemd's hybrid mode)."""


def owners(inodes: set[int], *, max_descriptors: int = MAX_DESCRIPTORS) -> dict[int, Owner]:
    """The first process found for each socket inode; those not found are left out."""
    wanted = inodes - {0}
    found: dict[int, Owner] = {}
    left = max_descriptors
    sockfs = _sockfs_mount() if wanted else 0
    for pid in _near_first():
        if not wanted or left <= 0:
            break
        for mount, inode in open_files.visible(pid):
            left -= 1
            if mount == sockfs and inode in wanted:
                wanted.remove(inode)
                found[inode] = describe(pid)
    return found


@functools.cache
def _sockfs_mount() -> int:
    """The mount id of all sockets: inode numbers are those of their file system only."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        return next(
            mount
            for mount, inode in open_files.visible(os.getpid())
            if inode == os.fstat(sock.fileno()).st_ino
        )


def describe(pid: int) -> Owner:
    """What /proc reports about a process; a missing field is None."""
    try:
        uid = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        uid = None
    return Owner(pid=pid, comm=comm(pid), cgroup=_cgroup(pid), uid=uid)


def comm(pid: int) -> str | None:
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return name_of(file.read().removesuffix(b"\n"))
    except OSError:
        return None


def _cgroup(pid: int) -> int | None:
    """The cgroup v2 id: inode of the folder; None without a v2 hierarchy in its usual places."""
    path = _cgroup_path(pid)
    root = next((root for root in _CGROUP2 if os.path.exists(f"{root}/cgroup.controllers")), None)
    try:
        return os.stat(root.encode() + path).st_ino if root and path is not None else None
    except OSError:
        return None


def cgroup_path(pid: int) -> str | None:
    """The path of a process's cgroup below the v2 root; None if it has ended, or without v2."""
    path = _cgroup_path(pid)
    return None if path is None else name_of(path)


def _cgroup_path(pid: int) -> bytes | None:
    try:
        with open(f"/proc/{pid}/cgroup", "rb") as file:
            for line in file:
                if line.startswith(b"0::"):
                    return line[3:].removesuffix(b"\n")
    except OSError:
        pass
    return None


def _near_first() -> Iterator[int]:
    here = netns.inode()
    elsewhere = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            pid = int(name)
            if netns.inode_of(pid) == here:
                yield pid
            else:
                elsewhere.append(pid)
    yield from elsewhere
