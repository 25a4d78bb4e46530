# SPDX-License-Identifier: BSD-3-Clause
"""A daemon and its commands with real connections: `ls`, `status`, `pause` and the event stream."""

import http.client
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mptcpd_ebpf.lab import Lab, RequestResponse
from mptcpd_ebpf.lab import Path as LabPath
from tests.netns.daemon_process import NEW_NAMESPACE, RunningDaemon, daemon
from tests.waiting import INTERVAL_MS, SLOWNESS, until

CONNECTION = [
    "token", "server_side", "path_manager", "local", "remote", "pid", "comm",
    "stalled_ms", "bytes_acked", "bytes_received", "announced", "subflows",
]  # fmt: skip
SUBFLOW = [
    "local", "remote", "local_id", "remote_id", "interface", "state", "backup", "srtt_us",
    "min_rtt_us", "rtt_us", "rttvar_us", "retransmits", "lost", "timeouts", "segments_out",
    "bytes_sent", "bytes_acked", "bytes_received", "segments_in", "out_of_order", "rcv_rtt_us",
    "holes_ms", "cwnd", "in_flight", "opened_at",
]  # fmt: skip
"""The documented fields of `ls --json`, in their order."""


def inside(lab: Lab) -> tuple[str, ...]:
    return ("nsenter", f"--net=/run/netns/{lab.client.name}", "--")


def listed(running: RunningDaemon) -> list[dict[str, Any]]:
    answer = json.loads(running.ask("ls", "--json").stdout)
    assert answer["schema"] == 1
    found: list[dict[str, Any]] = answer["connections"]
    return found


def test_ls_shows_the_connections(make_mptcp_lab: Callable[..., Lab], tmp_path: Path) -> None:
    lab = make_mptcp_lab([LabPath(delay_ms=5), LabPath(delay_ms=20)])
    # A plugin that does not judge paths, so that subflows stay on a slow machine too.
    with daemon(tmp_path, "--path-manager=fullmesh", prefix=inside(lab)) as running:
        assert listed(running) == []
        assert running.ask("ls").stdout == "no MPTCP connections\n"
        before = time.time()
        traffic = lab.start(RequestResponse(interval_ms=INTERVAL_MS))
        until(
            lambda: (
                [[bool(s["srtt_us"]) for s in c["subflows"]] for c in listed(running)]
                == [[True, True]]
            ),
            "one connection with two measured subflows",
        )
        (connection,) = listed(running)
        assert list(connection) == CONNECTION
        assert traffic.token is not None
        assert connection["token"] == f"{traffic.token:08x}"
        assert connection["server_side"] is False
        assert Path(f"/proc/{connection['pid']}/comm").read_text().strip() == connection["comm"]
        first, second = connection["subflows"]
        for subflow, path in zip((first, second), lab.paths, strict=True):
            assert list(subflow) == SUBFLOW
            assert subflow["interface"] == path.client_if
            assert subflow["local"].startswith(f"{path.client_ip}:")
            assert subflow["state"] == "established"
            assert before <= subflow["opened_at"] <= time.time()
            assert subflow["min_rtt_us"] <= subflow["srtt_us"]
        assert (first["local_id"], first["remote_id"]) == (0, 0)
        assert second["local_id"] > 0
        assert first["min_rtt_us"] >= 10_000
        assert second["min_rtt_us"] >= 40_000
        table = running.ask("ls").stdout
        for text in (connection["token"], first["local"], second["local"], connection["comm"]):
            assert text in table
        traffic.stop()
        until(lambda: not listed(running), "the connection is gone")
        assert running.stop() == 0


def test_without_a_plugin_it_observes_and_manages_nothing(
    make_mptcp_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = make_mptcp_lab([LabPath(), LabPath()])
    path_manager = lab.client.sysctl("mptcp.pm_type")
    with daemon(tmp_path, prefix=inside(lab)) as running:
        assert "observing only, no plugin is configured" in running.log
        assert lab.client.sysctl("mptcp.pm_type") == path_manager
        traffic = lab.start(RequestResponse(interval_ms=INTERVAL_MS))
        until(lambda: bool(listed(running)), "the connection is seen")
        assert traffic.stop().messages
        status = json.loads(running.ask("status", "--json").stdout)
        assert status["plugins"] == []
        assert status["decisions"] == 0
        assert status["netns"] == lab.client.netns
        assert status["pid"] == running.process.pid


def test_disabled_mptcp_is_reported_with_the_fix(tmp_path: Path) -> None:
    off = ("sh", "-c", 'echo 0 >/proc/sys/net/mptcp/enabled && exec "$@"', "sh")
    with daemon(tmp_path, prefix=(*NEW_NAMESPACE, *off)) as running:
        assert "sysctl -w net.mptcp.enabled=1" in running.log


def test_nothing_is_decided_while_paused(
    make_mptcp_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = make_mptcp_lab([LabPath(), LabPath()])
    with daemon(tmp_path, "--path-manager=adaptive", prefix=inside(lab)) as running:
        assert running.ask("pause").returncode == 0
        traffic = lab.start(RequestResponse(interval_ms=INTERVAL_MS))
        until(
            lambda: any(c["subflows"][0]["segments_out"] for c in listed(running)),
            "data flows",
        )
        assert "paused: adaptive" in running.ask("status").stdout
        assert [len(c["subflows"]) for c in listed(running)] == [1]
        assert running.ask("resume").returncode == 0
        until(lambda: [len(c["subflows"]) for c in listed(running)] == [2], "the second subflow")
        traffic.stop()


class _Stream(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20 * SLOWNESS)
        self._socket_path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20 * SLOWNESS)
        self.sock.connect(self._socket_path)


def test_the_stream_sends_events_and_decisions(
    make_mptcp_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = make_mptcp_lab([LabPath(), LabPath()])
    with daemon(tmp_path, "--path-manager=adaptive", prefix=inside(lab)) as running:
        stream = _Stream(running.control)
        stream.request("GET", "/v1/events")
        answer = stream.getresponse()
        traffic = lab.start(RequestResponse(interval_ms=INTERVAL_MS))
        seen: dict[str, Any] = {}
        while "decision" not in seen:
            line = answer.readline().decode()
            if line.startswith("event: "):
                data = json.loads(answer.readline().decode().removeprefix("data: "))
                seen[data.get("event", line[7:].strip())] = data
        assert {"hello", "ConnectionCreated"} <= set(seen)
        assert seen["decision"]["action"] == "CreateSubflow"
        assert seen["decision"]["token"] == seen["ConnectionCreated"]["token"]
        assert seen["decision"]["reason"]
        decisions = _Stream(running.control)
        decisions.request("GET", "/v1/decisions")
        assert seen["decision"]["id"] in [
            each["id"] for each in json.load(decisions.getresponse())["decisions"]
        ]
        traffic.stop()
        stream.close()
        decisions.close()


def test_a_correct_reload_takes_effect_and_a_wrong_one_keeps_the_old_configuration(
    make_mptcp_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = make_mptcp_lab([LabPath(), LabPath()])
    file = tmp_path / "c.yaml"
    file.write_text("log_level: info\n")
    with daemon(tmp_path, "--config", str(file), prefix=inside(lab)) as running:
        file.write_text("path_manager: adaptive\n")
        assert running.ask("reload").returncode == 0
        assert "adaptive" in running.ask("status").stdout
        assert lab.client.sysctl("mptcp.pm_type") == "1"
        file.write_text("path_manager: nobody\nlog_level: loud\n")
        refused = running.ask("reload")
        assert refused.returncode == 78
        assert f"{file}:1:1: path_manager" in refused.stderr
        assert f"{file}:2:1: log_level" in refused.stderr
        assert "adaptive" in running.ask("status").stdout
        os.kill(running.process.pid, 1)  # SIGHUP: the same, in the log
        until(lambda: "not reloaded" in running.log, "the log entry")
        assert running.process.poll() is None
