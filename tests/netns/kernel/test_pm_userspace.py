# SPDX-License-Identifier: BSD-3-Clause
"""Commands for one connection, and every event they and the peer cause, on the real kernel.

Both hosts are under userspace path management; each command at one end is confirmed by
the events at both.
"""

import errno
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.commands import (
    AddEndpoint,
    AnnounceAddress,
    CreateSubflow,
    DestroySubflow,
    SetBackup,
    WithdrawAddress,
)
from mptcpd_ebpf.core.endpoints import EndpointFlag
from mptcpd_ebpf.core.events import (
    AddressAnnounced,
    AddressWithdrawn,
    ConnectionClosed,
    ConnectionCreated,
    ListenerClosed,
    ListenerCreated,
    SubflowClosed,
    SubflowEstablished,
    SubflowPriority,
)
from mptcpd_ebpf.kernel.errors import NetlinkRefused
from mptcpd_ebpf.kernel.pm import joins_marked
from mptcpd_ebpf.kernel.pm_client import CommandAnswer
from mptcpd_ebpf.lab import Lab
from tests.netns.mptcp_peers import Pair, Peer, connected, need_listener_events, peer
from tests.netns.mptcp_sockets import listen


class Scene:
    """Two hosts, two paths, one connection over the first."""

    def __init__(
        self, lab: Lab, client: Peer, server: Peer, pair: Pair, local: str, remote: str
    ) -> None:
        self.lab, self.client, self.server, self.pair = lab, client, server, pair
        self.second_ip = local
        self.announced_ip = remote

    def create(
        self,
        *,
        local_ip: str = "",
        local_id: int = 5,
        remote: SockAddr | None = None,
        remote_id: int = 0,
        backup: bool = False,
        token: int | None = None,
    ) -> CommandAnswer:
        """Asks for a second subflow, by default from the client's other address."""
        return self.client.pm.execute_now(
            CreateSubflow(
                token=self.pair.at_client.token if token is None else token,
                local_ip=local_ip or self.second_ip,
                local_id=local_id,
                remote=remote or self.pair.at_client.remote,
                remote_id=remote_id,
                backup=backup,
                reason="test",
            )
        )

    def join(self, *, backup: bool = False) -> SubflowEstablished:
        """A second subflow."""
        assert self.create(backup=backup) == (0, "")
        return self.client.log.wait(SubflowEstablished)


@pytest.fixture(params=["IPv4", "IPv6", "dual-stack"])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(ip="both"))
        client = stack.enter_context(peer(lab.client))
        server = stack.enter_context(peer(lab.server))
        first, second = lab.paths
        if request.param == "IPv6":
            assert first.server_ip6
            assert second.client_ip6
            assert second.server_ip6
            to, local, remote = first.server_ip6, second.client_ip6, second.server_ip6
            # Beside timestamps an IPv6 address and its port do not fit into the TCP options.
            lab.client.sysctl("ipv4.tcp_timestamps", 0)
            lab.server.sysctl("ipv4.tcp_timestamps", 0)
        else:
            to, local, remote = first.server_ip, second.client_ip, second.server_ip
        bind_to = "::" if request.param == "dual-stack" else ""
        pair = stack.enter_context(connected(client, server, to, bind_to=bind_to))
        yield Scene(lab, client, server, pair, local, remote)


def test_both_ends_get_the_events_of_a_connection(scene: Scene) -> None:
    pair = scene.pair
    near = SockAddr(*pair.client.getsockname()[:2])
    far = SockAddr(*pair.client.getpeername()[:2])
    for at, log, local, remote in (
        (pair.at_client, scene.client.log, near, far),
        (pair.at_server, scene.server.log, far, near),
    ):
        created = log.wait(ConnectionCreated)
        assert (created.token, created.local, created.remote) == (at.token, local, remote)
        assert (at.local, at.remote) == (local, remote)
        assert created.server_side is at.server_side is (log is scene.server.log)
        assert not created.deny_join_id0
    assert pair.at_client.token != pair.at_server.token
    pair.client.close()
    pair.server.close()
    assert scene.client.log.wait(ConnectionClosed).token == pair.at_client.token
    assert scene.server.log.wait(ConnectionClosed).token == pair.at_server.token


def test_a_subflow_is_created_and_destroyed(scene: Scene) -> None:
    joined = scene.join()
    at_server = scene.server.log.wait(SubflowEstablished)
    assert (joined.local.ip, joined.remote) == (scene.second_ip, scene.pair.at_client.remote)
    assert (joined.local_id, joined.remote_id, joined.backup) == (5, 0, False)
    assert (at_server.local, at_server.remote) == (joined.remote, joined.local)
    assert (at_server.local_id, at_server.remote_id) == (0, 5)
    command = DestroySubflow(
        token=joined.token, local=joined.local, remote=joined.remote, reason="test"
    )
    assert scene.client.pm.execute_now(command) == (0, "")
    closed = scene.client.log.wait(SubflowClosed)
    assert (closed.local, closed.remote, closed.local_id) == (joined.local, joined.remote, 5)
    gone = scene.server.log.wait(SubflowClosed)
    assert (gone.local, gone.remote) == (joined.remote, joined.local)
    scene.pair.exchange()

    again = scene.client.pm.execute_now(command)
    assert again.errno == errno.ESRCH
    assert "no subflow between these addresses" in again.explanation


def test_a_connections_addresses_are_reported_completely_or_not(scene: Scene) -> None:
    """Never the endpoint table instead, which older kernels send."""
    scene.join()
    endpoint = AddEndpoint(
        ip=scene.second_ip, address_id=9, flags=EndpointFlag.SUBFLOW, reason="test"
    )
    assert scene.client.pm.execute_now(endpoint) == (0, "")
    try:
        known = scene.client.pm.connection_addresses(scene.pair.at_client.token)
    except NetlinkRefused as refused:
        if refused.errno != errno.EOPNOTSUPP:
            raise
        pytest.skip(str(refused))
    assert [(a.ip, a.address_id) for a in known] == [(scene.second_ip, 5)]


def test_which_path_manager_has_a_connection(scene: Scene) -> None:
    """It is fixed when the connection is made; asking changes nothing."""
    token = scene.pair.at_client.token
    assert scene.client.pm.in_kernel(token) is False
    assert scene.client.pm.in_kernel(token ^ 1) is None
    scene.lab.client.sysctl("mptcp.pm_type", 0)
    with connected(scene.client, scene.server, scene.pair.at_client.remote.ip) as pair:
        assert scene.client.pm.in_kernel(pair.at_client.token) is True
        assert scene.client.pm.in_kernel(token) is False
        pair.exchange()
    scene.pair.exchange()


def test_the_initial_subflow_can_be_closed_beside_another(scene: Scene) -> None:
    scene.join()
    scene.server.log.wait(SubflowEstablished)
    for end, at in (
        (scene.server, scene.pair.at_server),
        (scene.client, scene.pair.at_client),
    ):
        answer = end.pm.execute_now(
            DestroySubflow(token=at.token, local=at.local, remote=at.remote, reason="test")
        )
        # The other end's own close may have been quicker.
        assert answer.errno in ((0,) if end is scene.server else (0, errno.ESRCH)), answer
        closed = end.log.wait(SubflowClosed)
        assert (closed.local, closed.remote) == (at.local, at.remote)
    scene.pair.exchange()


def test_backup_is_set_at_birth_and_changed_later(scene: Scene) -> None:
    joined = scene.join(backup=True)
    assert scene.server.log.wait(SubflowEstablished).backup is joins_marked()
    for backup in (False, True):
        scene.server.log.drain()
        answer = scene.client.pm.execute_now(
            SetBackup(
                token=joined.token,
                local=joined.local,
                remote=joined.remote,
                backup=backup,
                reason="test",
            )
        )
        assert answer == (0, "")
        told = scene.server.log.wait(SubflowPriority)
        assert (told.local, told.remote, told.backup) == (joined.remote, joined.local, backup)
        assert (told.local_id, told.remote_id) == (0, 5)


def test_an_address_is_announced_and_withdrawn(scene: Scene) -> None:
    token = scene.pair.at_server.token
    announce = AnnounceAddress(token=token, ip=scene.announced_ip, address_id=7, reason="test")
    assert scene.server.pm.execute_now(announce) == (0, "")
    told = scene.client.log.wait(AddressAnnounced)
    assert (told.token, told.address_id) == (scene.pair.at_client.token, 7)
    assert told.ip == scene.announced_ip
    # Where the peer named no port the kernel reports the connection's own.
    assert told.port == scene.pair.at_client.remote.port
    answer = scene.server.pm.execute_now(WithdrawAddress(token=token, address_id=7, reason="test"))
    assert answer == (0, "")
    withdrawn = scene.client.log.wait(AddressWithdrawn)
    assert (withdrawn.token, withdrawn.address_id) == (scene.pair.at_client.token, 7)


def test_an_announced_port_can_be_joined(scene: Scene) -> None:
    with listen(scene.lab.server, scene.announced_ip) as listener:
        address = SockAddr(scene.announced_ip, listener.getsockname()[1])
        announce = AnnounceAddress(
            token=scene.pair.at_server.token,
            ip=address.ip,
            address_id=7,
            port=address.port,
            reason="test",
        )
        assert scene.server.pm.execute_now(announce) == (0, "")
        told = scene.client.log.wait(AddressAnnounced)
        assert (told.ip, told.port) == address
        assert scene.create(remote=address, remote_id=7) == (0, "")
        joined = scene.client.log.wait(SubflowEstablished)
        assert (joined.remote, joined.remote_id) == (address, 7)


def test_an_unanswered_join_has_a_reason(scene: Scene) -> None:
    nobody = SockAddr(scene.announced_ip, 9)
    assert scene.create(remote=nobody) == (0, ""), "the kernel answers before the handshake"
    closed = scene.client.log.wait(SubflowClosed)
    assert (closed.remote, closed.error) == (nobody, errno.ECONNREFUSED)
    assert closed.reset_reason is None, "a plain RST gives no reason"


def test_listeners_come_and_go(scene: Scene) -> None:
    need_listener_events(scene.lab.server)
    with listen(scene.lab.server, scene.announced_ip) as listener:
        address = SockAddr(scene.announced_ip, listener.getsockname()[1])
        scene.server.log.wait(ListenerCreated, lambda e: e.local == address)
    scene.server.log.wait(ListenerClosed, lambda e: e.local == address)


def test_refusals_are_explained(scene: Scene) -> None:
    token = scene.pair.at_client.token
    scene.join()
    absent = "fd00:dead::1" if ":" in scene.second_ip else "203.0.113.1"
    nowhere = SockAddr(scene.second_ip, 1)
    execute = scene.client.pm.execute_now
    for answer, words in (
        (scene.create(local_id=6), "under another id"),
        (scene.create(token=0xFFFFFFFF), "it has closed"),
        (scene.create(local_ip=absent, local_id=9), "not on this host"),
        (
            execute(WithdrawAddress(token=token, address_id=200, reason="test")),
            "nothing was announced or created under that id",
        ),
        (
            execute(AnnounceAddress(token=token, ip=scene.second_ip, address_id=0, reason="test")),
            "needs an id from 1 to 255",
        ),
        (
            execute(
                SetBackup(token=token, local=nowhere, remote=nowhere, backup=True, reason="test")
            ),
            "no subflow between these addresses",
        ),
    ):
        assert answer.errno
        assert words in answer.explanation
