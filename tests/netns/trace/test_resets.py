# SPDX-License-Identifier: BSD-3-Clause
"""Every simulated reset is reported with its reason, and nothing else is."""

import threading
from collections.abc import Iterator

import pytest

from mptcpd_ebpf.lab import Lab, Path
from mptcpd_ebpf.lab.kernel_path_manager import allow_joins
from tests.netns.mptcp_sockets import Ends, connection, exchange
from tests.netns.scripted_peer import open_lab, talk
from tests.netns.tracing import tracing
from tests.waiting import SLOWNESS


@pytest.fixture
def peer_lab() -> Iterator[Lab]:
    with open_lab() as lab:
        yield lab


@pytest.mark.parametrize(("reason", "transient"), [(5, True), (3, False), (0, False)])
def test_the_reason_of_a_reset_is_reported(peer_lab: Lab, reason: int, transient: bool) -> None:
    with tracing(peer_lab.server, "resets") as traced, talk(peer_lab) as peers:
        subflow = peers.connection.join(peer_lab.paths[1].client_ip, address_id=2)
        assert subflow.reset_by is None
        subflow.reset(reason=reason, transient=transient)
        reset = traced.event("reset")
        summary = traced.end()
    assert (reset["kind"], reset["sent"]) == ("MP_TCPRST", False)
    assert (reset["reason"], reset["transient"]) == (reason, transient)
    assert reset["noticed"]
    assert reset["token"] == f"{peers.connection.remote_token:08x}"
    assert summary["counters"]["MPRstRx"] == 1


def test_a_fastclose_of_the_peer_is_reported(peer_lab: Lab) -> None:
    with tracing(peer_lab.server, "resets") as traced, talk(peer_lab) as peers:
        peers.connection.fastclose()
        reset = traced.event("reset", kind="MP_FASTCLOSE")
        summary = traced.end()
    assert not reset["sent"]
    assert summary["counters"]["MPFastcloseRx"] == 1


def test_the_reset_of_a_refused_join_is_reported(peer_lab: Lab) -> None:
    with tracing(peer_lab.server, "resets") as traced, talk(peer_lab) as peers:
        peers.connection.join(peer_lab.paths[1].client_ip, address_id=3, token=0xBADC0DE)
        reset = traced.event("reset")
    assert (reset["kind"], reset["sent"], reset["reason"]) == ("MP_TCPRST", True, 1)


def test_forged_resets_are_reported() -> None:
    with Lab(paths=[Path(delay_ms=2), Path(delay_ms=4)]) as lab:
        allow_joins(lab)
        with tracing(lab.client, "resets") as traced, connection(lab) as ends:
            lab.paths[1].wait_for_subflow(10 * SLOWNESS)
            with tracing(lab.client, "life") as life:
                _exchange_while_resetting(lab, ends)
                # The kernel ignores a reset whose sequence number is out of date.
                reset = traced.event("reset", kind="RST", sent=False, noticed=True)
                life.event("ended", local=reset["local"], why="reset by the peer")


def _exchange_while_resetting(lab: Lab, ends: Ends) -> None:
    done = threading.Event()

    def exchanging() -> None:
        while not done.is_set():
            exchange(ends, b"x" * 3000)

    thread = threading.Thread(target=exchanging)
    thread.start()
    try:
        # Not both: data that is written to a connection without subflows is never answered.
        assert lab.paths[1].inject_resets() or lab.paths[0].inject_resets()
    finally:
        done.set()
        thread.join()


def test_an_orderly_close_causes_no_reset() -> None:
    with Lab(paths=[Path(delay_ms=2), Path(delay_ms=4)]) as lab:
        allow_joins(lab)
        with tracing(lab.client, "resets") as traced:
            with connection(lab):
                lab.paths[1].wait_for_subflow(10 * SLOWNESS)
            summary = traced.end()
    assert summary["seen"] == {}
