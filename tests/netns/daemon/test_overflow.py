# SPDX-License-Identifier: BSD-3-Clause
"""After the kernel dropped events, the daemon reads everything again and continues.

The daemon is stopped (SIGSTOP) while more events occur than its sockets hold.  Events before the
overflow wait in the socket, events after it are lost.  Both kinds occur here, and the daemon must
know the present state when it continues.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from mptcpd_ebpf.kernel.pm_events import SOURCE
from mptcpd_ebpf.kernel.rtnetlink import SOURCE as ROUTE_SOURCE
from mptcpd_ebpf.lab import Lab, RequestResponse
from mptcpd_ebpf.lab import Path as LabPath
from mptcpd_ebpf.lab.kernel_path_manager import raise_limits
from tests.netns.daemon_host import (
    PATIENCE_S,
    EventStream,
    adaptive_in,
    connections,
    status,
    until_carried_by,
)
from tests.netns.overflowing import (
    change_addresses_until_dropped,
    listen_until_dropped,
    stopped,
)
from tests.waiting import INTERVAL_MS, until

MakeLab = Callable[..., Lab]
TALK = RequestResponse(interval_ms=INTERVAL_MS)
MPTCP_SOCKETS = ["ss", "-HMn", "state", "established"]


@pytest.fixture
def lab(make_mptcp_lab: MakeLab) -> Lab:
    lab = make_mptcp_lab([LabPath(), LabPath()])
    raise_limits(lab.server)
    return lab


def test_connections_that_opened_and_closed_without_events(lab: Lab, tmp_path: Path) -> None:
    with adaptive_in(lab.client, tmp_path) as running:
        known = lab.start(TALK)
        staying = lab.start(TALK)
        until_carried_by(running, known.token, *lab.paths)
        until_carried_by(running, staying.token, *lab.paths)
        with stopped(running):
            begun_before = lab.start(TALK)
            listen_until_dropped(lab, running)
            begun_after = lab.start(TALK)
            begun_before.stop()
            known.stop()
            until(
                lambda: lab.client.run(MPTCP_SOCKETS).stdout.count("\n") == 2,
                "the kernel has closed them",
            )
        until(lambda: SOURCE in status(running)["events_lost"], "the loss is counted", PATIENCE_S)
        assert status(running)["events_lost"][SOURCE] >= 1
        assert f"events lost from {SOURCE} (overflow 1 since the start)" in running.log
        assert running.ask("status").stdout.count(SOURCE) == 1
        live = sorted(f"{traffic.token:08x}" for traffic in (staying, begun_after))
        until(
            lambda: sorted(c["token"] for c in connections(running)) == live,
            f"{live} are known and no other",
            PATIENCE_S,
        )
        # Both are served, and new events arrive.
        until_carried_by(running, staying.token, *lab.paths)
        until_carried_by(running, begun_after.token, *lab.paths)
        next_one = lab.start(TALK)
        until_carried_by(running, next_one.token, *lab.paths)
        for traffic in (staying, begun_after, next_one):
            assert traffic.stop().unanswered == 0
        until(lambda: connections(running) == [], "their ends are reported", PATIENCE_S)


def test_an_address_that_was_removed_without_an_event(lab: Lab, tmp_path: Path) -> None:
    path, other = lab.paths
    with adaptive_in(lab.client, tmp_path) as running, EventStream(running) as story:
        traffic = lab.start(TALK)
        until_carried_by(running, traffic.token, path, other)
        with stopped(running):
            # With events: it is removed and restored.  Without: it is removed again.
            path.remove_address()
            path.restore_address()
            change_addresses_until_dropped(lab, running)
            path.remove_address()
        until(
            lambda: ROUTE_SOURCE in status(running)["events_lost"],
            "the loss is counted",
            PATIENCE_S,
        )
        until_carried_by(running, traffic.token, other)
        seen = len(story.events("LocalAddressChanged"))
        path.restore_address()
        until(
            lambda: (
                path.client_ip
                in [event["ip"] for event in story.events("LocalAddressChanged")[seen:]]
            ),
            "its return is reported",
            PATIENCE_S,
        )
        until_carried_by(running, traffic.token, path, other)
        assert traffic.stop().unanswered == 0
