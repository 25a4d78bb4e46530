# SPDX-License-Identifier: BSD-3-Clause
"""The listings of docs/lab.md run unchanged, and the example project passes its tests."""

import pathlib
import re
import subprocess
import sys

import pytest

from mptcpd_ebpf.lab import Lab
from mptcpd_ebpf.lab.file import loads
from mptcpd_ebpf.lab.schedule import FAULTS
from tests.tree import ROOT
from tests.waiting import SLOWNESS

GUIDE = ROOT / "docs" / "lab.md"


def listings(language: str) -> list[str]:
    text = GUIDE.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def pytest_in(folder: pathlib.Path) -> str:
    """Runs pytest there as in another project, and returns its output."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", "."],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100 * SLOWNESS,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_first_test_of_the_guide_passes(tmp_path: pathlib.Path) -> None:
    first = listings("python")[0]
    assert first.startswith("# test_first.py\n")
    (tmp_path / "test_first.py").write_text(first)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmptcp_lab_required = true\n")
    assert "1 passed" in pytest_in(tmp_path)


@pytest.mark.parametrize("listing", listings("python")[1:])
def test_the_programs_of_the_guide_run(listing: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", listing], capture_output=True, text=True, timeout=60 * SLOWNESS
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d+ (Mbit/s|ms)", done.stdout)


def test_the_file_of_the_guide_becomes_a_lab() -> None:
    (text,) = listings("yaml")
    topology = loads(text, "docs/lab.md")
    assert [path.name for path in topology.paths] == ["fibre", "lte", "cable", "wlan"]
    assert len(topology.schedule) == 3
    with Lab.of(topology) as lab:
        for path in lab.paths:
            host = lab.hosts[path.path.between[0]]
            argv = ["ping", "-n", "-c", "9", "-i", "0.02", "-W", "1", "-I", path.client_ip]
            out = host.run([*argv, path.server_ip], check=False).stdout
            assert re.search(r" [1-9] received", out)  # lte loses some in bursts


def test_the_guide_names_every_fault() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    missing = [name for name in FAULTS if f"`{name}`" not in text]
    assert not missing


def test_the_example_project_passes_its_tests() -> None:
    assert "3 passed" in pytest_in(ROOT / "examples" / "line-server")
