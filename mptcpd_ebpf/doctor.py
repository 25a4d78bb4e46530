# SPDX-License-Identifier: BSD-3-Clause
"""Can this machine, this user, this namespace do it? A list of checks; each problem comes with its
fix.

A check tries the real thing where it can: it subscribes, it loads the probes.
What cannot be read from here is `UNKNOWN`, never "no": without root, or under ``ip netns
exec`` (which mounts a fresh /sys, without securityfs), much is out of sight and nothing
is wrong.
"""

import errno
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path

from msgspec import Struct

from mptcpd_ebpf.core import network
from mptcpd_ebpf.core.model import World
from mptcpd_ebpf.kernel import lock, others, rtnetlink, sysctl
from mptcpd_ebpf.kernel.errors import KernelError, MptcpMissing, NotPermitted
from mptcpd_ebpf.kernel.pm_events import PmEvents
from mptcpd_ebpf.kernel.transport import NETLINK_ROUTE, Requester
from mptcpd_ebpf.runtime import netns
from mptcpd_ebpf.runtime.capabilities import effective

OLDEST = (5, 19)
"""The first kernel whose userspace path manager has every command (SUBFLOW_DESTROY)."""


class Status(StrEnum):
    OK = "ok"
    WARN = "warn"
    """The daemon runs, with less than it could."""
    FAIL = "fail"
    """The daemon does not start, or cannot do its work."""
    UNKNOWN = "unknown"
    """It cannot be seen from here."""


class Check(Struct, frozen=True):
    """One finding."""

    name: str
    status: Status
    detail: str
    """What was found, one line."""
    way_out: str | None = None
    """What to do about it, unless all is well."""


def examine() -> Iterator[Check]:
    """Every check, in the order in which one would look."""
    for name, check in _CHECKS.items():
        try:
            for status, detail, way_out in check():
                yield Check(name, status, detail, way_out)
        except NotPermitted as error:
            yield Check(name, Status.UNKNOWN, str(error), _AS_ROOT)
        except (KernelError, OSError) as error:
            yield Check(name, Status.UNKNOWN, f"cannot be read: {error}", _AS_ROOT)


Finding = tuple[Status, str, str | None]
_AS_ROOT = "run 'mptcpd-ebpf doctor' as root to know"


def _kernel() -> Iterator[Finding]:
    release = platform.release()
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is None:
        yield Status.UNKNOWN, f"{release}: no version that could be compared", None
    elif (int(found[1]), int(found[2])) < OLDEST:
        need = ".".join(map(str, OLDEST))
        yield Status.FAIL, f"Linux {release}", f"boot Linux {need} or newer"
    else:
        yield Status.OK, f"Linux {release} on {platform.machine()}", None


def _mptcp() -> Iterator[Finding]:
    try:
        enabled = sysctl.enabled()
    except MptcpMissing as error:
        yield Status.FAIL, str(error), "boot a kernel with CONFIG_MPTCP=y"
        return
    if enabled:
        yield Status.OK, "enabled in this network namespace", None
    else:
        yield Status.FAIL, "net.mptcp.enabled is 0", "sysctl -w net.mptcp.enabled=1"


def _sysctls() -> Iterator[Finding]:
    values = sysctl.read_all()
    shown = ("path_manager", "pm_type", "scheduler", "stale_loss_cnt", "checksum_enabled")
    text = ", ".join(f"{name}={values[name]}" for name in shown if name in values)
    yield Status.OK if text else Status.UNKNOWN, text or "net.mptcp.* cannot be read", None
    if values.get("allow_join_initial_addr_port") == "0":
        yield (
            Status.WARN,
            "net.mptcp.allow_join_initial_addr_port is 0: peers are asked not to join",
            "sysctl -w net.mptcp.allow_join_initial_addr_port=1, unless a load balancer needs it",
        )
    file = _path_manager_file(values)
    if file is not None:
        yield _writable(file)


def _path_manager_file(values: dict[str, str]) -> Path | None:
    """The file that chooses the path manager for new connections; None if there is none."""
    for name in ("path_manager", "pm_type"):
        if name in values:
            return Path("/proc/sys/net/mptcp", name)
    return None


def _writable(file: Path) -> Finding:
    try:
        os.close(os.open(file, os.O_WRONLY))  # opening alone changes nothing
    except OSError as error:
        if error.errno == errno.EROFS:
            return (
                Status.FAIL,
                f"{file} is read-only: the daemon cannot choose the userspace path manager",
                "mount /proc/sys writable here, or set it from outside",
            )
        return Status.UNKNOWN, f"{file}: {error.strerror}", _AS_ROOT
    return Status.OK, f"{file} can be set", None


def _capabilities() -> Iterator[Finding]:
    held = {capability.name for capability in effective()}
    if "CAP_NET_ADMIN" not in held:
        yield (
            Status.FAIL,
            "CAP_NET_ADMIN is missing: the daemon can neither observe nor manage connections",
            "run as root, or grant it (systemd: AmbientCapabilities=)",
        )
    wanted = {"CAP_BPF", "CAP_PERFMON"}
    if "CAP_SYS_ADMIN" not in held and not wanted <= held:
        yield (
            Status.WARN,
            f"{' and '.join(sorted(wanted - held))} missing: no probes, alarms never come",
            "run as root, or grant them (systemd: AmbientCapabilities=)",
        )
    if "CAP_NET_RAW" not in held:
        yield (
            Status.WARN,
            "CAP_NET_RAW missing: a path that was left cannot be probed, and is tried with data",
            "run as root, or grant it (systemd: AmbientCapabilities=)",
        )
    if Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]:
        yield (
            Status.WARN,
            "in a user namespace: the kernel loads no probes from here",
            "start the daemon from the host",
        )
    if held >= wanted | {"CAP_NET_ADMIN", "CAP_NET_RAW"}:
        yield Status.OK, "CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and CAP_PERFMON", None


def _netlink() -> Iterator[Finding]:
    with PmEvents.open():
        yield Status.OK, "path-manager events can be subscribed to", None


def _btf() -> Iterator[Finding]:
    file = Path("/sys/kernel/btf/vmlinux")
    if file.exists():
        yield Status.OK, f"{file} is there", None
    elif not Path("/sys/kernel").is_dir():
        yield Status.UNKNOWN, "/sys is not mounted here", "mount -t sysfs sysfs /sys"
    else:
        yield Status.WARN, f"{file} is missing: no probes", "use CONFIG_DEBUG_INFO_BTF=y"


def _lockdown() -> Iterator[Finding]:
    file = Path("/sys/kernel/security/lockdown")
    try:
        mode = re.search(r"\[(\w+)\]", file.read_text())
    except OSError as error:
        yield (
            Status.UNKNOWN,
            f"{file}: {error.strerror}",
            "as root: mount -t securityfs securityfs /sys/kernel/security; the probes work "
            "in every mode",
        )
        return
    yield Status.OK, f"{mode[1] if mode else 'none'}; the probes work in every mode", None


def _probes() -> Iterator[Finding]:
    from mptcpd_ebpf.probes import BpfUnavailable, Probes

    try:
        with Probes.open(netns=netns.inode()) as probes:
            yield Status.OK, f"loaded and attached: {probes.report}", None
    except BpfUnavailable as error:
        if os.geteuid() != 0:
            yield Status.UNKNOWN, str(error), _AS_ROOT
        else:
            yield (
                Status.WARN,
                str(error),
                "without probes paths are managed from netlink alone: RTT, loss and stalls are "
                "not seen",
            )


def _initial_path() -> Iterator[Finding]:
    from mptcpd_ebpf.probes import BpfUnavailable
    from mptcpd_ebpf.probes.start_steering import StartSteering

    try:
        StartSteering.check()
        yield Status.OK, "'initial_path: steer' can start new connections on another path", None
    except BpfUnavailable as error:
        yield (
            Status.UNKNOWN if os.geteuid() != 0 else Status.WARN,
            f"'initial_path: steer' has no effect: {error}",
            "without it new connections start where the routes say",
        )


def _daemon() -> Iterator[Finding]:
    holder = lock.holder()
    if holder is None:
        yield Status.OK, "none runs in this network namespace", None
    else:
        yield Status.OK, f"process {holder[0]} serves this network namespace", None


def _others() -> Iterator[Finding]:
    holder = lock.holder()
    found = others.others([holder[0]] if holder else [])
    unseen = next((manager for manager in found if manager.pid is None), None)
    if holder and unseen and not os.access(f"/proc/{holder[0]}/fd", os.R_OK):
        found.remove(unseen)  # whose sockets our daemon's are is as hidden as all others'
    for manager in found:
        who = f"{manager.comm or 'a process'} (pid {manager.pid or 'unknown'})"
        what = "is subscribed to" if manager.subscribed else "may set endpoints for"
        yield Status.WARN, f"{who} {what} this namespace's MPTCP", manager.advice
    if found:
        return
    if os.geteuid() != 0:
        yield Status.UNKNOWN, "none seen, but other users' processes are out of sight", _AS_ROOT
    else:
        yield Status.OK, "none", None


def _paths() -> Iterator[Finding]:
    world = World()
    with Requester(NETLINK_ROUTE) as requester:
        for event in [*rtnetlink.links(requester), *rtnetlink.addresses(requester)]:
            network.apply(world, event, time.monotonic_ns())
    by_name: dict[str, list[str]] = {}
    for address in world.usable_addresses():
        name = world.interface_name(address.if_index) or str(address.if_index)
        by_name.setdefault(name, []).append(address.ip)
    text = "; ".join(f"{name} {', '.join(ips)}" for name, ips in by_name.items())
    if len(by_name) > 1:
        yield Status.OK, text, None
    else:
        yield (
            Status.WARN,
            f"{text or 'no interface is up with an address'}: no second path from here",
            "bring up a second uplink with an address of its own",
        )


_CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "kernel": _kernel,
    "mptcp": _mptcp,
    "sysctls": _sysctls,
    "capabilities": _capabilities,
    "netlink": _netlink,
    "paths": _paths,
    "btf": _btf,
    "lockdown": _lockdown,
    "probes": _probes,
    "initial path": _initial_path,
    "daemon": _daemon,
    "other managers": _others,
}
