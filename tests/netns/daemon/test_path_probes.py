# SPDX-License-Identifier: BSD-3-Clause
"""`adaptive` probes the paths it left: what brings one back, and what a crash leaves behind."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from mptcpd_ebpf.kernel.probe_packet import SMALLEST
from mptcpd_ebpf.lab import Lab, RequestResponse
from mptcpd_ebpf.lab import Path as LabPath
from mptcpd_ebpf.lab.kernel_path_manager import raise_limits
from mptcpd_ebpf.lab.topology import FAR
from tests.netns.daemon_host import (
    PATIENCE_S,
    EventStream,
    adaptive_in,
    carrying,
    decisions,
    kept_alive,
    make_room_behind_holes,
    subflows,
    until_carried_by,
    until_decided,
)
from tests.waiting import INTERVAL_MS, until

MakeLab = Callable[..., Lab]
TALK = RequestResponse(interval_ms=2 * INTERVAL_MS)
NARROW, WIDE = 1280, 1500
FULL_SIZE_LOST = 3
"""So many full-size probes must be lost for the path to count as still broken."""


@pytest.fixture
def lab(make_mptcp_lab: MakeLab) -> Lab:
    lab = make_mptcp_lab(
        [LabPath(delay_ms=5, rate_mbit=20), LabPath(delay_ms=10, rate_mbit=20)], seed=1
    )
    raise_limits(lab.server)
    make_room_behind_holes(lab)
    return lab


def test_a_path_that_passes_small_packets_only_does_not_return(lab: Lab, tmp_path: Path) -> None:
    """Its router's link became narrow, and ICMP, which would tell the hosts, is dropped."""
    bad, good = lab.paths
    with adaptive_in(lab.client, tmp_path) as running, EventStream(running) as story:
        traffic = lab.start(TALK)
        until_carried_by(running, traffic.token, bad, good)
        bad.router.run(["iptables", "-A", "OUTPUT", "-p", "icmp", "-j", "DROP"])
        bad.router.run(["ip", "link", "set", FAR, "mtu", str(NARROW)])
        left = until_decided(running, "DestroySubflow", bad.client_ip)

        def full_size() -> list[int]:
            probes = decisions(running, "ProbePath", ip=bad.client_ip)
            return [made["id"] for made in probes if made["command"]["full_size"]]

        until(lambda: len(full_size()) > FULL_SIZE_LOST, "full-size probes", PATIENCE_S)
        answered = {event["size"] for event in story.events("PathProbed")}
        assert answered == {SMALLEST[False]}
        assert carrying(running, traffic.token) == [good.client_if]
        later = [
            made
            for made in decisions(running, "CreateSubflow", ip=bad.client_ip)
            if made["id"] > left["id"] and not made["command"]["routine"]
        ]
        assert later == []
        bad.router.run(["ip", "link", "set", FAR, "mtu", str(WIDE)])
        until_carried_by(running, traffic.token, bad, good)
        assert WIDE in {event["size"] for event in story.events("PathProbed")}
        assert traffic.stop().unanswered == 0


def test_after_sigkill_while_probing_a_healed_path_carries_data_again(
    lab: Lab, tmp_path: Path
) -> None:
    bad, good = lab.paths
    with kept_alive(lab.client), contextlib.ExitStack() as stack:
        first = stack.enter_context(adaptive_in(lab.client, tmp_path))
        traffic = lab.start(TALK)
        until_carried_by(first, traffic.token, bad, good)
        bad.blackhole()
        left = until_decided(first, "DestroySubflow", bad.client_ip)
        until_decided(first, "ProbePath", bad.client_ip, after=left["id"])
        first.process.kill()
        first.process.wait()
        second = stack.enter_context(adaptive_in(lab.client, tmp_path))
        bad.heal()
        until_carried_by(second, traffic.token, bad, good)
        until(lambda: len(subflows(second, traffic.token)) == 2, "nothing else", PATIENCE_S)
        assert traffic.stop().unanswered == 0


def test_after_sigkill_while_an_id_is_withdrawn_a_healed_path_carries_data_again(
    lab: Lab, tmp_path: Path
) -> None:
    """The kernel withdraws the id of a joined path only with a join on backup, which is answered
    when the path has healed."""
    good, bad = lab.paths
    config = tmp_path / "c.yaml"
    preset = "{preset: backup, prefer: [" + bad.client_if + "]}"
    config.write_text(f"path_manager: adaptive\nplugins: {{adaptive: {preset}}}\n")
    with kept_alive(lab.client), contextlib.ExitStack() as stack:
        first = stack.enter_context(adaptive_in(lab.client, tmp_path, "--config", str(config)))
        traffic = lab.start(TALK)
        until_carried_by(first, traffic.token, bad)
        # Before its handshake's fourth ACK it sends no data, which could show that it is dead.
        until(
            lambda: any(
                # The SYN counts as one byte.
                each["interface"] == bad.client_if and (each["bytes_acked"] or 0) > 1
                for each in subflows(first, traffic.token)
            ),
            "it carries data",
            PATIENCE_S,
        )
        bad.blackhole()
        until_decided(first, "DestroySubflow", bad.client_ip)
        first.process.kill()
        first.process.wait()
        second = stack.enter_context(adaptive_in(lab.client, tmp_path, "--config", str(config)))
        bad.heal()
        until_carried_by(second, traffic.token, bad)
        (other,) = [
            each for each in subflows(second, traffic.token) if each["interface"] != bad.client_if
        ]
        assert (other["interface"], other["backup"]) == (good.client_if, True)
        assert traffic.stop().unanswered == 0
