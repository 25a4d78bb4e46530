# SPDX-License-Identifier: BSD-3-Clause
"""The short form of `make bench-decisions`: the direction of decisions, and no figures.

In a cell where the in-kernel path manager harms, the harmful path ends on standby; in one where the
second path helps, both carry the data.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.decisions.cells import Cell, all_cells
from mptcpd_ebpf.lab import Bulk, Lab
from mptcpd_ebpf.lab.kernel_path_manager import raise_limits
from tests.netns.daemon_host import adaptive_in, subflows, until_carried_by, until_decided
from tests.waiting import until

MakeLab = Callable[..., Lab]
CELLS = {cell.id: cell for cell in all_cells(30.0, 30.0)}
MUCH = 6_000_000
"""Bytes over each path, which take more than a second: longer than it takes to demote a path."""


def lab_of(make_mptcp_lab: MakeLab, cell: Cell) -> Lab:
    lab = make_mptcp_lab(cell.paths, seed=cell.seed(0))
    raise_limits(lab.client, lab.server)
    return lab


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_harmful_path_ends_on_standby(
    make_mptcp_lab: MakeLab, tmp_path: Path, direction: str
) -> None:
    cell = CELLS[f"goodput/{direction}/anchor_small"]
    lab = lab_of(make_mptcp_lab, cell)
    with adaptive_in(lab.client, tmp_path) as running:
        traffic = lab.start(cell.traffic[0])
        until_decided(running, "SetBackup", lab.paths[1].client_ip)
        until_carried_by(running, traffic.token, lab.paths[0])
        traffic.kill()


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_useful_path_goes_on_carrying_data(
    make_mptcp_lab: MakeLab, tmp_path: Path, direction: str
) -> None:
    cell = CELLS[f"variants/{direction}/similar"]
    lab = lab_of(make_mptcp_lab, cell)
    counter = "bytes_acked" if direction == "up" else "bytes_received"
    with adaptive_in(lab.client, tmp_path) as running:
        workload = cell.traffic[0]
        assert isinstance(workload, Bulk)
        traffic = lab.start(workload)

        def carried() -> list[int]:
            return [each[counter] or 0 for each in subflows(running, traffic.token)]

        until(
            lambda: len(carried()) == 2 and min(carried()) > MUCH,
            lambda: f"data over both paths; there are {carried()} bytes\n{running.log}",
            15.0,
        )
        until_carried_by(running, traffic.token, *lab.paths)
        traffic.kill()
