# SPDX-License-Identifier: BSD-3-Clause
"""Network namespaces whose names identify their owner, and functions that act inside one.

A namespace of the lab is called ``mptcplab-PID-START-N-LABEL``: PID and START (the start
time in clock ticks, /proc/PID/stat field 22, proc(5)) are its owner's, so that a later
process can check whether the owner still runs, even if the pid has been reused.
`remove_leftovers` removes the namespaces and processes of owners that have ended.

A thread enters a namespace with setns(2), which moves that thread only; a process started
meanwhile begins there.  Unlike ``ip netns exec`` it mounts nothing: /sys, cgroups and bpffs
stay as they are.
"""

import ctypes
import os
import pickle
import re
import signal
import subprocess
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn, ParamSpec, TypeVar

from mptcpd_ebpf.lab.errors import LabError, UnavailableError, no_such_command
from mptcpd_ebpf.lab.waiting import wait_until

RUN_NETNS = "/run/netns"
PREFIX = "mptcplab"
_NAME = re.compile(rf"{PREFIX}-(?P<pid>\d+)-(?P<start>\d+)-(?P<number>\d+)-(?P<label>.+)")

_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)

P = ParamSpec("P")
T = TypeVar("T")


def owner_prefix(number: int) -> str:
    """The beginning of the names of this process's lab `number`."""
    return f"{PREFIX}-{os.getpid()}-{start_time(os.getpid())}-{number}-"


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if it has ended (or is a zombie)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def path_of(name: str) -> str:
    return f"{RUN_NETNS}/{name}"


def create(names: list[str]) -> None:
    """Makes named namespaces.  Raises UnavailableError without the privilege or without ip(8)."""
    try:
        result = subprocess.run(
            ["ip", "-batch", "-"],
            input="".join(f"netns add {name}\n" for name in names),
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        raise no_such_command("ip") from None
    if result.returncode:
        remove(names)
        raise UnavailableError(f"cannot make a network namespace: {result.stderr.strip()}")


def remove(names: Iterable[str]) -> None:
    """Unmounts and deletes namespaces; the kernel removes each with its last process."""
    for name in names:
        path = path_of(name)
        if _libc.umount2(path.encode(), _MNT_DETACH) and ctypes.get_errno() == 1:
            raise LabError(f"{path}: not permitted to unmount it")
        with suppress(FileNotFoundError):
            os.unlink(path)


def inode(name: str) -> int:
    """The namespace's inode number, as the kernel's ``net->ns.inum``."""
    return os.stat(path_of(name)).st_ino


@contextmanager
def entered(name: str) -> Iterator[None]:
    """The calling thread is in namespace `name` while the block runs."""
    back = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with _opened(name) as there:
            _setns(there)
        try:
            yield
        finally:
            _setns(back)
    finally:
        os.close(back)


def call(name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs `function` in a forked child inside the namespace and returns its value.

    An exception is raised again here if it can be pickled, else as LabError with the child's
    traceback.  Changes that the child makes to objects are not visible to the caller.
    """
    read, write = os.pipe()
    owner = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(read)
        _serve_call(name, write, owner, lambda: function(*args, **kwargs))
    os.close(write)
    try:
        with open(read, "rb") as pipe:
            answer = pipe.read()
    finally:
        _, status = os.waitpid(child, 0)
    if not answer:
        raise LabError(
            f"the call of {_name_of(function)} in {name} ended without an answer, "
            f"wait status {status}"
        )
    succeeded, value = pickle.loads(answer)
    if not succeeded:
        raise value
    result: T = value
    return result


def _serve_call(name: str, write: int, owner: int, function: Callable[[], object]) -> NoReturn:
    """The child's side of `call`: never returns, never runs the parent's exit handlers."""
    status = 1
    try:
        die_with(owner)
        try:
            with _opened(name) as there:
                _setns(there)
            answer = pickle.dumps((True, function()))
        except BaseException as error:
            answer = _pickled_error(error)
        with open(write, "wb") as pipe:
            pipe.write(answer)
        status = 0
    finally:
        os._exit(status)


def _pickled_error(error: BaseException) -> bytes:
    text = "".join(traceback.format_exception(error))
    error.add_note(f"in the child process:\n{text}")
    with suppress(Exception):
        answer = pickle.dumps((False, error))
        pickle.loads(answer)
        return answer
    return pickle.dumps((False, LabError(text)))


def die_with(owner: int) -> None:
    """SIGKILL for this process when the thread that forked it ends (prctl(2))."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != owner:
        os._exit(1)


def processes_in(inodes: set[int]) -> list[int]:
    """The pids of processes in these network namespaces, without the caller's own."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with suppress(OSError):
                if os.stat(f"/proc/{entry}/ns/net").st_ino in inodes:
                    found.append(int(entry))
    return found


def end_processes(inodes: set[int], *, grace_s: float = 0.0) -> None:
    """Ends every process in the namespaces: SIGTERM and `grace_s`, then SIGKILL.

    Raises LabError if one still runs two seconds after SIGKILL.
    """
    if grace_s and _signal_until_gone(inodes, signal.SIGTERM, grace_s):
        return
    if not _signal_until_gone(inodes, signal.SIGKILL, 2.0):
        raise LabError(f"processes {processes_in(inodes)} in the lab's namespaces do not end")


def _signal_until_gone(inodes: set[int], number: signal.Signals, seconds: float) -> bool:
    signalled: set[int] = set()

    def gone() -> bool:
        # A zombie has no namespace any more, so unreaped processes are not counted.
        pids = set(processes_in(inodes))
        for pid in pids - signalled:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        signalled.update(pids)
        return not pids

    return wait_until(gone, seconds, pause_s=0.002)


def leftovers() -> list[str]:
    """Names of the lab's namespaces whose owner has ended."""
    try:
        names = sorted(os.listdir(RUN_NETNS))
    except FileNotFoundError:
        return []
    ended = []
    for name in names:
        match = _NAME.fullmatch(name)
        if match and start_time(int(match["pid"])) != int(match["start"]):
            ended.append(name)
    return ended


def remove_leftovers() -> list[str]:
    """Removes the namespaces of ended owners and ends their processes; returns the names."""
    names = leftovers()
    inodes = set()
    for name in names:
        with suppress(OSError):
            inodes.add(inode(name))
    # A name that is not mounted has the inode of a plain file, which no process is in.
    if inodes:
        end_processes(inodes)
    remove(names)
    return names


@contextmanager
def _opened(name: str) -> Iterator[int]:
    try:
        fd = os.open(path_of(name), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise LabError(f"there is no network namespace {name}") from None
    try:
        yield fd
    finally:
        os.close(fd)


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        error = ctypes.get_errno()
        raise UnavailableError(f"cannot enter a network namespace: {os.strerror(error)}")


def _name_of(function: Callable[..., object]) -> str:
    return getattr(function, "__qualname__", repr(function))
