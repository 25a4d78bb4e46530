# SPDX-License-Identifier: BSD-3-Clause
"""Plays every scenario under both daemons and prints the table of docs/migrating-from-mptcpd.md."""

import tempfile
from pathlib import Path

from tests.side_by_side.managers import Outcome
from tests.side_by_side.play import play
from tests.side_by_side.scenarios import SCENARIOS


def _words(outcome: Outcome) -> str:
    table = ", ".join(outcome.table) or "no endpoint"
    return table + (", deaf from then on" if outcome.deaf else "")


def main() -> None:
    print("| scenario | mptcpd | mptcpd-ebpf | why they differ |\n|---|---|---|---|")
    for scenario in SCENARIOS:
        with tempfile.TemporaryDirectory() as folder:
            theirs, ours = (play(scenario, name, Path(folder)) for name in ("mptcpd", "ours"))
        cells = (scenario.name, _words(theirs), _words(ours), scenario.better)
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
