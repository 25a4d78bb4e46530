# SPDX-License-Identifier: BSD-3-Clause
"""`adaptive` under faults, on the wire: it leaves bad paths, gives the reason, and rejoins them.

Under every fault the last usable subflow stays, and no message is lost.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mptcpd_ebpf.kernel.probe_packet import SMALLEST
from mptcpd_ebpf.lab import Lab, LivePath, RequestResponse
from mptcpd_ebpf.lab import Path as LabPath
from mptcpd_ebpf.lab.kernel_path_manager import raise_limits
from mptcpd_ebpf.lab.wire import DSS, FIN, RST, MPJoinSyn, RemoveAddr, Wire
from mptcpd_ebpf.lab.wire.segment import Flow, Segment
from tests.netns.daemon_host import (
    PATIENCE_S,
    EventStream,
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
    # More than the answers, and so the thresholds, of a slow machine.
    "delay": {"delay_ms": 200 + 100 * SLOWNESS},
    "blackhole": None,
}
WHY = r"\d+ % of the last segments were lost|nothing came back|timeouts in a row|RTT rose"
"""Each fault also causes the symptoms of the others; which one is detected first varies."""


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
    """The FIN or RST with which our side closes a subflow."""
    found: list[Segment] = []

    def closed() -> bool:
        found[:] = [
            segment
            for flag in (FIN, RST)
            for segment in wire.matching(flow=flow, flags=flag, direction="out", since=since)
        ]
        return bool(found)

    until(closed, f"FIN or RST on {flow}", PATIENCE_S)
    return found[0]


def flows(wire: Wire, path: LivePath, running: RunningDaemon, token: int | None) -> list[Flow]:
    """The subflows of a path, as flows of the capture."""
    listed = {s["local"] for s in subflows(running, token) if s["interface"] == path.client_if}
    return list(
        {
            segment.flow: None
            for segment in wire.segments
            if segment.outgoing and str(segment.flow.source) in listed
        }
    )


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_path_is_abandoned_and_rejoined_when_it_has_recovered(
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
        running.until_logged(f"adaptive: destroy {decision['subflow']}")
        # REMOVE_ADDR goes over the good path, because the FIN goes over the bad one, behind the
        # data in flight: possibly only after that path has healed.
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
            "only the good path carries data",
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
        # The rejoin follows answered probes, SYNs with a token that the server does not know.  On a
        # slow host the rejoin itself may have been repeated meanwhile.
        listed = subflows(running, traffic.token)
        established = [s["local"] for s in listed if s["state"] == "established"]
        (rejoin,) = [join for join in joins if str(join.flow.source) in established]
        assert not any(join.carries(MPJoinSyn(backup=1)) for join in joins)
        probes = [
            probe
            for probe in wire.matching(MPJoinSyn(backup=1), direction="out", since=left.at)
            if probe.at < rejoin.at
        ]
        assert {probe.interface for probe in probes} == {bad.client_if}
        first = until_decided(running, "CreateSubflow", bad.client_ip, decision["id"])
        answered = re.search(r" is back after \d+\.\d s \((\d+) probes answered\)", first["reason"])
        assert answered is not None, first["reason"]
        assert len(probes) >= int(answered[1])
        assert {probe.payload_length for probe in probes[-2:]} == {1500 - SMALLEST[False]}
        running.until_logged(f"adaptive: create subflow {bad.client_ip} → ")
        assert traffic.stop().unanswered == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_the_last_usable_subflow_is_replaced_only_by_another_one(
    make_mptcp_lab: MakeLab, tmp_path: Path, fault: str
) -> None:
    lab = make_mptcp_lab([LabPath(delay_ms=10, rate_mbit=20)], seed=1)
    (path,) = lab.paths
    with Wire(lab.client.name, snap=200) as wire, adaptive_in(lab.client, tmp_path) as running:
        traffic = lab.start(TALK)
        until_carried_by(running, traffic.token, path)
        (before,) = subflows(running, traffic.token)
        with EventStream(running) as story:
            damage(path, fault)
            story.until("AlarmRaised")
            path.heal()
            until(lambda: carrying(running, traffic.token) == [path.client_if], "one subflow")
            assert traffic.stop().unanswered == 0
            destroyed = decisions(running, "DestroySubflow")
            assert len(destroyed) <= len(story.events("SubflowEstablished"))
        assert decisions(running, "SetBackup", "WithdrawAddress") == []
        assert not wire.matching(RemoveAddr)
        assert before["interface"] == path.client_if


def test_when_all_paths_are_bad_one_subflow_stays(lab: Lab, tmp_path: Path) -> None:
    with (
        Wire(lab.client.name, snap=200) as wire,
        adaptive_in(lab.client, tmp_path) as running,
        EventStream(running) as story,
    ):
        traffic = lab.start(TALK)
        until_carried_by(running, traffic.token, *lab.paths)
        wire.expect(DSS, interface=lab.paths[1].client_if, direction="in", within=PATIENCE_S)
        for path in lab.paths:
            path.blackhole()
        # Alarms continue: one about the remaining subflow arrived and had no effect.
        until_decided(running, "DestroySubflow", lab.paths[0].client_ip)
        seen = len(story.events("AlarmRaised"))
        until(lambda: len(story.events("AlarmRaised")) > seen, "one more alarm", PATIENCE_S)
        assert len(carrying(running, traffic.token)) == 1
        for path in lab.paths:
            path.heal()
        until_carried_by(running, traffic.token, *lab.paths)
        assert traffic.stop().unanswered == 0


def test_a_join_that_the_peer_never_confirmed_leaves_a_live_connection(
    lab: Lab, tmp_path: Path
) -> None:
    """Both paths fail at once, before the fourth ACK of the newer subflow's handshake arrives.

    When they heal, our kernel resets that subflow, because its first segment is no fourth ACK.  The
    initial subflow was already destroyed, so no subflow remains and both must be created again.
    """
    with adaptive_in(lab.client, tmp_path) as running, EventStream(running) as story:
        traffic = lab.start(TALK)
        story.until("SubflowEstablished")
        for path in lab.paths:
            path.blackhole()
        until_decided(running, "DestroySubflow", lab.paths[0].client_ip)
        for path in lab.paths:
            path.heal()
        until_carried_by(running, traffic.token, *lab.paths)
        assert traffic.stop().unanswered == 0


def test_a_connection_whose_only_subflow_was_reset_gets_a_new_one(
    make_mptcp_lab: MakeLab, tmp_path: Path
) -> None:
    """It stays open without subflows for net.mptcp.close_timeout, and loses no message."""
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
"""Requests what must be refused: to destroy, demote and withdraw every subflow in one turn."""
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


def test_no_plugin_can_remove_the_last_usable_subflow(
    lab: Lab, tmp_path: Path, vandal: Path
) -> None:
    options = ("--path-manager=vandal", "--plugin-dir", str(vandal))
    with (
        Wire(lab.client.name, snap=200) as wire,
        daemon_in(lab.client, tmp_path, *options) as running,
    ):
        traffic = lab.start(TALK)
        until(lambda: status(running)["decisions_refused"] == 3, "three refusals", PATIENCE_S)
        running.until_logged("it is the last usable subflow of the connection")
        assert traffic.stop().unanswered == 0
        assert decisions(running) == []
        assert not wire.matching(RemoveAddr)
        assert not wire.matching(flags=RST)
