# SPDX-License-Identifier: BSD-3-Clause
"""`mptcpd-ebpf lab`: up, changed, shown and down by hand, with clear words and codes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mptcpd_ebpf.lab import namespaces
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


def test_a_lab_is_built_changed_and_removed_by_hand(file: str) -> None:
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
        ("schedule: [{at: 1, fault: fire}]", "no fault 'fire'; there are blackhole"),
    ],
)
def test_a_bad_file_says_where_and_why(file: str, text: str, words: str) -> None:
    Path(file).write_text(text)
    assert words in lab("up", file, "-n", NAME, code=78).stderr


def test_bad_changes_say_what_can_be(file: str) -> None:
    lab("up", file, "-n", NAME)
    for arguments, words in (
        (("set", "fibre", "delay_ms"), "'delay_ms' is not FIELD=VALUE"),
        (("set", "fibre", "delay_ms=soon"), "'soon' is no JSON value"),
        (("set", "fibre", "los=3"), "path fibre: a path has no 'los'"),
        (("set", "dsl", "delay_ms=3"), "there is no path 'dsl'; there are fibre, lte"),
        (("fault", "fibre", "fire"), "no fault 'fire'"),
        (("fault", "fibre", "expire-nat"), "path fibre has no NAT"),
        (("fault", "isp", "router-off"), "a bottleneck has no fault 'router-off'"),
        (("exec", "tv", "true"), "there is no host 'tv'"),
    ):
        assert words in lab(arguments[0], "-n", NAME, *arguments[1:], code=64).stderr
    assert "no such command" in lab("exec", "-n", NAME, "client", "no-such", code=127).stderr


def test_clean_removes_what_a_killed_keeper_leaves(file: str) -> None:
    lab("up", file, "-n", NAME)
    namespace = shown()["hosts"][0]["namespace"]
    keeper = int(namespace.split("-")[1])
    assert namespaces.start_time(keeper) == int(namespace.split("-")[2])
    os.kill(keeper, signal.SIGKILL)
    until(lambda: not runs(keeper), "the keeper ends")
    lab("clean")
    assert not os.path.exists(namespaces.path_of(namespace))


def test_sigterm_takes_a_kept_lab_down(file: str) -> None:
    lab("up", file, "-n", NAME)
    namespace = shown()["hosts"][0]["namespace"]
    keeper = int(namespace.split("-")[1])
    os.kill(keeper, signal.SIGTERM)
    until(lambda: not runs(keeper), "the keeper ends")
    assert not os.path.exists(namespaces.path_of(namespace))


def test_a_lab_is_roots_alone() -> None:
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = subprocess.run([*drop, *MAIN, "up"], capture_output=True, text=True)
    assert done.returncode == 77
    assert "a lab is root's" in done.stderr
