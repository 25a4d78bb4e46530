# SPDX-License-Identifier: BSD-3-Clause
"""The public library: Linux's MPTCP path managers from Python, with or without the daemon.

    from mptcpd_ebpf.api import CreateSubflow, PmClient, PmEvents, SubflowEstablished, follow

    with PmEvents.open() as events, PmClient() as pm:
        for event in follow(events):
            print(event)

* `PmClient` carries out commands, which are plain records (`AddEndpoint`,
  `CreateSubflow`, …): `await pm.execute(command)`, or `pm.execute_now(command)`.  It also
  reads endpoints and limits.
* `PmEvents` and `RouteEvents` are the kernel's events about connections and about the local
  network; `follow` and `follow_async` wait for them.
* `NetworkMonitor` keeps the current interfaces, addresses and default routes.
* `AddressIds` gives each local address an id from 1 to 255, `Listeners` opens the sockets
  for announced ports, `PathManagerSetting` sets the path manager of new connections.
* `snapshot` reads the open connections and subflows.

Everything works on the network namespace of the thread that opens it.  Userspace path
management needs CAP_NET_ADMIN.  docs/kernel.md tells more.
"""

import asyncio
import select
import time
from collections.abc import AsyncIterator, Iterator
from typing import Self

from mptcpd_ebpf.core import network
from mptcpd_ebpf.core.address import SockAddr, parse_sockaddr
from mptcpd_ebpf.core.address_ids import AddressIds
from mptcpd_ebpf.core.commands import (
    AddEndpoint,
    AnnounceAddress,
    ChangeEndpoint,
    CreateSubflow,
    DestroySubflow,
    FlushEndpoints,
    KernelCommand,
    RemoveEndpoint,
    SetBackup,
    SetLimits,
    WithdrawAddress,
)
from mptcpd_ebpf.core.endpoints import Endpoint, EndpointFlag, Limits
from mptcpd_ebpf.core.events import (
    AddressAnnounced,
    AddressWithdrawn,
    ConnectionClosed,
    ConnectionCreated,
    ConnectionEstablished,
    DefaultRouteAdded,
    DefaultRouteRemoved,
    Event,
    EventsLost,
    LinkChanged,
    LinkRemoved,
    ListenerClosed,
    ListenerCreated,
    LocalAddressChanged,
    LocalAddressRemoved,
    Resynchronised,
    SubflowClosed,
    SubflowEstablished,
    SubflowPriority,
)
from mptcpd_ebpf.core.measurement import Measurement
from mptcpd_ebpf.core.model import DefaultRoute, Link, LocalAddress, World
from mptcpd_ebpf.kernel import rtnetlink
from mptcpd_ebpf.kernel.diag import Snapshot, snapshot
from mptcpd_ebpf.kernel.errors import KernelError, MptcpMissing, NetlinkRefused, NotPermitted
from mptcpd_ebpf.kernel.event_source import EventSource
from mptcpd_ebpf.kernel.listeners import Listeners
from mptcpd_ebpf.kernel.pm_client import CommandAnswer, PmClient
from mptcpd_ebpf.kernel.pm_events import PmEvents
from mptcpd_ebpf.kernel.rtnetlink import RouteEvents
from mptcpd_ebpf.kernel.sysctl import PathManagerSetting
from mptcpd_ebpf.kernel.transport import NETLINK_ROUTE, Requester

__all__ = [
    "AddEndpoint",
    "AddressAnnounced",
    "AddressIds",
    "AddressWithdrawn",
    "AnnounceAddress",
    "ChangeEndpoint",
    "CommandAnswer",
    "ConnectionClosed",
    "ConnectionCreated",
    "ConnectionEstablished",
    "CreateSubflow",
    "DefaultRoute",
    "DefaultRouteAdded",
    "DefaultRouteRemoved",
    "DestroySubflow",
    "Endpoint",
    "EndpointFlag",
    "Event",
    "EventSource",
    "EventsLost",
    "FlushEndpoints",
    "KernelCommand",
    "KernelError",
    "Limits",
    "Link",
    "LinkChanged",
    "LinkRemoved",
    "ListenerClosed",
    "ListenerCreated",
    "Listeners",
    "LocalAddress",
    "LocalAddressChanged",
    "LocalAddressRemoved",
    "Measurement",
    "MptcpMissing",
    "NetlinkRefused",
    "NetworkMonitor",
    "NotPermitted",
    "PathManagerSetting",
    "PmClient",
    "PmEvents",
    "RemoveEndpoint",
    "RouteEvents",
    "SetBackup",
    "SetLimits",
    "Snapshot",
    "SockAddr",
    "SubflowClosed",
    "SubflowEstablished",
    "SubflowPriority",
    "WithdrawAddress",
    "follow",
    "follow_async",
    "parse_sockaddr",
    "snapshot",
]


def follow(*sources: EventSource, timeout_s: float | None = None) -> Iterator[Event]:
    """Events of all sources as they come; ends after `timeout_s` without any, else never."""
    while True:
        quiet_until = None if timeout_s is None else time.monotonic() + timeout_s
        heard = False
        while not heard:
            left = None if quiet_until is None else max(quiet_until - time.monotonic(), 0)
            ready = select.select(sources, [], [], left)[0]
            if not ready:
                return
            for source in ready:
                for event in source.read():
                    heard = True
                    yield event


async def follow_async(*sources: EventSource) -> AsyncIterator[Event]:
    """Events of all sources as they come, for asyncio; ends only by being cancelled or closed."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    for source in sources:
        loop.add_reader(source.fileno(), ready.set)
    try:
        while True:
            await ready.wait()
            ready.clear()
            for source in sources:
                for event in source.read():
                    yield event
    finally:
        for source in sources:
            loop.remove_reader(source.fileno())


class NetworkMonitor:
    """The local network as it is now, kept up to date by reading.

    `world` holds links, addresses and default routes; its `usable_addresses` are those
    a subflow can start from.  An overflow is made good by reading everything anew.
    """

    def __init__(self) -> None:
        """Subscribes, then reads what is there.  Raises NetlinkRefused."""
        self.world = World()
        self._requester = Requester(NETLINK_ROUTE)
        try:
            self._events = RouteEvents.open()
            self._read_anew()
        except BaseException:
            self._requester.close()
            raise

    def fileno(self) -> int:
        """Readable when there is news."""
        return self._events.fileno()

    def close(self) -> None:
        """Unsubscribes; `world` stays as it was last.  A second time does nothing."""
        self._events.close()
        self._requester.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self) -> list[Event]:
        """Brings `world` up to date and returns what has changed; never blocks."""
        events = self._events.read()
        for event in events:
            if isinstance(event, EventsLost):
                self._read_anew()
            else:
                network.apply(self.world, event, time.monotonic_ns())
        return events

    def _read_anew(self) -> None:
        whole = Resynchronised(
            connections=[],
            subflows=[],
            links=rtnetlink.links(self._requester),
            addresses=rtnetlink.addresses(self._requester),
            routes=rtnetlink.default_routes(self._requester),
        )
        network.resynchronise(self.world, whole, time.monotonic_ns())
