# SPDX-License-Identifier: BSD-3-Clause
"""Attributes of events that only the other end can cause: reset reasons, join denial."""

import errno
from typing import cast

import pytest

from mptcpd_ebpf.core.commands import CreateSubflow
from mptcpd_ebpf.core.events import (
    ConnectionCreated,
    ConnectionEstablished,
    SubflowClosed,
    SubflowEstablished,
)
from mptcpd_ebpf.kernel import counters
from mptcpd_ebpf.kernel.pm_events import PmEvents
from mptcpd_ebpf.lab import Lab
from tests.netns.mptcp_peers import connected, peer
from tests.netns.scripted_peer import kernel_connected

LACK_OF_RESOURCES = 3
"""MP_TCPRST reason (RFC 8684, 3.6)."""
TRANSIENT = 1


def test_a_reset_gives_its_reason() -> None:
    with (
        Lab() as lab,
        peer(lab.client) as client,
        kernel_connected(lab) as (_, connection, _),
    ):
        established = client.log.wait(ConnectionEstablished)
        create = CreateSubflow(
            token=established.token,
            local_ip=lab.paths[1].client_ip,
            local_id=5,
            remote=established.remote,
            reason="test",
        )
        assert client.pm.execute_now(create) == (0, "")
        subflow = connection.accept_join()
        client.log.wait(SubflowEstablished)
        subflow.reset(LACK_OF_RESOURCES, transient=True)
        closed = client.log.wait(SubflowClosed)
    assert closed.error == errno.ECONNRESET
    assert closed.reset_reason == LACK_OF_RESOURCES
    assert closed.reset_flags == TRANSIENT


@pytest.mark.parametrize("deny", [True, False])
def test_a_peer_may_deny_joins_to_its_first_address(deny: bool) -> None:
    with Lab() as lab, peer(lab.client) as client, peer(lab.server) as server:
        lab.client.sysctl("mptcp.allow_join_initial_addr_port", int(not deny))
        with connected(client, server, lab.paths[0].server_ip) as pair:
            assert server.log.wait(ConnectionCreated).deny_join_id0 is deny
            assert pair.at_server.deny_join_id0 is deny
            assert not client.log.wait(ConnectionCreated).deny_join_id0


def test_a_subscriber_anywhere_keeps_joins_accepted() -> None:
    """In userspace mode joins need a listener to the events, in whichever namespace it is."""
    with (
        Lab() as lab,
        peer(lab.client) as client,
        peer(lab.server) as server,
        connected(client, server, lab.paths[0].server_ip) as pair,
    ):
        cast(PmEvents, server.log.source).close()
        create = CreateSubflow(
            token=pair.at_client.token,
            local_ip=lab.paths[1].client_ip,
            local_id=5,
            remote=pair.at_client.remote,
            reason="test",
        )
        assert client.pm.execute_now(create) == (0, "")
        client.log.wait(SubflowEstablished)
        pair.exchange()
        with lab.server.entered():
            assert counters.read().get("MPJoinRejected", 0) == 0, "6.1 does not count them"
