# SPDX-License-Identifier: BSD-3-Clause
"""Hosts under userspace path management, and real MPTCP connections between two of them."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import pytest

from mptcpd_ebpf.core.events import ConnectionEstablished, Event, ListenerCreated
from mptcpd_ebpf.kernel.pm_client import PmClient
from mptcpd_ebpf.kernel.pm_events import PmEvents
from mptcpd_ebpf.kernel.sysctl import PathManagerSetting
from mptcpd_ebpf.lab import Host
from tests.netns.event_log import EventLog
from tests.netns.mptcp_sockets import connected_sockets, exchange, listen


def need_listener_events(host: Host) -> None:
    """Skips the test on a kernel without events about listeners (Linux 6.1 has none)."""
    with host.entered(), PmEvents.open() as events, listen(host, "127.0.0.1"):
        # The kernel sends the event inside listen(), so it is here by now or never.
        if not any(isinstance(event, ListenerCreated) for event in events.read()):
            pytest.skip("this kernel sends no events about listeners")


class Peer(NamedTuple):
    """One end: a host under userspace path management, its events, and its netlink client."""

    host: Host
    log: EventLog[Event]
    pm: PmClient


class Pair(NamedTuple):
    """A fully established connection, and the events of each end's kernel."""

    client: socket.socket
    server: socket.socket
    at_client: ConnectionEstablished
    at_server: ConnectionEstablished

    def exchange(self, payload: bytes = b"x") -> None:
        """Both ends send and receive, so that each has seen the other's data."""
        exchange(self, payload)


@contextmanager
def peer(host: Host, *, path_manager: str = "userspace") -> Iterator[Peer]:
    with ExitStack() as stack:
        with host.entered():
            PathManagerSetting().set(path_manager)
            events = stack.enter_context(PmEvents.open())
            pm = stack.enter_context(PmClient())
        yield Peer(host, EventLog(events), pm)


@contextmanager
def connected(client: Peer, server: Peer, ip: str, *, bind_to: str = "") -> Iterator[Pair]:
    """A connection to `ip` on the server; ``::`` as `bind_to` makes the server dual-stack."""
    with connected_sockets(client.host, server.host, ip, listen_on=bind_to) as ends:
        near, far = ends.client.getsockname()[1], ends.listener.getsockname()[1]
        # The client's port alone may be that of an earlier connection, to another listener.
        at_client = client.log.wait(
            ConnectionEstablished, lambda e: (e.local.port, e.remote.port) == (near, far)
        )
        at_server = server.log.wait(
            ConnectionEstablished, lambda e: (e.remote.port, e.local.port) == (near, far)
        )
        yield Pair(ends.client, ends.server, at_client, at_server)
