# SPDX-License-Identifier: BSD-3-Clause
"""The public library, used as a stranger would: without the daemon, blocking and from asyncio."""

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest

from mptcpd_ebpf import api
from mptcpd_ebpf.kernel.diag import listeners
from mptcpd_ebpf.lab import Host, Lab
from tests.netns.event_log import EventLog
from tests.netns.mptcp_peers import connected, need_listener_events, peer
from tests.waiting import SLOWNESS


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture
def inside(lab: Lab) -> Iterator[Host]:
    with lab.client.entered():
        yield lab.client


def test_everything_named_is_there() -> None:
    assert api.__all__ == sorted(set(api.__all__))
    for name in api.__all__:
        assert getattr(api, name) is not None


def test_a_path_manager_in_a_few_lines(lab: Lab) -> None:
    """Every new connection gets a subflow from the second address; found again by `snapshot`."""

    async def manage(events: api.PmEvents, pm: api.PmClient) -> api.SubflowEstablished:
        async for event in api.follow_async(events):
            if isinstance(event, api.ConnectionEstablished):
                ids = api.AddressIds()
                ip = lab.paths[1].client_ip
                answer = await pm.execute(
                    api.CreateSubflow(
                        token=event.token,
                        local_ip=ip,
                        local_id=ids.propose(ip),
                        remote=event.remote,
                        reason="a subflow per path",
                    )
                )
                assert answer == (0, "")
            if isinstance(event, api.SubflowEstablished):
                return event
        raise AssertionError("the events ended")

    with lab.client.entered():
        setting = api.PathManagerSetting()
        setting.set("userspace")
        with (
            api.PmEvents.open() as events,
            api.PmClient() as pm,
            peer(lab.server) as server,
            peer(lab.client) as client,
            connected(client, server, lab.paths[0].server_ip),
        ):
            established = asyncio.run(asyncio.wait_for(manage(events, pm), 5 * SLOWNESS))
            assert established.local.ip == lab.paths[1].client_ip
            found = api.snapshot()
            assert [c.token for c in found.connections] == [established.token]
            assert (established.local, established.remote) in {
                (s.local, s.remote) for s in found.subflows
            }


def test_following_ends_when_nothing_comes(inside: Host) -> None:
    need_listener_events(inside)
    with api.PmEvents.open() as connections, api.NetworkMonitor() as local:
        inside.run(["ip", "address", "add", "192.0.2.1/32", "dev", "lo"])
        with api.Listeners() as opened:
            opened.open(api.SockAddr("192.0.2.1", 0))
        kinds = [type(event) for event in api.follow(connections, local, timeout_s=0.05)]
    assert set(kinds) == {api.LocalAddressChanged, api.ListenerCreated, api.ListenerClosed}


def test_the_monitor_knows_what_a_subflow_can_start_from(lab: Lab, inside: Host) -> None:
    path = lab.paths[0]

    def usable(monitor: api.NetworkMonitor) -> set[str]:
        monitor.read()
        return {address.ip for address in monitor.world.usable_addresses()}

    with api.NetworkMonitor() as monitor:
        both = {path.client_ip, lab.paths[1].client_ip}
        assert usable(monitor) == both
        inside.run(["ip", "link", "set", path.client_if, "down"])
        assert usable(monitor) == both - {path.client_ip}
        index = {link.name: link.if_index for link in monitor.world.links.values()}["path0"]
        inside.run(["ip", "link", "set", path.client_if, "up"])
        EventLog(monitor).wait(api.LinkChanged, lambda e: e.if_index == index and e.running)
        assert usable(monitor) == both


def test_an_overflow_of_the_monitor_is_made_good(
    inside: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = api.RouteEvents.open(receive_buffer=4096)
    monkeypatch.setattr(api.RouteEvents, "open", lambda: small)
    with api.NetworkMonitor() as monitor:
        inside.batch("ip", [f"address add 192.0.2.{n}/32 dev lo" for n in range(1, 101)])
        EventLog(monitor).wait(api.EventsLost)
        assert sum(ip.startswith("192.0.2.") for _, ip in monitor.world.addresses) == 100


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
def test_listeners_are_counted(ip: str) -> None:
    with Lab(ip="both") as lab, lab.client.entered(), api.Listeners() as opened:
        listener = opened.open(api.SockAddr(ip, 0))
        assert listener.port
        assert opened.open(listener) == listener
        assert listeners() == [listener]
        with pytest.raises(api.KernelError, match="something listens there already"):
            api.Listeners().open(listener)
        assert not opened.close(listener)
        assert listeners() == [listener]
        assert opened.close(listener)
        assert listeners() == []
        with pytest.raises(KeyError):
            opened.close(listener)


def test_a_listener_that_cannot_be_opened(inside: Host) -> None:
    with api.Listeners() as opened:
        with pytest.raises(api.KernelError, match=r"192\.0\.2\.77:5: the address is not on this"):
            opened.open(api.SockAddr("192.0.2.77", 5))
        inside.sysctl("mptcp.enabled", 0)
        with pytest.raises(api.MptcpMissing, match=r"net\.mptcp\.enabled"):
            opened.open(api.SockAddr("127.0.0.1", 0))


@pytest.mark.usefixtures("inside")
def test_strangers_are_turned_away() -> None:
    with api.Listeners() as opened:
        listener = opened.open(api.SockAddr("127.0.0.1", 0))
        assert opened.close_accepted() == 0
        for protocol in (0, socket.IPPROTO_MPTCP):
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as stranger:
                stranger.settimeout(5 * SLOWNESS)
                stranger.connect(listener)
                assert opened.close_accepted() == 1
                assert stranger.recv(1) == b""


def test_it_belongs_to_the_namespace_of_the_thread(lab: Lab) -> None:
    """What one thread opens in a host stays there, whoever uses it and wherever."""
    opened: list[api.PmClient] = []

    def open_inside() -> None:
        with lab.client.entered():
            opened.append(api.PmClient())

    thread = threading.Thread(target=open_inside)
    thread.start()
    thread.join()
    with opened[0] as pm:
        done = pm.execute_now(api.AddEndpoint(ip="192.0.2.1", address_id=9, reason="test"))
        assert done == (0, "")
    assert "192.0.2.1 id 9" in lab.client.run(["ip", "mptcp", "endpoint"]).stdout
    assert lab.server.run(["ip", "mptcp", "endpoint"]).stdout == ""
