# SPDX-License-Identifier: BSD-3-Clause
"""Roles of paths on a real kernel: presets on the client, demotion by the server."""

import re
from collections.abc import Callable
from pathlib import Path

from mptcpd_ebpf.lab import Bulk, Lab, LivePath, RequestResponse
from mptcpd_ebpf.lab import Path as LabPath
from mptcpd_ebpf.lab.kernel_path_manager import allow_joins, raise_limits
from tests.netns.daemon_host import (
    adaptive_in,
    carrying,
    connections,
    decisions,
    subflows,
    until_carried_by,
    until_decided,
)
from tests.netns.daemon_process import RunningDaemon
from tests.waiting import until

MakeLab = Callable[..., Lab]


def configured(folder: Path, options: str) -> str:
    file = folder / "adaptive.yaml"
    file.write_text(f"plugins: {{adaptive: {options}}}\n")
    return f"--config={file}"


def until_data_moves_on(running: RunningDaemon, token: int | None, path: LivePath) -> None:
    """Waits until one path has carried three more messages, and no other path one meanwhile."""

    def sent() -> dict[str, int]:
        return {s["interface"]: s["segments_out"] or 0 for s in subflows(running, token)}

    before = sent()

    def moved() -> bool:
        nonlocal before
        now = sent()
        others = [name for name in now if name != path.client_if]
        if any(now[name] != before.get(name, 0) for name in others):
            before = now
        return now.get(path.client_if, 0) >= before.get(path.client_if, 0) + 3

    until(moved, f"data on {path.client_if}")


def test_handover_uses_the_preferred_path_and_returns_to_it(
    make_mptcp_lab: MakeLab, tmp_path: Path
) -> None:
    lab = make_mptcp_lab([LabPath(delay_ms=5), LabPath(delay_ms=10)])
    raise_limits(lab.server)
    first, preferred = lab.paths
    option = configured(tmp_path, f"{{preset: handover, prefer: [{preferred.client_if}]}}")
    with adaptive_in(lab.client, tmp_path, option) as running:
        traffic = lab.start(RequestResponse(interval_ms=50))
        until_carried_by(running, traffic.token, preferred)
        until_data_moves_on(running, traffic.token, preferred)
        assert len(subflows(running, traffic.token)) == 2, "the other stands by"
        preferred.blackhole()
        until_carried_by(running, traffic.token, first)
        until_data_moves_on(running, traffic.token, first)
        preferred.heal()
        until_carried_by(running, traffic.token, preferred)
        until_data_moves_on(running, traffic.token, preferred)
        assert traffic.stop().unanswered == 0


def test_a_metered_path_is_spared_until_the_other_fails(
    make_mptcp_lab: MakeLab, tmp_path: Path
) -> None:
    lab = make_mptcp_lab([LabPath(delay_ms=5), LabPath(delay_ms=5)])
    raise_limits(lab.server)
    cheap, metered = lab.paths
    option = configured(tmp_path, f"{{metered: [{metered.client_if}]}}")
    with adaptive_in(lab.client, tmp_path, option) as running:
        traffic = lab.start(RequestResponse(interval_ms=50))
        until(lambda: len(subflows(running, traffic.token)) == 2, "the metered path stands by")
        assert carrying(running, traffic.token) == [cheap.client_if]
        cheap.blackhole()
        until_carried_by(running, traffic.token, metered)
        cheap.heal()
        until_carried_by(running, traffic.token, cheap)
        until_data_moves_on(running, traffic.token, cheap)
        assert traffic.stop().unanswered == 0


def test_the_server_demotes_a_path_that_harms_what_it_sends(
    make_mptcp_lab: MakeLab, tmp_path: Path
) -> None:
    lab = make_mptcp_lab(
        [
            LabPath(delay_ms=5, rate_mbit=50, loss_percent=1),
            LabPath(delay_ms=90, rate_mbit=3, loss_percent=6),
        ],
        seed=1,
    )
    allow_joins(lab)
    with adaptive_in(lab.server, tmp_path) as running:
        traffic = lab.start(Bulk(seconds=20.0, direction="down", receive_buffer=128 * 1024))
        until(lambda: [len(c["subflows"]) for c in connections(running)] == [2], "the join")
        (connection,) = connections(running)
        bad = connection["subflows"][1]
        decision = until_decided(running, "SetBackup", bad["local"].rpartition(":")[0])
        assert bad["local"] in decision["subflow"]
        assert re.search(r"on backup for \d+ s", decision["reason"]), decision
        assert decisions(running, "CreateSubflow", "DestroySubflow", "WithdrawAddress") == []
        traffic.stop()
