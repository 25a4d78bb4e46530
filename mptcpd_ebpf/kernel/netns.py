# SPDX-License-Identifier: BSD-3-Clause
"""Which network namespace we are in.

A namespace is a property of the *thread* (setns(2) moves one thread only), and a socket
keeps for ever the one in which its creating thread was.  So everything here and in the
modules beside it reads ``/proc/thread-self`` and never ``/proc/self``, which is the
process's first thread.
"""

import os

THREAD_NET = "/proc/thread-self/net"
"""The calling thread's view of /proc/net."""


def inode() -> int:
    """Inode of the calling thread's network namespace: its name in every record (``ns.inum``)."""
    return os.stat("/proc/thread-self/ns/net").st_ino


def inode_of(pid: int) -> int | None:
    """Inode of a process's network namespace; None if it is gone or we may not look."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return None
