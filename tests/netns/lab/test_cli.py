# SPDX-License-Identifier: BSD-3-Clause
"""`mptcpd-ebpf lab`: up, set, fault, show and down, with clear messages and exit codes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mptcpd_ebpf.lab import LabError, keeper, namespaces
from tests.ordinary_user import AS_NOBODY
from tests.waiting import SLOWNESS, runs, until

MAIN = [sys.executable, "-c", "from mptcpd_ebpf.cli import main; main()", "lab"]
NAME = f"test-{os.getpid()}"
FILE = """\
paths:
  - {name: fibre, delay_ms: 5, rate_mbit: 20}
  - {name: lte, delay_ms: 10, down: {delay_ms: 30}, nat: true, bottleneck: isp}
bottlenecks:
  - {name: isp, delay_ms: 1}
ip: both
seed: 3
schedule:
  - {at: 0, path: fibre, set: {loss_percent: 2}}
"""


def lab(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*MAIN, *arguments], capture_output=True, text=True, timeout=60 * SLOWNESS
    )
    assert done.returncode == code, done.stderr
    if code:
        assert done.stderr.startswith("mptcpd-ebpf: ")
        assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def file(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "lab.yaml"
    path.write_text(FILE)
    yield str(path)
    subprocess.run([*MAIN, "down", "--name", NAME], capture_output=True)


def shown() -> dict[str, Any]:
    record: dict[str, Any] = json.loads(lab("show", "--json", "-n", NAME).stdout)
    assert record["schema"] == 1
    return record


def test_a_lab_is_built_changed_and_removed(file: str) -> None:
    lab("up", file, "-n", NAME)
    record = shown()
    hosts = {host["name"]: host["namespace"] for host in record["hosts"]}
    assert set(hosts) == {"client", "server"}
    lab("set", "lte", "delay_ms=7", "--direction", "up", "-n", NAME)
    lab("set", "0", "rate_mbit=null", "-n", NAME)
    lab("fault", "isp", "blackhole", "--direction", "down", "-n", NAME)
    fibre, lte = shown()["paths"]
    assert (lte["up"]["delay_ms"], lte["down"]["delay_ms"]) == (7, 30)
    assert fibre["up"]["rate_mbit"] is None
    assert fibre["up"]["loss_percent"] == 2
    assert lte["addresses"] == [["10.2.1.2", "fd00:2:1::2"], ["10.2.2.2", "fd00:2:2::2"]]
    (isp,) = shown()["bottlenecks"]
    assert (isp["up"]["blackhole"], isp["down"]["blackhole"]) == (False, True)
    assert "BLACKHOLE" in lab("show", "-n", NAME).stdout
    out = lab("exec", "client", "-n", NAME, "--", "stat", "-Lc", "%i", "/proc/self/ns/net").stdout
    assert int(out) == namespaces.inode(hosts["client"])
    lab("down", "-n", NAME)
    assert not any(os.path.exists(namespaces.path_of(name)) for name in hosts.values())
    lab("show", "-n", NAME, code=69)


def test_a_second_lab_of_the_same_name_is_refused(file: str) -> None:
    lab("up", file, "-n", NAME)
    assert "is up already" in lab("up", file, "-n", NAME, code=75).stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("paths: [{dealy_ms: 3}]", "lab.yaml:1:10: paths[0].dealy_ms: unknown key; did you mean"),
        ("paths: [{delay_ms: soon}]", "paths[0].delay_ms: expected a number"),
        ("paths: [", "not YAML"),
        ("paths: []", "a lab has one to 8 paths, not 0"),
        ("schedule: [{at: 1, fault: fire}]", "lab.yaml:1:20: schedule[0].fault: there is no"),
        ("schedule: [{at: .inf, fault: heal}]", "lab.yaml:1:13: schedule[0].at: inf is not in"),
        ("schedule: [{at: 1, fault: expire-nat}]", "schedule[0].fault: the path has no NAT"),
        ("schedule: [{at: 1, fault: drop-mptcp, options: [mp-jion]}]", "option 'mp-jion'"),
        ("hosts: [a, b]", "there is no host 'client' (there are a, b); say which two it joins"),
    ],
)
def test_mistakes_of_a_file_are_reported_with_place_and_reason(
    file: str, text: str, words: str
) -> None:
    Path(file).write_text(text)
    assert words in lab("up", file, "-n", NAME, code=78).stderr


def test_impossible_changes_are_refused_with_the_possible_ones(file: str) -> None:
    lab("up", file, "-n", NAME)
    for arguments, words in (
        (("set", "fibre", "delay_ms"), "'delay_ms' is not FIELD=VALUE"),
        (("set", "fibre", "delay_ms=soon"), "'soon' is no JSON value"),
        (("set", "fibre", "los=3"), "fibre: set.los: a path has no such field"),
        (("set", "dsl", "delay_ms=3"), "there is no path 'dsl'; there are fibre, lte"),
        (("fault", "fibre", "fire"), "no fault 'fire'"),
        (("set", "fibre", "jitter_ms=9"), "jitter_ms: 9 is above delay_ms, 5"),
        (("fault", "fibre", "drop-mptcp"), "say which to drop: mp-capable"),
        (("fault", "fibre", "router-off", "--end", "server"), "router-off has no end"),
        (("fault", "fibre", "expire-nat"), "the path has no NAT"),
        (("fault", "isp", "router-off"), "a bottleneck has no fault 'router-off'"),
        (("exec", "tv", "true"), "there is no host 'tv'"),
    ):
        assert words in lab(arguments[0], "-n", NAME, *arguments[1:], code=64).stderr
    assert "no such command" in lab("exec", "-n", NAME, "client", "no-such", code=127).stderr


@pytest.mark.parametrize("name", ["", "two words", "x" * 120, "/etc"])
def test_an_invalid_name_is_refused(name: str) -> None:
    for command in ("up", "show"):
        assert "cannot be a lab's name" in lab(command, "-n", name, code=64).stderr


def keeper_of(record: dict[str, Any]) -> int:
    return int(record["hosts"][0]["namespace"].split("-")[1])


def test_every_command_reports_an_ended_emulator(file: str) -> None:
    Path(file).write_text(FILE + "backend: nfqueue\n")
    lab("up", file, "-n", NAME)
    record = shown()
    assert record["trouble"] is None
    (emulator,) = (int(pid) for pid in children_of(keeper_of(record)))
    os.kill(emulator, signal.SIGKILL)
    until(lambda: not runs(emulator), "the emulator ends")
    words = "the path emulator has ended: packets have passed unimpaired since"
    assert words in lab("show", "-n", NAME, code=1).stderr
    assert json.loads(lab("show", "-n", NAME, "--json", code=1).stdout)["trouble"] == words
    assert words in lab("exec", "-n", NAME, "client", "true", code=1).stderr
    assert words in lab("set", "-n", NAME, "fibre", "delay_ms=9", code=1).stderr
    assert "the lab is down, but the path emulator" in lab("down", "-n", NAME, code=1).stderr
    namespace = record["hosts"][0]["namespace"]
    assert not os.path.exists(namespaces.path_of(namespace))


def children_of(pid: int) -> list[str]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return file.read().split()


def test_every_state_of_a_path_is_shown(file: str) -> None:
    lab("up", file, "-n", NAME)
    for arguments in (
        ("set", "fibre", 'burst={"enter_percent": 1, "leave_percent": 25}', "loss_percent=0"),
        ("fault", "fibre", "carrier-off", "--end", "server"),
        ("fault", "fibre", "remove-address"),
        ("fault", "lte", "remove-interface"),
        ("fault", "lte", "router-off"),
        ("fault", "lte", "strip-mptcp", "--direction", "up"),
        ("fault", "fibre", "drop-mptcp", "--option", "mp-join", "--option", "add-addr"),
    ):
        lab(arguments[0], "-n", NAME, *arguments[1:])
    text = lab("show", "-n", NAME).stdout
    for words in (
        "bursts (enter 1 %, leave 25 %), rate 20 Mbit/s, queue 50 ms, DROPPED: mp-join, add-addr",
        "CARRIER OFF at the server",
        "ADDRESS REMOVED at the client",
        "INTERFACE REMOVED at the client",
        "ROUTER OFF",
        "MPTCP STRIPPED",
    ):
        assert words in text
    fibre, lte = shown()["paths"]
    assert fibre["faults"] == {
        "carrier_off": ["server"],
        "address_removed": ["client"],
        "interface_removed": False,
        "router_off": False,
    }
    assert (lte["faults"]["interface_removed"], lte["faults"]["router_off"]) == (True, True)
    assert (lte["up"]["strip_mptcp"], lte["down"]["strip_mptcp"]) == (True, False)
    assert fibre["down"]["drop_mptcp"] == ["mp-join", "add-addr"]


def test_an_unexpected_error_is_answered(file: str) -> None:
    lab("up", file, "-n", NAME)
    with pytest.raises(LabError, match=r"unexpectedly: TypeError: .*keeper\.py:"):
        keeper.ask(NAME, 7)  # type: ignore[arg-type]
    shown()


def test_clean_removes_what_a_killed_keeper_leaves(file: str) -> None:
    lab("up", file, "-n", NAME)
    namespace = shown()["hosts"][0]["namespace"]
    pid = int(namespace.split("-")[1])
    assert namespaces.start_time(pid) == int(namespace.split("-")[2])
    os.kill(pid, signal.SIGKILL)
    until(lambda: not runs(pid), "the keeper ends")
    lab("clean")
    assert not os.path.exists(namespaces.path_of(namespace))


def test_sigterm_takes_a_kept_lab_down(file: str) -> None:
    lab("up", file, "-n", NAME)
    namespace = shown()["hosts"][0]["namespace"]
    pid = int(namespace.split("-")[1])
    os.kill(pid, signal.SIGTERM)
    until(lambda: not runs(pid), "the keeper ends")
    assert not os.path.exists(namespaces.path_of(namespace))


@pytest.mark.ordinary_user
def test_a_lab_needs_root() -> None:
    done = subprocess.run([*AS_NOBODY, *MAIN, "up"], capture_output=True, text=True)
    assert done.returncode == 77
    assert "a lab is root's" in done.stderr
