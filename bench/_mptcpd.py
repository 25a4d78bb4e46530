# SPDX-License-Identifier: BSD-3-Clause
"""Debian's mptcpd and this daemon, each in a separate lab, started with the same options. Both run
during all measurements, which alternate between them. The daemons run on one processor and the
measuring process on another, so that the scheduler's choice of a processor does not affect a
figure.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from msgspec import Struct

from mptcpd_ebpf.kernel.pm_client import PmClient
from mptcpd_ebpf.lab import Lab, LabError, Path
from mptcpd_ebpf.lab.kernel_path_manager import raise_limits
from mptcpd_ebpf.lab.waiting import wait_until

MPTCPD = "/usr/libexec/mptcpd"
CONFIGURATION = "/etc/mptcpd/mptcpd.conf"
NAMES = ("mptcpd", "ours")

_DEADLINE_S = 20.0


class Side(Struct, frozen=True):
    """One of the two, running."""

    name: str
    lab: Lab
    process: subprocess.Popen[bytes]


def commands(name: str, plugin: str, control: str) -> list[str]:
    """The command that starts one of the two."""
    options = [f"--path-manager={plugin}", f"--load-plugins={plugin}", "--addr-flags=subflow"]
    options.append("--notify-flags=existing,skip_link_local,skip_loopback")
    if name == "mptcpd":
        return [MPTCPD, *options]
    ours = [sys.executable, "-m", "mptcpd_ebpf", "daemon", "--mptcpd-conf", CONFIGURATION]
    return [*ours, *options, "--control", control]


@contextmanager
def both(plugin: str, folder: str, paths: Sequence[Path], ip: str = "4") -> Iterator[list[Side]]:
    """mptcpd and ours with one plugin, ready, in labs with these paths."""
    if not os.path.exists(MPTCPD):
        raise LabError(f"{MPTCPD} is not here: apt-get install mptcpd")
    with ExitStack() as stack:
        sides = []
        for name in NAMES:
            lab = stack.enter_context(Lab(paths=paths, ip=ip))
            if plugin == "sspi":
                lab.client.sysctl("mptcp.pm_type", 1)
            raise_limits(lab.server)
            argv = commands(name, plugin, f"{folder}/{name}-{plugin}.sock")
            sides.append(Side(name, lab, stack.enter_context(_started(lab, argv))))
        yield sides


@contextmanager
def _started(lab: Lab, argv: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    here = os.sched_getaffinity(0)
    process = lab.client.popen(
        argv,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, {max(here)}),
    )
    try:
        _wait_until_listening(lab, process)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _wait_until_listening(lab: Lab, process: subprocess.Popen[bytes]) -> None:
    """Waits until it has processed the initial state: the endpoint of the first path, or
    idleness."""
    with lab.client.entered(), PmClient() as pm:
        userspace = lab.client.sysctl("mptcp.pm_type") == "1"

        def ready() -> bool:
            if process.poll() is not None:
                raise LabError(f"{process.args!r} ended with {process.returncode}")
            return _idle(process.pid) if userspace else bool(pm.endpoints())

        if not wait_until(ready, _DEADLINE_S):
            raise LabError(f"{process.args!r} is not ready after {_DEADLINE_S:g} s")


def _idle(pid: int) -> bool:
    """Whether a process has used no processor time for a while."""
    before = cpu_seconds(pid)
    time.sleep(0.5)
    return before > 0 and cpu_seconds(pid) == before


@contextmanager
def on_own_processor() -> Iterator[None]:
    """The calling process leaves the daemons' processor to them."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, to the nanosecond (/proc/PID/schedstat)."""
    with open(f"/proc/{pid}/schedstat") as file:
        return int(file.read().split()[0]) / 1e9
