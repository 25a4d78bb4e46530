# SPDX-License-Identifier: BSD-3-Clause
"""`adaptive` in a real namespace: a subflow from every usable interface, seen on the wire.

Also with interfaces, addresses and carriers that change, several connections, IPv6, on the server's
side, and without probes.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mptcpd_ebpf.lab import Lab, LivePath, RequestResponse, Stream
from mptcpd_ebpf.lab import Path as LabPath
from mptcpd_ebpf.lab.kernel_path_manager import allow_joins, raise_limits
from mptcpd_ebpf.lab.wire import MPJoinSyn, Wire
from mptcpd_ebpf.lab.wire.segment import Segment
from tests.netns.daemon_host import (
    PATIENCE_S,
    EventStream,
    adaptive_in,
    connections,
    daemon_in,
    decisions,
    newest,
    status,
    subflows,
    until_carried_by,
    until_decided,
)
from tests.netns.daemon_process import RunningDaemon
from tests.netns.mptcp_sockets import listen, mptcp_socket
from tests.waiting import INTERVAL_MS, until

MakeLab = Callable[..., Lab]
TALK = RequestResponse(interval_ms=INTERVAL_MS)


def joined(
    wire: Wire, path: LivePath, running: RunningDaemon, token: int | None, *, since: int = 0
) -> Segment:
    """The regular MP_JOIN sent on a path's interface, with the id that the daemon shows."""
    assert token is not None
    (subflow,) = (s for s in subflows(running, token) if s["interface"] == path.client_if)
    return wire.expect(
        MPJoinSyn(address_id=subflow["local_id"], backup=0),
        interface=path.client_if,
        direction="out",
        source=path.client_ip,
        token=token,
        since=since,
        within=PATIENCE_S,
    )


def test_it_joins_from_every_usable_interface(make_mptcp_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_mptcp_lab([LabPath(), LabPath(), LabPath()])
    raise_limits(lab.server)
    with Wire(lab.client.name, snap=200) as wire, adaptive_in(lab.client, tmp_path) as running:
        traffic = lab.start(TALK)
        until_carried_by(running, traffic.token, *lab.paths)
        ids = []
        for path in lab.paths[1:]:
            syn = joined(wire, path, running, traffic.token)
            ids += [option.address_id for option in syn.mptcp if isinstance(option, MPJoinSyn)]
            assert (
                f"{path.client_if} is usable" in decisions(running, ip=path.client_ip)[0]["reason"]
            )
        assert len(set(ids)) == 2
        assert 0 not in ids
        assert not wire.matching(MPJoinSyn, interface=lab.paths[0].client_if)
        assert traffic.stop().unanswered == 0


def test_every_connection_is_served(make_mptcp_lab: MakeLab, tmp_path: Path) -> None:
    """Also one that began on the other path; each has ids and subflows of its own."""
    lab = make_mptcp_lab([LabPath(), LabPath()])
    raise_limits(lab.server)
    with Wire(lab.client.name, snap=200) as wire, adaptive_in(lab.client, tmp_path) as running:
        first = lab.start(TALK)
        second = lab.start(RequestResponse(interval_ms=INTERVAL_MS, path=1))
        for traffic, other in ((first, lab.paths[1]), (second, lab.paths[0])):
            until_carried_by(running, traffic.token, *lab.paths)
            joined(wire, other, running, traffic.token)
        first.stop()
        until(lambda: not subflows(running, first.token), "the first is removed")
        until_carried_by(running, second.token, *lab.paths)
        assert second.stop().unanswered == 0


@pytest.mark.parametrize("ip", ["6", "both"])
def test_it_joins_over_ipv6(make_mptcp_lab: MakeLab, tmp_path: Path, ip: str) -> None:
    """Only from addresses of the connection's own family."""
    lab = make_mptcp_lab([LabPath(), LabPath()], ip=ip)
    raise_limits(lab.server)
    with Wire(lab.client.name, snap=200) as wire, adaptive_in(lab.client, tmp_path) as running:
        traffic = lab.start(RequestResponse(interval_ms=INTERVAL_MS, family="6"))
        until_carried_by(running, traffic.token, *lab.paths)
        for subflow, path in zip(subflows(running, traffic.token), lab.paths, strict=True):
            assert subflow["local"].startswith(f"[{path.client_ip6}]:")
            assert subflow["remote"].startswith(f"[{lab.paths[0].server_ip6}]:")
        syns = wire.matching(MPJoinSyn, direction="out")
        assert {syn.flow.source.ip for syn in syns} == {lab.paths[1].client_ip6}
        assert traffic.stop().unanswered == 0


def lose_carrier(path: LivePath) -> None:
    path.carrier(False)


@pytest.mark.parametrize(
    ("lose", "reason"),
    [
        # The kernel reports a lost carrier up to a second later, after a possible timeout.
        (lose_carrier, "lost its carrier|timeouts in a row|nothing came back"),
        (LivePath.remove_address, "was removed"),
        (LivePath.remove_interface, "lost its carrier|was removed"),
    ],
    ids=["carrier", "address", "interface"],
)
@pytest.mark.parametrize("number", [0, 1], ids=["initial", "joined"])
def test_a_path_that_is_lost_is_left_and_joined_again(
    make_mptcp_lab: MakeLab,
    tmp_path: Path,
    lose: Callable[[LivePath], None],
    reason: str,
    number: int,
) -> None:
    lab = make_mptcp_lab([LabPath(delay_ms=5), LabPath(delay_ms=10)])
    raise_limits(lab.server)
    path, other = lab.paths[number], lab.paths[1 - number]
    with Wire(lab.client.name, snap=200) as wire, adaptive_in(lab.client, tmp_path) as running:
        traffic = lab.start(TALK)
        until_carried_by(running, traffic.token, *lab.paths)
        before = newest(running)
        lose(path)
        decision = until_decided(running, "DestroySubflow", path.client_ip, before)
        assert re.search(reason, decision["reason"])
        until_carried_by(running, traffic.token, other)
        answered = answered_on(wire, other)
        path.heal()
        until_carried_by(running, traffic.token, *lab.paths)
        joined(wire, path, running, traffic.token, since=answered)
        assert traffic.stop().unanswered == 0


def answered_on(wire: Wire, path: LivePath) -> int:
    """Waits for new data from the peer on a path; returns its time."""
    seen = len(wire.segments)
    found: list[Segment] = []

    def data() -> bool:
        found[:] = [
            segment
            for segment in wire.segments[seen:]
            if segment.payload_length
            and not segment.outgoing
            and segment.interface == path.client_if
        ]
        return bool(found)

    until(data, f"data on {path.client_if}", PATIENCE_S)
    return found[0].at


def test_a_join_leaves_by_its_own_interface_or_waits_for_the_route(
    make_mptcp_lab: MakeLab, tmp_path: Path
) -> None:
    """A kernel that binds joins needs no routing rule; on Linux 6.1 the daemon waits for one."""
    lab = make_mptcp_lab([LabPath(), LabPath()])
    raise_limits(lab.server)
    first, second = lab.paths
    rule = ["from", second.client_ip]
    (table,) = re.findall(
        rf"from {re.escape(second.client_ip)} lookup (\d+)",
        lab.client.run(["ip", "rule"]).stdout,
    )
    lab.client.run(["ip", "rule", "del", *rule])
    with Wire(lab.client.name, snap=200) as wire, adaptive_in(lab.client, tmp_path) as running:
        traffic = lab.start(TALK)
        decided = until_decided(running, "CreateSubflow", second.client_ip)
        assert decided["token"] == f"{traffic.token:08x}"
        until(
            lambda: (
                f"leaves by {first.client_if}" in running.log
                or len(subflows(running, traffic.token)) == 2
            ),
            "the join is made, or waits",
        )
        lab.client.run(["ip", "rule", "add", *rule, "lookup", table])
        until_carried_by(running, traffic.token, first, second)
        joined(wire, second, running, traffic.token)
        assert not wire.matching(MPJoinSyn, interface=first.client_if, source=second.client_ip)
        assert traffic.stop().unanswered == 0


def test_a_new_interface_is_used(make_mptcp_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_mptcp_lab([LabPath(), LabPath()])
    raise_limits(lab.server)
    lab.paths[1].remove_interface()
    with Wire(lab.client.name, snap=200) as wire, adaptive_in(lab.client, tmp_path) as running:
        traffic = lab.start(TALK)
        until_carried_by(running, traffic.token, lab.paths[0])
        lab.paths[1].restore_interface()
        until_carried_by(running, traffic.token, *lab.paths)
        joined(wire, lab.paths[1], running, traffic.token)
        assert traffic.stop().unanswered == 0


def test_a_denied_interface_is_not_used_until_a_reload_allows_it(
    make_mptcp_lab: MakeLab, tmp_path: Path
) -> None:
    lab = make_mptcp_lab([LabPath(), LabPath(), LabPath()])
    raise_limits(lab.server)
    file = tmp_path / "c.yaml"
    file.write_text("interfaces: {deny: [path1]}\n")
    options = ("--config", str(file))
    with (
        Wire(lab.client.name, snap=200) as wire,
        adaptive_in(lab.client, tmp_path, *options) as running,
    ):
        traffic = lab.start(TALK)
        until_carried_by(running, traffic.token, lab.paths[0], lab.paths[2])
        assert not wire.matching(MPJoinSyn, interface="path1")
        file.write_text("interfaces: {allow: ['path*']}\n")
        assert running.ask("reload").returncode == 0
        until_carried_by(running, traffic.token, *lab.paths)
        assert traffic.stop().unanswered == 0


def test_the_server_side_makes_no_joins(make_mptcp_lab: MakeLab, tmp_path: Path) -> None:
    """There the client joins; the daemon may mark a path as backup, and nothing else."""
    lab = make_mptcp_lab([LabPath(delay_ms=5), LabPath(delay_ms=10)])
    allow_joins(lab)
    with adaptive_in(lab.server, tmp_path) as running, EventStream(running) as story:
        # This server sends without requests: one that sends nothing gets no measurements.
        traffic = lab.start(Stream(rate_mbit=1, direction="down"))
        until(
            lambda: [len(c["subflows"]) for c in connections(running)] == [2],
            "the client's join is accepted",
            PATIENCE_S,
        )
        (connection,) = connections(running)
        assert connection["server_side"] is True
        # Both, because it is not known which one the server prefers.
        for each in lab.paths:
            each.blackhole()
        story.until("AlarmRaised")
        for each in lab.paths:
            each.heal()
        traffic.stop()
        assert decisions(running, "CreateSubflow", "DestroySubflow", "WithdrawAddress") == []


def test_two_daemons_at_both_ends(make_mptcp_lab: MakeLab, tmp_path: Path) -> None:
    """Each shows its own end, and stops without an effect on the other."""
    lab = make_mptcp_lab([LabPath(), LabPath()])
    for name in ("near", "far"):
        (tmp_path / name).mkdir()
    with adaptive_in(lab.client, tmp_path / "near") as near:
        with daemon_in(lab.server, tmp_path / "far") as far:
            raise_limits(lab.server)
            traffic = lab.start(TALK)
            until_carried_by(near, traffic.token, *lab.paths)
            (here,), (there,) = connections(near), connections(far)
            assert (here["server_side"], there["server_side"]) == (False, True)
            assert here["token"] != there["token"]
            assert {(s["local"], s["remote"]) for s in here["subflows"]} == {
                (s["remote"], s["local"]) for s in there["subflows"]
            }
            assert here["pid"] == traffic.pid != there["pid"]
            assert status(near)["netns"] == lab.client.netns
            assert status(far)["netns"] == lab.server.netns
            assert far.stop() == 0
        assert lab.client.sysctl("mptcp.pm_type") == "1"
        assert lab.server.sysctl("mptcp.pm_type") == "0"
        assert len(connections(near)) == 1
        assert traffic.stop().unanswered == 0


def test_without_probes_netlink_events_are_enough(make_mptcp_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_mptcp_lab([LabPath(), LabPath()])
    raise_limits(lab.server)
    with adaptive_in(lab.client, tmp_path, "--probes=netlink") as running:
        assert status(running)["probes"]["backend"] == "netlink"
        traffic = lab.start(TALK)
        until_carried_by(running, traffic.token, *lab.paths)
        for subflow in subflows(running, traffic.token):
            assert subflow["srtt_us"]
            assert subflow["cwnd"]
            assert subflow["lost"] is None  # not in inet_diag
        lab.paths[0].carrier(False)
        until_decided(running, "DestroySubflow", lab.paths[0].client_ip)
        until_carried_by(running, traffic.token, lab.paths[1])
        lab.paths[0].carrier(True)
        until_carried_by(running, traffic.token, *lab.paths)
        assert traffic.stop().unanswered == 0


def test_a_paused_daemon_decides_nothing_and_catches_up_when_resumed(
    make_mptcp_lab: MakeLab, tmp_path: Path
) -> None:
    lab = make_mptcp_lab([LabPath(delay_ms=5), LabPath(delay_ms=10)])
    raise_limits(lab.server)
    with adaptive_in(lab.client, tmp_path) as running:
        first = lab.start(TALK)
        until_carried_by(running, first.token, *lab.paths)
        assert running.ask("pause").returncode == 0
        before = status(running)["decisions"]
        with EventStream(running) as story:
            second = lab.start(TALK)
            lab.paths[0].blackhole()
            story.until("AlarmRaised")
            lab.paths[0].heal()
        until(lambda: len(connections(running)) == 2, "the second connection is seen")
        assert status(running)["paused"] is True
        assert status(running)["decisions"] == before
        assert running.ask("resume").returncode == 0
        until_carried_by(running, second.token, *lab.paths)
        until_carried_by(running, first.token, *lab.paths)
        second.stop()
        first.stop()


def test_a_connection_that_was_idle_at_the_start_is_joined_when_it_carries_data(
    make_mptcp_lab: MakeLab, tmp_path: Path
) -> None:
    """Before that, the kernel refuses the join; the daemon tries it once."""
    lab = make_mptcp_lab([LabPath(), LabPath()])
    raise_limits(lab.server)
    lab.client.sysctl("mptcp.pm_type", 1)
    listener = listen(lab.server, lab.paths[0].server_ip)
    with mptcp_socket(lab.client) as client, listener:
        client.connect(listener.getsockname())
        with listener.accept()[0] as server, adaptive_in(lab.client, tmp_path) as running:
            refusal = "creating the subflow: ENOTCONN"
            until(lambda: refusal in running.log, "a refusal", PATIENCE_S)
            for sender, receiver in ((client, server), (server, client)):
                sender.sendall(b"x")
                assert receiver.recv(1) == b"x"
            (connection,) = connections(running)
            until_carried_by(running, int(connection["token"], 16), *lab.paths)
            assert running.log.count(refusal) == 1
