# SPDX-License-Identifier: BSD-3-Clause
"""A host of the lab: a network namespace in which programs run."""

import fcntl
import functools
import socket
import struct
import subprocess
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ParamSpec, TypeVar

from mptcpd_ebpf.lab import namespaces
from mptcpd_ebpf.lab.errors import LabError, no_such_command
from mptcpd_ebpf.lab.waiting import wait_until

_SIOCGIFFLAGS = 0x8913  # include/uapi/linux/sockios.h
_IFF_RUNNING = 0x40
_RUNNING_S = 10.0

P = ParamSpec("P")
T = TypeVar("T")


class Host:
    """One namespace: a host, or a path's router."""

    def __init__(self, label: str, name: str) -> None:
        self.label = label
        """Its name in the topology."""
        self.name = name
        """Its name under /run/netns, as `ip netns` knows it."""
        self.netns = namespaces.inode(name)
        """Inode of the namespace (``net->ns.inum``)."""

    def __repr__(self) -> str:
        return f"<Host {self.label} netns={self.name}>"

    def entered(self) -> AbstractContextManager[None]:
        """A context manager: the calling thread is in this host while the block runs."""
        return namespaces.entered(self.name)

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a Python callable here, in a forked child, and returns its (pickled) value."""
        return namespaces.call(self.name, function, *args, **kwargs)

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Starts a process here; `options` are subprocess.Popen's.

        When the lab ends, a process that still runs gets SIGTERM and, a second later, SIGKILL.
        """
        with self.entered():
            return subprocess.Popen(argv, **options)

    def run(
        self,
        argv: Sequence[str],
        *,
        input: str | None = None,
        timeout_s: float = 60.0,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command here to its end; returns its exit code and its output as text.

        Raises LabError with the command's message if it fails (unless `check` is False) or
        takes longer than `timeout_s`, UnavailableError for a missing tool that the lab itself
        needs.
        """
        with self.entered():
            try:
                done = subprocess.run(
                    argv, input=input, capture_output=True, text=True, timeout=timeout_s
                )
            except FileNotFoundError:
                raise no_such_command(argv[0]) from None
            except subprocess.TimeoutExpired:
                raise LabError(f"{' '.join(argv)}: no end after {timeout_s:g} s") from None
        if check and done.returncode:
            words = (done.stderr or done.stdout).strip()
            raise LabError(f"{' '.join(argv)}: exit {done.returncode} on {self.label}: {words}")
        return done

    def sysctl(self, name: str, value: str | int | None = None) -> str:
        """Reads, or first sets, a sysctl under /proc/sys/net of this host: ``mptcp.enabled``."""
        path = f"/proc/sys/net/{name.replace('.', '/')}"
        with self.entered():
            if value is not None:
                with open(path, "w") as file:
                    file.write(str(value))
            with open(path) as file:
                return file.read().strip()

    def set_sysctls(self, values: dict[str, int]) -> None:
        """Sets several sysctls under /proc/sys/net."""
        with self.entered():
            for name, value in values.items():
                with open(f"/proc/sys/net/{name.replace('.', '/')}", "w") as file:
                    file.write(str(value))

    def wait_until_running(self, interfaces: Sequence[str], running: bool = True) -> None:
        """Waits until interfaces here have a carrier, or have none, in the kernel's view.

        The kernel's linkwatch handles both, a return up to a second late (net/core/link_watch.c).
        Raises LabError after ten seconds.
        """
        with self.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            for name in interfaces:
                reached = functools.partial(_is_running, control, name, running)
                if not wait_until(reached, _RUNNING_S, pause_s=0.001):
                    state = "is not running" if running else "still has its carrier"
                    raise LabError(f"{self.label}: {name} {state}")

    def batch(self, tool: str, lines: Sequence[str]) -> None:
        """Runs lines with ``ip -batch`` or ``tc -batch`` here: one process for many changes.

        ip(8) accepts an IPv6 rule only with ``-6``, which a line cannot contain: lines that
        begin with it run in a second process, after the others.
        """
        plain = [line for line in lines if not line.startswith("-6 ")]
        for option, batch in (
            ([], plain),
            (["-6"], [line.removeprefix("-6 ") for line in lines if line.startswith("-6 ")]),
        ):
            if batch:
                self.run([tool, *option, "-batch", "-"], input="\n".join(batch) + "\n")


def _is_running(control: socket.socket, interface: str, running: bool) -> bool:
    """Whether IFF_RUNNING of an interface is `running` (netdevice(7))."""
    request = struct.pack("16sH22x", interface.encode(), 0)
    flags = struct.unpack_from("H", fcntl.ioctl(control, _SIOCGIFFLAGS, request), 16)[0]
    return bool(flags & _IFF_RUNNING) == running
