# SPDX-License-Identifier: BSD-3-Clause
"""Carries out where new connections start (`initial_path: steer`).

Only the default route is replaced.  So the programs in the kernel get every other route, again
after each change of them, and leave connections to those destinations alone.
"""

import errno
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from mptcpd_ebpf.config.settings import Config, InitialPath
from mptcpd_ebpf.control.schema import NewConnectionsView
from mptcpd_ebpf.core.commands import SteerNewConnections
from mptcpd_ebpf.core.events import Event
from mptcpd_ebpf.core.steering import Steering
from mptcpd_ebpf.kernel import rtnetlink
from mptcpd_ebpf.kernel.errors import KernelError
from mptcpd_ebpf.kernel.event_source import EventSource
from mptcpd_ebpf.kernel.pm_client import CommandAnswer
from mptcpd_ebpf.kernel.route_messages import GROUPS
from mptcpd_ebpf.kernel.transport import NETLINK_ROUTE, Requester, Subscription

if TYPE_CHECKING:
    from mptcpd_ebpf.probes.start_steering import StartSteering

log = logging.getLogger("mptcpd-ebpf")

_RECEIVE_BUFFER = 1 << 16  # an overflow does no harm: the routes are read again in any case


class NewConnections:
    """Steers new connections, or states why it does not.  A context manager."""

    def __init__(self, reason: str, steering: "StartSteering | None" = None) -> None:
        self._reason = reason
        self._steering = steering
        self._stack = ExitStack()
        self._active: dict[bool, None] = {}
        """The families that are steered, by whether IPv6."""
        self.sources: list[EventSource] = []
        if steering is None:
            return
        self._stack.callback(steering.close)
        self._requester = self._stack.enter_context(Requester(NETLINK_ROUTE))
        self._routes = Subscription.open(
            NETLINK_ROUTE,
            [GROUPS["ipv4 route"], GROUPS["ipv6 route"]],
            receive_buffer=_RECEIVE_BUFFER,
        )
        self._stack.callback(self._routes.close)
        self.sources += [steering, _RouteChanges(self)]

    @classmethod
    def open(cls, config: Config) -> Self:
        """Attaches in the calling thread's network namespace, if the configuration says so.

        Where that is not possible new connections are not steered, and a warning says why.
        """
        if config.initial_path is InitialPath.ROUTES:
            return cls("not steered, as configured")
        from mptcpd_ebpf.probes import BpfUnavailable  # loads libbpf
        from mptcpd_ebpf.probes.start_steering import StartSteering

        folders = [Path(folder) for folder in config.initial_path_cgroups]
        try:
            steering = StartSteering.open(folders)
        except BpfUnavailable as error:
            log.warning("initial_path: new connections are not steered: %s", error)
            return cls(f"not steered: {error}")
        where = ", ".join(map(str, folders)) or "the root cgroup"
        return cls(f"attached to {where}", steering)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def steers(self) -> bool:
        return self._steering is not None

    def execute(self, command: SteerNewConnections) -> CommandAnswer:
        """Carries out a decision; `errno` is ENOSPC where there are too many routes."""
        if self._steering is None:
            return CommandAnswer(errno.EOPNOTSUPP, self._reason)
        try:
            if command.local_ip is not None:
                self._active[command.ipv6] = None
                self.read_routes()
            else:
                self._active.pop(command.ipv6, None)
            self._steering.set_source(
                ipv6=command.ipv6, ip=command.local_ip, interface=command.interface
            )
        except (OSError, KernelError) as error:
            code = getattr(error, "errno", None) or errno.EIO
            return CommandAnswer(code, f"new connections cannot be steered: {error}")
        return CommandAnswer(0, "")

    def release(self) -> None:
        """Lets all new connections start where the routes say."""
        if self._steering is not None:
            for ipv6 in self._active:
                self._steering.set_source(ipv6=ipv6, ip=None)
        self._active.clear()

    def read_routes(self) -> None:
        """Updates the destinations that are left alone.  Raises OSError or KernelError."""
        assert self._steering is not None
        prefixes = [
            prefix
            for ipv6 in (False, True)
            for prefix in rtnetlink.specific_routes(self._requester, ipv6=ipv6)
        ]
        self._steering.set_specific_routes(prefixes)

    def routes_changed(self) -> None:
        """Reads the routes again, if they matter at present."""
        self._routes.discard()
        if not self._active:
            return
        try:
            self.read_routes()
        except (OSError, KernelError) as error:
            log.error("initial_path: the routes cannot be read: %s", error)

    def route_changes(self) -> int:
        """A descriptor that is readable after a route has changed."""
        return self._routes.fileno()

    def status(self, steering: Steering, epoch_ns: int) -> NewConnectionsView:
        counters = self._steering.counters if self._steering is not None else None
        return {
            "steers": self.steers,
            "reason": self._reason,
            "steered": [
                {
                    "family": "IPv6" if ipv6 else "IPv4",
                    "interface": each.interface,
                    "local": each.local_ip,
                    "since": (each.since + epoch_ns) / 1e9,
                    "reason": each.reason,
                }
                for ipv6, each in steering.steered.items()
            ],
            "count": counters["steered"] if counters is not None else None,
        }


class _RouteChanges:
    """Turns a change of routes into an update of the programs' maps; returns no events."""

    def __init__(self, owner: NewConnections) -> None:
        self._owner = owner

    def fileno(self) -> int:
        return self._owner.route_changes()

    def read(self) -> Sequence[Event]:
        self._owner.routes_changed()
        return ()
