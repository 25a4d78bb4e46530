# SPDX-License-Identifier: BSD-3-Clause
"""`adaptive` on the client manages the paths of what it receives.

The client sends nothing but acknowledgements, so only the receiver's measurements can show
which path harms.
"""

import re
from collections.abc import Callable
from pathlib import Path

from mptcpd_ebpf.lab import Bulk, Lab
from mptcpd_ebpf.lab import Path as LabPath
from mptcpd_ebpf.lab.kernel_path_manager import raise_limits
from mptcpd_ebpf.lab.wire import MPPrio, Wire
from tests.netns.daemon_host import (
    adaptive_in,
    carrying,
    decisions,
    make_room_behind_holes,
    subflows,
    until_carried_by,
    until_decided,
)
from tests.waiting import until

MakeLab = Callable[..., Lab]


def test_a_path_that_delays_a_download_is_demoted_at_both_ends(
    make_mptcp_lab: MakeLab, tmp_path: Path
) -> None:
    lab = make_mptcp_lab(
        [
            LabPath(delay_ms=5, rate_mbit=50, loss_percent=1),
            LabPath(delay_ms=90, rate_mbit=3, loss_percent=6),
        ],
        seed=1,
    )
    raise_limits(lab.server)
    good, bad = lab.paths
    with Wire(lab.client.name, snap=200) as wire, adaptive_in(lab.client, tmp_path) as running:
        traffic = lab.start(Bulk(seconds=20.0, direction="down"))
        decision = until_decided(running, "SetBackup", bad.client_ip)
        assert re.search(r"received data waited for it for \d+ ms", decision["reason"])
        assert decision["cause"]["event"] == "AlarmRaised"
        until_carried_by(running, traffic.token, good)
        assert decisions(running, "SetBackup", "DestroySubflow", ip=good.client_ip) == []
        assert [
            option.backup
            for segment in wire.matching(direction="out")
            for option in segment.mptcp
            if isinstance(option, MPPrio)
        ][:1] == [1]
        traffic.stop()


def test_a_path_that_goes_silent_during_a_download_is_abandoned(
    make_mptcp_lab: MakeLab, tmp_path: Path
) -> None:
    lab = make_mptcp_lab([LabPath(delay_ms=5, rate_mbit=20), LabPath(delay_ms=20, rate_mbit=20)])
    raise_limits(lab.server)
    make_room_behind_holes(lab)
    good, bad = lab.paths
    with adaptive_in(lab.client, tmp_path) as running:
        traffic = lab.start(Bulk(seconds=20.0, direction="down"))
        until_carried_by(running, traffic.token, good, bad)
        until(
            lambda: all(
                (each["bytes_received"] or 0) > 100_000 for each in subflows(running, traffic.token)
            ),
            "data on both paths",
        )
        bad.blackhole()
        decision = until_decided(running, "DestroySubflow", bad.client_ip)
        assert re.search(r"nothing came on it for \d+ ms", decision["reason"]), decision
        assert carrying(running, traffic.token) == [good.client_if]
        bad.heal()
        until_carried_by(running, traffic.token, good, bad)
        traffic.stop()
