# SPDX-License-Identifier: BSD-3-Clause
"""The network namespace of the calling thread.

A namespace is a property of the *thread* (setns(2) moves one thread only), and a socket
always stays in the namespace in which its thread created it.  So all code reads
``/proc/thread-self`` and never ``/proc/self``, which is the process's first thread.
"""

import ctypes
import errno
import os
import re
import socket
import sys
from collections.abc import Iterable, Iterator

from mptcpd_ebpf.runtime import open_files
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure

THREAD_NET = "/proc/thread-self/net"
"""The calling thread's view of /proc/net."""
_SO_NETNS_COOKIE = 71


def inode() -> int:
    """Inode of the calling thread's network namespace: its name in every record (``ns.inum``)."""
    return os.stat("/proc/thread-self/ns/net").st_ino


def cookie() -> int:
    """A number that no other network namespace of this boot has; 0 before Linux 5.14."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        return _cookie_of(sock)


def is_of(descriptor: int) -> bool:
    """Whether a socket belongs to the calling thread's network namespace."""
    with socket.socket(fileno=os.dup(descriptor)) as sock:
        return _cookie_of(sock) == cookie()


def _cookie_of(sock: socket.socket) -> int:
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    except OSError:
        return 0
    return int.from_bytes(raw, sys.byteorder)


def inode_of(pid: int) -> int | None:
    """Inode of a process's network namespace; None if it has ended or access is denied."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return None


_CLONE_NEWNET = 0x40000000


def enter(name: str) -> None:
    """Moves the calling thread into a namespace: a name of ``ip netns``, or a process id.

    Raises `Failure`.
    """
    fix = "give a name that 'ip netns' lists, or a pid"
    if name in ("", ".", "..") or "/" in name:
        raise Failure(f"--netns {name!r} is not a name: {fix}", ExitCode.USAGE)
    path = f"/proc/{name}/ns/net" if name.isdecimal() else f"/run/netns/{name}"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Failure(f"--netns {name}: {path}: {error.strerror}; {fix}", ExitCode.USAGE) from None
    # os.setns is new in Python 3.12.
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.setns(descriptor, _CLONE_NEWNET)
    os.close(descriptor)
    if result and ctypes.get_errno() == errno.EINVAL:
        raise Failure(f"--netns {name}: {path} is not a network namespace; {fix}", ExitCode.USAGE)
    if result:
        cause = os.strerror(ctypes.get_errno())
        raise Failure(f"--netns {name}: cannot enter it: {cause}", ExitCode.PRIVILEGE)


_INITIAL_PID_NAMESPACE = 0xEFFFFFFC
"""Its inode: PROC_PID_INIT_INO of include/linux/proc_ns.h."""
_NAME = re.compile(r"net:\[(\d+)\]")


def unused(inodes: Iterable[int]) -> list[int]:
    """The network namespaces among `inodes` that no process is in, has open or has mounted.

    Empty if this process cannot inspect every process of the machine.
    """
    unseen = dict.fromkeys(inodes)
    try:
        if os.stat("/proc/self/ns/pid").st_ino != _INITIAL_PID_NAMESPACE:
            return []
        # The cheapest first; it usually suffices.
        for look in (_entered, _mounted, _opened):
            for pid in [1, *filter(str.isdigit, os.listdir("/proc"))]:
                try:
                    for inode in look(f"/proc/{pid}"):
                        unseen.pop(inode, None)
                except (FileNotFoundError, ProcessLookupError):
                    continue  # it has ended; a zombie has nothing left
                if not unseen:
                    return []
    except OSError:
        return []
    return list(unseen)


def _entered(process: str) -> Iterator[int]:
    for task in os.listdir(f"{process}/task"):
        yield os.stat(f"{process}/task/{task}/ns/net").st_ino


def _mounted(process: str) -> Iterator[int]:
    with open(f"{process}/mountinfo") as file:
        yield from map(int, _NAME.findall(file.read()))


def _opened(process: str) -> Iterator[int]:
    # Also inodes of other file systems: one that equals a namespace's only keeps its files.
    for _mount, inode in open_files.required(process.rpartition("/")[2]):
        yield inode
