# SPDX-License-Identifier: BSD-3-Clause
"""The event subscription: overflow, a kept descriptor, datagrams of other processes."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from mptcpd_ebpf.core.events import EventsLost, ListenerCreated
from mptcpd_ebpf.kernel.errors import MptcpMissing
from mptcpd_ebpf.kernel.netlink import GENERIC_HEADER, message, u32
from mptcpd_ebpf.kernel.pm import VERSION
from mptcpd_ebpf.kernel.pm_events import CLOSED, SOURCE, TOKEN, PmEvents
from mptcpd_ebpf.kernel.transport import NETLINK_GENERIC
from mptcpd_ebpf.lab import Lab
from tests.netns.event_log import EventLog
from tests.netns.mptcp_peers import need_listener_events
from tests.netns.mptcp_sockets import listen


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        need_listener_events(lab.client)
        yield lab


def test_an_overflow_is_reported_and_events_continue(lab: Lab) -> None:
    with lab.client.entered():
        events = PmEvents.open(receive_buffer=4096)
    with events:
        for _ in range(50):
            listen(lab.client, "127.0.0.1").close()
        log = EventLog(events)
        assert log.wait(EventsLost).source == SOURCE
        log.drain()
        with listen(lab.client, "127.0.0.1") as listener:
            port = listener.getsockname()[1]
            log.wait(ListenerCreated, lambda event: event.local.port == port)
        assert not any(isinstance(event, EventsLost) for event in log.events)


def test_a_burst_fits_the_default_buffer(lab: Lab) -> None:
    with lab.client.entered():
        events = PmEvents.open()
    with events:
        for _ in range(500):
            listen(lab.client, "127.0.0.1").close()
        events_read: list[object] = []
        while batch := events.read():
            events_read += batch
    assert not any(isinstance(event, EventsLost) for event in events_read)
    assert sum(isinstance(event, ListenerCreated) for event in events_read) == 500


def test_a_kept_descriptor_continues_to_receive(lab: Lab) -> None:
    """A process reads the events of a subscription that an earlier process opened."""
    with lab.client.entered(), PmEvents.open() as first:
        kept = os.dup(first.fileno())
    with listen(lab.client, "127.0.0.1") as listener, PmEvents.adopt(kept) as events:
        port = listener.getsockname()[1]
        EventLog(events).wait(ListenerCreated, lambda event: event.local.port == port)
        assert not os.get_inheritable(events.fileno())


def test_another_process_cannot_forge_events(lab: Lab) -> None:
    """A datagram from another process is not a kernel event."""
    with ExitStack() as stack:
        with lab.client.entered():
            events = stack.enter_context(PmEvents.open())
            forger = stack.enter_context(
                socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC)
            )
        ours = stack.enter_context(socket.socket(fileno=os.dup(events.fileno())))
        closed = GENERIC_HEADER.pack(CLOSED, VERSION, 0) + u32(TOKEN, 1)
        forger.sendto(message(99, 0, 0, closed), (ours.getsockname()[0], 0))
        assert events.read() == []


def test_a_kernel_without_the_family_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mptcpd_ebpf.kernel.pm.FAMILY", "mptcp_not_here")
    with pytest.raises(MptcpMissing, match="no MPTCP"), PmEvents.open():
        pass
