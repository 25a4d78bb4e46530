# SPDX-License-Identifier: BSD-3-Clause
"""After a fault, `history`, `paths` and the log tell which path was away, why, and for how long."""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mptcpd_ebpf.lab import Lab, RequestResponse
from mptcpd_ebpf.lab import Path as LabPath
from mptcpd_ebpf.lab.kernel_path_manager import raise_limits
from mptcpd_ebpf.runtime import run_folder
from tests.netns.daemon_host import PATIENCE_S, adaptive_in, until_carried_by
from tests.netns.daemon_process import command
from tests.waiting import INTERVAL_MS, until

MakeLab = Callable[..., Lab]


def history(file: Path, *arguments: str) -> list[dict[str, Any]]:
    ended = command("history", "--json", "--journal", str(file), *arguments)
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


@contextmanager
def at_default_path(control: Path, inode: int) -> Iterator[None]:
    """The control socket, also where commands look for it."""
    link = run_folder.SYSTEM / f"{inode}.sock"
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(control)
    try:
        yield
    finally:
        link.unlink()


@pytest.fixture
def lab(make_mptcp_lab: MakeLab) -> Lab:
    lab = make_mptcp_lab([LabPath(delay_ms=10), LabPath(delay_ms=40)], seed=1)
    raise_limits(lab.server)
    return lab


def test_a_blackhole_and_its_end_are_told(lab: Lab, tmp_path: Path) -> None:
    bad, good = lab.paths
    file = tmp_path / "journal.db"
    config = tmp_path / "config.yaml"
    config.write_text(f"journal: {{path: {file}, sample_s: 1}}\n")
    with adaptive_in(lab.client, tmp_path, "--config", str(config)) as running:
        traffic = lab.start(RequestResponse(interval_ms=2 * INTERVAL_MS))
        assert traffic.token is not None
        token = f"{traffic.token:08x}"
        until_carried_by(running, traffic.token, bad, good)
        bad.blackhole()

        def away() -> list[dict[str, Any]]:
            found = history(file, "--path", bad.client_if)
            return [each for each in found if each["kind"] == "path"]

        (begun,) = until(away, lambda: f"the path is away\n{running.log}", PATIENCE_S)
        assert (begun["state"], begun["ended"], begun["local_ip"]) == (
            "away",
            None,
            bad.client_ip,
        )
        shown = json.loads(running.ask("paths", "--json").stdout)["paths"]
        assert {path["interface"]: path["state"] for path in shown} == {
            bad.client_if: "away",
            good.client_if: "active",
        }
        table = running.ask("paths", "--interface", bad.client_if).stdout
        assert re.search(rf"to {bad.server_ip}: away since .* of \d+ probes answered: ", table), (
            table
        )
        assert f"{bad.client_if} ({bad.client_ip} → " in running.ask("status").stdout
        (carrying,) = [path for path in shown if path["interface"] == good.client_if]
        assert carrying["sent_bytes_per_s"] > 0
        assert carrying["received_bytes_per_s"] > 0
        # The doctor asks the daemon at the namespace's default path.
        inode = os.stat(f"/run/netns/{lab.client.name}").st_ino
        with at_default_path(running.control, inode):
            found = command("trace", "doctor", token, "-d", "1", "--netns", lab.client.name).stdout
        assert f"the daemon keeps {bad.client_if} ({bad.client_ip} → " in found, found
        bad.heal()
        until_carried_by(running, traffic.token, bad, good)

        def back() -> bool:
            return away()[0]["ended"] is not None

        until(back, lambda: f"the return is in the journal\n{running.log}", PATIENCE_S)
        (told,) = away()
        assert told["connections_moved"] == 1
        assert told["lasted_s"] == pytest.approx(told["ended"] - told["t"], abs=0.001)
        text = command("history", "--control", str(running.control)).stdout
        assert re.search(
            rf"{bad.client_if}: away \(.+\), 1 connection moved in \d+ ms, back "
            r"\d\d:\d\d:\d\d after [\d.]+ s \(\d+ probes? answered\)",
            text,
        ), text
        assert f"WARNING {bad.client_if} ({bad.client_ip} → " in running.log
        assert f"INFO {bad.client_if} ({bad.client_ip} → " in running.log
        traffic.stop()

    # The daemon has ended: the file alone tells the same.
    kinds = {(each["kind"], each.get("what")) for each in history(file, token)}
    assert {
        ("path", None),
        ("connection", "opened"),
        ("subflow", "opened"),
        ("subflow", "closed"),
        ("alarm", None),
        ("decision", None),
    } <= kinds
    on_good = history(file, token, "--interface", good.client_if, "--since", "1h")
    subflows = [each for each in on_good if each["kind"] == "subflow"]
    assert {each["interface"] for each in subflows} == {good.client_if}
    assert [each for each in on_good if each["kind"] == "path"] == []
    assert history(file, token, "--process", "nobody") == []
