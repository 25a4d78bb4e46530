# SPDX-License-Identifier: BSD-3-Clause
"""The process that has a socket open: from the socket's inode, through /proc.

There is no index from sockets to processes; the links in every process's fd folder must
be read.  The work is bounded: processes of our own network namespace come first, the
search ends when every inode is found, and after `MAX_LINKS` links it gives up.  Without
CAP_SYS_PTRACE (or in another PID namespace) other users' processes are not visible; what is not
visible is left out.
"""

import os
from collections.abc import Iterator

from mptcpd_ebpf.core.measurement import Owner
from mptcpd_ebpf.core.names import name_of
from mptcpd_ebpf.runtime import netns

MAX_LINKS = 200_000
"""Links read at most: about half a second's work."""
_CGROUP2 = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
"""Where the cgroup v2 hierarchy is mounted: alone, or beside v1 (systemd's hybrid mode)."""
_PREFIX = "socket:["


def owners(inodes: set[int], *, max_links: int = MAX_LINKS) -> dict[int, Owner]:
    """The first process found for each socket inode; those not found are left out."""
    wanted = {f"{_PREFIX}{inode}]": inode for inode in inodes if inode}
    found: dict[int, Owner] = {}
    left = max_links
    for pid in _near_first():
        if not wanted or left <= 0:
            break
        for link in _links(pid):
            left -= 1
            inode = wanted.pop(link, None)
            if inode is not None:
                found[inode] = describe(pid)
    return found


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


def _links(pid: int) -> Iterator[str]:
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        try:
            yield os.readlink(f"{folder}/{name}")
        except OSError:
            continue  # closed meanwhile
