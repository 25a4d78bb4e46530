# SPDX-License-Identifier: BSD-3-Clause
"""The process that holds a lab for the command line: ``python -m mptcpd_ebpf.lab.keeper``.

``mptcpd-ebpf lab up`` starts it, the other lab commands send it requests.  It listens on an
abstract Unix socket (unix(7)), which exists exactly as long as the process, in its network
namespace only: a name in use means a lab that is up, and nothing is left when the process
ends.  One SEQPACKET message is one request or answer in JSON; only root is answered.
"""

import errno
import json
import os
import re
import signal
import socket
import struct
import sys
import traceback
from contextlib import suppress
from types import FrameType
from typing import Any

import msgspec

from mptcpd_ebpf.lab.errors import LabError, UnavailableError
from mptcpd_ebpf.lab.host import Host
from mptcpd_ebpf.lab.lab import Lab
from mptcpd_ebpf.lab.live import LiveLink, LivePath
from mptcpd_ebpf.lab.running_schedule import RunningSchedule
from mptcpd_ebpf.lab.schedule import Step
from mptcpd_ebpf.lab.topology import Topology

SCHEMA = 1
_PREFIX = "\0mptcpd-ebpf-lab/"
_MESSAGE = 1 << 18
_TIMEOUT_S = 30.0
_LONGEST_NAME = 64  # an abstract name has room for 107 bytes, unix(7)
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{_LONGEST_NAME - 1}}}")
_UCRED = struct.Struct("3i")  # pid, uid, gid


class NotUpError(LabError):
    """No lab of that name is up."""


class TakenError(LabError):
    """A lab of that name is up already."""


class RequestError(LabError):
    """The request is not possible; nothing was changed."""


def check_name(name: str) -> None:
    """Raises RequestError for an invalid name of a lab."""
    if not _NAME.fullmatch(name):
        raise RequestError(
            f"{name!r} cannot be a lab's name: a letter or digit, then up to "
            f"{_LONGEST_NAME - 1} letters, digits, '.', '-' and '_'"
        )


# --- the commands' side


def up(name: str, topology: Topology) -> None:
    """Starts a keeper; returns when its lab is ready.  Raises LabError if it cannot be built."""
    check_name(name)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        pid = os.fork()
        if pid == 0:
            _become_keeper(theirs, name, topology)
        theirs.close()
        answer = ours.recv(_MESSAGE)
    os.waitpid(pid, 0)
    if not answer:
        raise LabError("the lab's keeper ended without a message")
    _checked(answer)


def ask(name: str, request: dict[str, Any]) -> dict[str, Any]:
    """Sends a request to a keeper and returns its answer.

    Raises NotUpError if there is no keeper, RequestError if it refuses, LabError if it fails.
    """
    check_name(name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(_TIMEOUT_S)
        try:
            connection.connect(_PREFIX + name)
        except ConnectionRefusedError:
            others = ", ".join(names_up())
            hint = f"; up: {others}" if others else "; 'mptcpd-ebpf lab up' starts one"
            raise NotUpError(f"no lab {name!r} is up in this network namespace{hint}") from None
        connection.send(json.dumps(request).encode())
        try:
            answer = connection.recv(_MESSAGE)
        except TimeoutError:
            raise LabError(f"lab {name!r} does not answer") from None
    if not answer:
        raise LabError(f"lab {name!r} ended without an answer")
    return _checked(answer)


def names_up() -> list[str]:
    """The names of the labs that are up in this network namespace."""
    shown = "@" + _PREFIX[1:]
    with open("/proc/self/net/unix") as file:
        paths = [line.split()[7] for line in file if line.count(" ") and "@" in line]
    return sorted({path.removeprefix(shown) for path in paths if path.startswith(shown)})


def _checked(answer: bytes) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(answer)
    for key, kind in _REFUSALS.items():
        if key in record:
            raise kind(record[key])
    return record


_REFUSALS = {
    "unavailable": UnavailableError,
    "taken": TakenError,
    "refused": RequestError,
    "error": LabError,
}


def _refusal(error: Exception) -> dict[str, str]:
    """An exception as an answer, from which `_checked` raises it again."""
    if isinstance(error, LabError):
        kind = next((key for key, kind in _REFUSALS.items() if type(error) is kind), "error")
        return {kind: str(error)}
    where = traceback.extract_tb(error.__traceback__)[-1]
    words = f"{type(error).__name__}: {error} ({os.path.basename(where.filename)}:{where.lineno})"
    return {"error": f"unexpectedly: {words}"}


# --- the keeper's side


def _become_keeper(report: socket.socket, name: str, topology: Topology) -> None:
    """Runs in a forked child: starts the keeper in a session of its own.  Never returns."""
    os.setsid()
    if os.fork():
        os._exit(0)
    os.set_inheritable(report.fileno(), True)
    os.execv(
        sys.executable,
        [
            sys.executable,
            "-m",
            "mptcpd_ebpf.lab.keeper",
            str(report.fileno()),
            name,
            msgspec.json.encode(topology).decode(),
        ],
    )


class _Ended(Exception):  # noqa: N818 - nothing went wrong
    """A signal requests that the keeper take its lab down."""


def _end(_number: int, _frame: FrameType | None) -> None:
    raise _Ended


def main() -> None:
    report = socket.socket(fileno=int(sys.argv[1]))
    name = sys.argv[2]
    topology = msgspec.json.decode(sys.argv[3], type=Topology)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.chdir("/")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _end)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(_PREFIX + name)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        words = f"a lab {name!r} is up already" if taken else f"{name!r}: {error.strerror}"
        _send(report, {"taken" if taken else "error": words})
        return
    listener.listen(8)
    last: socket.socket | None = None
    try:
        with Lab.of(topology) as lab:
            schedule = lab.schedule() if topology.schedule else None
            _send(report, {})
            report.close()
            last = _serve(listener, lab, schedule)
    except _Ended:
        return
    except Exception as error:
        if last is None:
            _send(report, _refusal(error))
        else:
            _send(last, {"error": f"the lab is down, but {error}"})
    else:
        _send(last, {})


def _send(connection: socket.socket, answer: dict[str, Any]) -> None:
    """Sends an answer, unless the client has stopped waiting."""
    with suppress(OSError):
        connection.send(json.dumps(answer).encode())


def _serve(listener: socket.socket, lab: Lab, schedule: RunningSchedule | None) -> socket.socket:
    """Answers requests; returns the connection whose request takes the lab down."""
    while True:
        connection, _ = listener.accept()
        connection.settimeout(_TIMEOUT_S)
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        if _UCRED.unpack(credentials)[1] != os.geteuid():
            connection.close()
            continue
        with connection:
            try:
                request = json.loads(connection.recv(_MESSAGE))
            except (OSError, ValueError):
                continue
            if request == {"down": True}:
                return connection.dup()
            try:
                answer = _answer(lab, schedule, request)
            except Exception as error:
                answer = _refusal(error)
            _send(connection, answer)


def _answer(lab: Lab, schedule: RunningSchedule | None, request: dict[str, Any]) -> dict[str, Any]:
    if "step" in request:
        try:
            step = msgspec.convert(request["step"], Step)
            lab.check(step)
        except (msgspec.ValidationError, LabError) as error:
            raise RequestError(str(error)) from None
        lab.do(step)
    return shown(lab, schedule)


def shown(lab: Lab, schedule: RunningSchedule | None) -> dict[str, Any]:
    """A lab as plain data, as ``lab show --json`` prints it (docs/lab.md)."""
    return {
        "schema": SCHEMA,
        "backend": lab.backend.name,
        "trouble": lab.backend.error(),
        "hosts": [_host(host) for host in lab.hosts.values()],
        "routers": [_host(host) for host in lab.routers.values()],
        "paths": [_path(path) for path in lab.paths],
        "bottlenecks": [_link(link) for link in lab.bottlenecks.values()],
        "schedule": None if schedule is None else schedule.state(),
    }


def _host(host: Host) -> dict[str, Any]:
    return {"name": host.label, "namespace": host.name, "inode": host.netns}


def _link(link: LiveLink) -> dict[str, Any]:
    up, down = link.blackholed
    return {
        "name": link.name,
        "up": {**msgspec.to_builtins(link.up), "blackhole": up},
        "down": {**msgspec.to_builtins(link.down), "blackhole": down},
    }


def _path(path: LivePath) -> dict[str, Any]:
    link = _link(path)
    for name, stripped, dropped in zip(("up", "down"), path.stripped, path.dropped, strict=True):
        link[name] |= {"strip_mptcp": stripped, "drop_mptcp": list(dropped)}
    return {
        **link,
        "between": list(path.path.between),
        "addresses": [
            [ip for ip in dict.fromkeys(ips) if ip]
            for ips in ((path.client_ip, path.client_ip6), (path.server_ip, path.server_ip6))
        ],
        "nat": path.path.nat,
        "bottleneck": path.path.bottleneck,
        "faults": {
            "carrier_off": sorted(path.faults.carrier_off),
            "address_removed": sorted(path.faults.address_removed),
            "interface_removed": path.faults.interface_removed,
            "router_off": path.faults.router_off,
        },
    }


if __name__ == "__main__":
    main()
