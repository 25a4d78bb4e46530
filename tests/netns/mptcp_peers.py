# SPDX-License-Identifier: BSD-3-Clause
"""Real MPTCP connections between two hosts of a lab, held by the test's own process.

A socket belongs to the namespace in which it was opened, so one thread can hold both
ends: it enters a host, opens, and leaves again.
"""

import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple, TypeVar

import pytest

from mptcpd_ebpf.core.events import ConnectionEstablished, Event, ListenerCreated
from mptcpd_ebpf.kernel.event_source import EventSource
from mptcpd_ebpf.kernel.pm_client import PmClient
from mptcpd_ebpf.kernel.pm_events import PmEvents
from mptcpd_ebpf.kernel.sysctl import PathManagerSetting
from mptcpd_ebpf.lab import Host
from tests.waiting import SLOWNESS

IPPROTO_MPTCP = 262
DEADLINE_S = 5.0 * SLOWNESS

E = TypeVar("E", bound=Event)


class Heard:
    """Everything a source has said so far; waits for what is to come."""

    def __init__(self, source: EventSource) -> None:
        self.source = source
        self.events: list[Event] = []

    def wait(self, kind: type[E], matches: Callable[[E], bool] = lambda _: True) -> E:
        """The first event of a kind that matches, past or to come."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            for event in self.events:
                if isinstance(event, kind) and matches(event):
                    return event
            left = deadline - time.monotonic()
            ready = left > 0 and select.select([self.source], [], [], left)[0]
            assert ready, f"no {kind.__name__} among {self.events}"
            self.events += self.source.read()

    def drain(self) -> None:
        """Takes what is there now and forgets all."""
        while select.select([self.source], [], [], 0)[0]:
            self.source.read()
        self.events.clear()


def need_listener_events(host: Host) -> None:
    """Skips the test on a kernel that tells of no listeners (Linux 6.1 does not)."""
    with host.entered(), PmEvents.open() as events, listen(host, "127.0.0.1"):
        # The kernel tells within listen() itself, so it is there by now or never comes.
        if not any(isinstance(event, ListenerCreated) for event in events.read()):
            pytest.skip("this kernel tells of no listeners")


class Peer(NamedTuple):
    """One end: a host under userspace path management, with ears and hands."""

    host: Host
    heard: Heard
    pm: PmClient


class Pair(NamedTuple):
    """A fully established connection."""

    client: socket.socket
    server: socket.socket
    at_client: ConnectionEstablished
    at_server: ConnectionEstablished

    def exchange(self, payload: bytes = b"x") -> None:
        """Both ends send and receive, so that each has seen the other's data."""
        for sender, receiver in ((self.client, self.server), (self.server, self.client)):
            sender.sendall(payload)
            left = len(payload)
            while left:
                left -= len(receiver.recv(left))


@contextmanager
def peer(host: Host, *, path_manager: str = "userspace") -> Iterator[Peer]:
    with ExitStack() as stack:
        with host.entered():
            PathManagerSetting().set(path_manager)
            events = stack.enter_context(PmEvents.open())
            pm = stack.enter_context(PmClient())
        yield Peer(host, Heard(events), pm)


def listen(host: Host, ip: str, *, family: int | None = None) -> socket.socket:
    family = family or (socket.AF_INET6 if ":" in ip else socket.AF_INET)
    with host.entered():
        listener = socket.socket(family, socket.SOCK_STREAM, IPPROTO_MPTCP)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind((ip, 0))
    listener.listen()
    listener.settimeout(DEADLINE_S)
    return listener


@contextmanager
def connected(client: Peer, server: Peer, ip: str, *, bind_to: str = "") -> Iterator[Pair]:
    """A connection to `ip` on the server; ``::`` as `bind_to` makes the server dual-stack."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with ExitStack() as stack:
        listener = stack.enter_context(listen(server.host, bind_to or ip))
        with client.host.entered():
            near = stack.enter_context(socket.socket(family, socket.SOCK_STREAM, IPPROTO_MPTCP))
        near.settimeout(DEADLINE_S)
        far_port = listener.getsockname()[1]
        near.connect((ip, far_port))
        far = stack.enter_context(listener.accept()[0])
        far.settimeout(DEADLINE_S)
        for sender, receiver in ((near, far), (far, near)):
            sender.sendall(b"x")
            receiver.recv(1)
        near_port = near.getsockname()[1]
        # The client's port alone may be that of an earlier connection, to another listener.
        at_client = client.heard.wait(
            ConnectionEstablished, lambda e: (e.local.port, e.remote.port) == (near_port, far_port)
        )
        at_server = server.heard.wait(
            ConnectionEstablished, lambda e: (e.remote.port, e.local.port) == (near_port, far_port)
        )
        yield Pair(near, far, at_client, at_server)
