# SPDX-License-Identifier: BSD-3-Clause
"""`adaptive` under faults, on the wire: it leaves what hurts, says why, and takes it back.

And what must hold whatever the fault: the last usable subflow stays, no message is lost.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mptcpd_ebpf.kernel.pm import joins_marked
from mptcpd_ebpf.lab import Lab, LivePath, RequestResponse
from mptcpd_ebpf.lab import Path as LabPath
from mptcpd_ebpf.lab.kernel_path_manager import raise_limits
from mptcpd_ebpf.lab.wire import DSS, FIN, RST, MPJoinSyn, RemoveAddr, Wire
from mptcpd_ebpf.lab.wire.segment import Flow, Segment
from tests.netns.daemon_host import (
    PATIENCE_S,
    Story,
    adaptive_in,
    carrying,
    daemon_in,
    decisions,
    make_room_behind_holes,
    status,
    subflows,
    until_carried_by,
    until_decided,
)
from tests.netns.daemon_process import RunningDaemon
from tests.netns.own_plugins import plugin_folder
from tests.waiting import INTERVAL_MS, SLOWNESS, until

MakeLab = Callable[..., Lab]
TALK = RequestResponse(interval_ms=2 * INTERVAL_MS)

FAULTS: dict[str, dict[str, Any] | None] = {
    "loss": {"loss_percent": 30},
    # Above what a slow machine's answers take by themselves, and its thresholds with them.
    "delay": {"delay_ms": 200 + 100 * SLOWNESS},
    "blackhole": None,
}
WHY = r"\d+ % of the last segments were lost|nothing came back|timeouts in a row|RTT rose"
"""Each fault makes the signs of the others, too: which of them is seen first is chance."""


def damage(path: LivePath, fault: str) -> None:
    impairment = FAULTS[fault]
    if impairment is None:
        path.blackhole()
    else:
        path.set(**impairment)


@pytest.fixture
def lab(make_mptcp_lab: MakeLab) -> Lab:
    lab = make_mptcp_lab(
        [LabPath(delay_ms=10, rate_mbit=20), LabPath(delay_ms=40, rate_mbit=20)], seed=1
    )
    raise_limits(lab.server)
    make_room_behind_holes(lab)
    return lab


def ending(wire: Wire, flow: Flow, since: int) -> Segment:
    """The FIN or RST with which our side ends a subflow."""
    found: list[Segment] = []

    def left() -> bool:
        found[:] = [
            segment
            for flag in (FIN, RST)
            for segment in wire.matching(flow=flow, flags=flag, direction="out", since=since)
        ]
        return bool(found)

    until(left, f"FIN or RST on {flow}", PATIENCE_S)
    return found[0]


def flows(wire: Wire, path: LivePath, running: RunningDaemon, token: int | None) -> list[Flow]:
    """The subflows of a path, as the wire names them."""
    listed = {s["local"] for s in subflows(running, token) if s["interface"] == path.client_if}
    return list(
        {
            segment.flow: None
            for segment in wire.segments
            if segment.outgoing and str(segment.flow.source) in listed
        }
    )


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_path_is_left_and_taken_back_when_it_has_healed(
    lab: Lab, tmp_path: Path, fault: str
) -> None:
    bad, good = lab.paths
    with Wire(lab.client.name, snap=200) as wire, adaptive_in(lab.client, tmp_path) as running:
        traffic = lab.start(TALK)
        assert traffic.token is not None
        until_carried_by(running, traffic.token, bad, good)
        (flow,) = flows(wire, bad, running, traffic.token)
        hurt = wire.segments[-1].at
        damage(bad, fault)

        decision = until_decided(running, "DestroySubflow", bad.client_ip)
        assert re.search(WHY, decision["reason"]), decision["reason"]
        assert decision["token"] == f"{traffic.token:08x}"
        assert decision["subflow"] == f"{flow.source} → {flow.destination}"
        assert f"adaptive: destroy {decision['subflow']}" in running.log
        # The peer is told over the good path, for the FIN goes over the bad one, behind
        # what is in flight there: perhaps only when that path has healed.
        left = wire.expect(
            RemoveAddr(address_ids=[0]),
            interface=good.client_if,
            direction="out",
            token=traffic.token,
            since=hurt,
            within=PATIENCE_S,
        )
        until(
            lambda: carrying(running, traffic.token) == [good.client_if],
            "the good path alone carries",
            PATIENCE_S,
        )

        bad.heal()
        ending(wire, flow, hurt)
        until_carried_by(running, traffic.token, bad, good)
        joins = wire.matching(
            MPJoinSyn,
            interface=bad.client_if,
            direction="out",
            source=bad.client_ip,
            token=traffic.token,
            since=left.at,
        )
        # On measured grounds: trials, joins that carry nothing, were answered before.  The
        # return itself may have been made anew meanwhile, on a slow host.
        listed = subflows(running, traffic.token)
        back = [s["local"] for s in listed if s["state"] == "established"]
        (returned,) = [join for join in joins if str(join.flow.source) in back]
        assert not returned.carries(MPJoinSyn(backup=1))
        assert joins.index(returned) > 0
        created = decisions(running, "CreateSubflow", ip=bad.client_ip)
        why = [made["reason"] for made in created]
        assert not joins_marked() or joins[0].carries(MPJoinSyn(backup=1)), why
        taken_back = until_decided(running, "CreateSubflow", bad.client_ip, decision["id"])
        assert "trial" in " ".join(
            made["reason"] for made in created if made["id"] >= taken_back["id"]
        )
        assert traffic.stop().unanswered == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_the_last_usable_subflow_is_never_touched(
    make_mptcp_lab: MakeLab, tmp_path: Path, fault: str
) -> None:
    lab = make_mptcp_lab([LabPath(delay_ms=10, rate_mbit=20)], seed=1)
    (path,) = lab.paths
    with Wire(lab.client.name, snap=200) as wire, adaptive_in(lab.client, tmp_path) as running:
        traffic = lab.start(TALK)
        until_carried_by(running, traffic.token, path)
        (before,) = subflows(running, traffic.token)
        with Story(running) as story:
            damage(path, fault)
            story.until("AlarmRaised")
            path.heal()
        assert traffic.stop().unanswered == 0
        assert decisions(running, "DestroySubflow", "SetBackup", "WithdrawAddress") == []
        assert not wire.matching(flags=RST, direction="out")
        assert not wire.matching(RemoveAddr)
        assert before["local"] in running.log or before["interface"] == path.client_if


def test_when_all_paths_are_bad_one_stays(lab: Lab, tmp_path: Path) -> None:
    with (
        Wire(lab.client.name, snap=200) as wire,
        adaptive_in(lab.client, tmp_path) as running,
        Story(running) as story,
    ):
        traffic = lab.start(TALK)
        until_carried_by(running, traffic.token, *lab.paths)
        wire.expect(DSS, interface=lab.paths[1].client_if, direction="in", within=PATIENCE_S)
        for path in lab.paths:
            path.blackhole()
        # Its alarms go on: an alarm of the one that is left was heard, and led to nothing.
        until_decided(running, "DestroySubflow", lab.paths[0].client_ip)
        seen = len(story.events("AlarmRaised"))
        until(lambda: len(story.events("AlarmRaised")) > seen, "one more alarm", PATIENCE_S)
        assert len(carrying(running, traffic.token)) == 1
        for path in lab.paths:
            path.heal()
        until_carried_by(running, traffic.token, *lab.paths)
        assert traffic.stop().unanswered == 0


def test_a_join_that_the_peer_never_confirmed_leaves_a_connection_that_lives(
    lab: Lab, tmp_path: Path
) -> None:
    """Both paths fail at once, the newer subflow before its handshake's last word came.

    When they heal, our kernel resets that one (its first segment is no fourth ACK), and the
    initial one was left: nothing is left, and everything has to come back.
    """
    with adaptive_in(lab.client, tmp_path) as running, Story(running) as story:
        traffic = lab.start(TALK)
        story.until("SubflowEstablished")
        for path in lab.paths:
            path.blackhole()
        until_decided(running, "DestroySubflow", lab.paths[0].client_ip)
        for path in lab.paths:
            path.heal()
        until_carried_by(running, traffic.token, *lab.paths)
        assert traffic.stop().unanswered == 0


def test_a_connection_whose_only_subflow_was_reset_gets_one_again(
    make_mptcp_lab: MakeLab, tmp_path: Path
) -> None:
    """It lives on for net.mptcp.close_timeout without any, and loses no message."""
    lab = make_mptcp_lab([LabPath(delay_ms=5)])
    (path,) = lab.paths
    raise_limits(lab.server)
    with Wire(lab.client.name, snap=200) as wire, adaptive_in(lab.client, tmp_path) as running:
        traffic = lab.start(TALK)
        until_carried_by(running, traffic.token, path)
        assert traffic.token is not None
        assert path.inject_resets() == 1
        decision = until_decided(running, "CreateSubflow", path.client_ip)
        assert "no subflow left" in decision["reason"]
        until_carried_by(running, traffic.token, path)
        assert traffic.stop().unanswered == 0
        wire.expect(MPJoinSyn(backup=0), direction="out", token=traffic.token)


VANDAL = '''
"""Orders what must not be: to destroy, demote and withdraw every subflow, in one turn."""
from mptcpd_ebpf.plugin import DestroySubflow, Plugin, SetBackup, WithdrawAddress


class Vandal(Plugin):
    name = "vandal"
    mode = "userspace"

    def connection_established(self, ctx, connection):
        for subflow in connection.subflows.values():
            where = dict(token=subflow.token, local=subflow.local, remote=subflow.remote)
            yield DestroySubflow(**where, reason="because")
            yield SetBackup(**where, backup=True, reason="because")
            yield WithdrawAddress(token=subflow.token, address_id=0, reason="because")
'''


@pytest.fixture
def vandal(tmp_path: Path) -> Path:
    return plugin_folder(tmp_path, vandal=VANDAL)


def test_no_plugin_can_take_the_last_usable_subflow(lab: Lab, tmp_path: Path, vandal: Path) -> None:
    options = ("--path-manager=vandal", "--plugin-dir", str(vandal))
    with (
        Wire(lab.client.name, snap=200) as wire,
        daemon_in(lab.client, tmp_path, *options) as running,
    ):
        traffic = lab.start(TALK)
        until(lambda: status(running)["decisions_refused"] == 3, "three refusals", PATIENCE_S)
        assert "it is the last usable subflow of the connection" in running.log
        assert traffic.stop().unanswered == 0
        assert decisions(running) == []
        assert not wire.matching(RemoveAddr)
        assert not wire.matching(flags=RST)
