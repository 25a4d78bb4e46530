# SPDX-License-Identifier: BSD-3-Clause
"""One daemon per network namespace: flock(2) on a file that other users can neither open nor make.

The file is ``INODE.lock`` in the run folder, mode 0600.  The kernel releases the lock when its
holder ends, also after kill -9, so a file without a holder means nothing.  Who holds it is public:
/proc/locks names the file's device and inode and the holder's pid.
"""

import fcntl
import os
from pathlib import Path
from typing import NoReturn, Self

from mptcpd_ebpf.kernel import owners
from mptcpd_ebpf.kernel.errors import NamespaceTaken, NotPermitted
from mptcpd_ebpf.runtime import run_folder

_KIND = "lock"
"""The kind of the file among those of `run_folder`."""


class NamespaceLock:
    """Holds the calling thread's namespace while used as a context."""

    def __init__(self) -> None:
        self._path = run_folder.here(_KIND)
        self._descriptor = -1

    def __enter__(self) -> Self:
        """Raises NamespaceTaken, with the holder's pid, while another process has it, and
        NotPermitted if this process can make no lock file."""
        if any(map(_holder_of, _files())):
            _raise_taken()
        try:
            run_folder.make()
            while not self._take():
                pass
        except BlockingIOError:
            _raise_taken()
        except OSError as error:
            raise NotPermitted(
                f"{self._path}: {error.strerror}; the daemon locks its network namespace there: "
                "run as root, or set XDG_RUNTIME_DIR to a directory of your own"
            ) from None
        return self

    def _take(self) -> bool:
        """Locks the file; False if the former holder has removed it meanwhile."""
        descriptor = run_folder.open_file(self._path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.lstat(self._path)):
                self._descriptor, descriptor = descriptor, -1
                return True
            return False
        except FileNotFoundError:
            return False
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def __exit__(self, *_: object) -> None:
        # While it is locked: the next daemon sees that the file that it has opened is gone.
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def _raise_taken() -> NoReturn:
    found = holder()
    pid, name, uid = found or (0, None, None)
    who = f"{name or 'name unknown'}, uid {'?' if uid is None else uid}"
    raise NamespaceTaken(
        f"process {pid or '?'} ({who}) manages this network namespace already: stop it first, "
        "or start this one in another namespace",
        pid,
    )


def holder() -> tuple[int, str | None, int | None] | None:
    """Pid, command name and uid of the process that holds the namespace; None if none is visible
    in this PID namespace."""
    pid = next(filter(None, map(_holder_of, _files())), None)
    if pid is None:
        return None
    owner = owners.describe(pid)
    return pid, owner.comm, owner.uid


def _files() -> list[Path]:
    """The lock files of this namespace that may be held: a user's daemon yields to the system's."""
    mine = run_folder.here(_KIND)
    return list(dict.fromkeys([mine, run_folder.SYSTEM / mine.name]))


def _holder_of(path: Path) -> int | None:
    """The pid that /proc/locks reports for a file (kernel: fs/locks.c, lock_get_status)."""
    try:
        status = path.stat()
    except OSError:
        return None
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with open("/proc/locks", encoding="ascii") as file:
        for line in file:
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5] == device:
                return int(fields[4])
    return None
